"""Training: the loop, the optimizer, checkpoints' contents, validation, previews, and the doctor."""
