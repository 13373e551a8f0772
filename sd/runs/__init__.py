"""What lies in a run's output folder: checkpoints, settings, and finding them."""
