"""The diffusion objective: schedule, random draws, loss, and the model that joins them."""
