"""Compute the VAE's moments, and with --cache_text the text encoder's states, of a file list once, for training."""

from sd.entry import cache

if __name__ == "__main__":
    cache()
