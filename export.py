"""Write a checkpoint as a whole pipeline folder, for ppdiffusers or for diffusers on PyTorch."""

from sd.errors import run_script


def main() -> None:
    """Import within `run_script`, so that Ctrl-C gives one line from the first moment on."""
    from sd.commands.export import main

    main()


if __name__ == "__main__":
    run_script(main)
