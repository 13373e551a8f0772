"""Latents and text states computed once: images in, parts of what the frozen encoders make of them out."""
