"""Model components and their files: loading, weights, encoders, hashes."""
