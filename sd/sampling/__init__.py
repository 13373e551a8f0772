"""Sampling: checkpoints and prompts -> pictures on disk, comparisons, scores."""
