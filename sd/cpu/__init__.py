"""The layers of a model on a CPU: oneDNN and MKL in the place of Paddle's own loops."""
