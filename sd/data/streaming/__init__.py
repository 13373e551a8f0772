"""Streaming: sample numbers in, batches of arrays out."""
