"""Compute the VAE's moments, and with --cache_text the text encoder's states, of a file list once, for training."""

from sd.errors import run_script


def main() -> None:
    """Import within `run_script`, so that Ctrl-C gives one line from the first moment on."""
    from sd.commands.cache import main

    main()


if __name__ == "__main__":
    run_script(main)
