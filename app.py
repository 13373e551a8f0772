"""Serve a web page that draws pictures from a checkpoint, on this machine alone unless --host says otherwise."""

from sd.errors import run_script


def main() -> None:
    """Import within `run_script`, so that Ctrl-C gives one line from the first moment on."""
    from sd.commands.serve import main

    main()


if __name__ == "__main__":
    run_script(main)
