"""Compute the VAE's moments, and with --cache_text the text encoder's states, of a file list once, for training."""

from sd.commands.cache import main
from sd.errors import run_script

if __name__ == "__main__":
    run_script(main)
