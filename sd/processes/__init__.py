"""Process pools, Ray, signals and the watch over sibling processes."""
