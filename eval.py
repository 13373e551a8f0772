"""Draw pictures from a trained checkpoint or from published weights."""

from sd.errors import run_script


def main() -> None:
    """Import within `run_script`, so that Ctrl-C gives one line from the first moment on."""
    from sd.commands.sample import main

    main()


if __name__ == "__main__":
    run_script(main, "finished pictures are kept; the same command goes on with the rest")
