"""Pretrain Stable Diffusion on packed captioned images; `--help` lists the flags, train.sh holds a start."""

from sd.errors import run_script


def main() -> None:
    """Import within `run_script`, so that Ctrl-C gives one line from the first moment on."""
    from sd.commands.train import main

    main()


if __name__ == "__main__":
    run_script(main, "nothing was saved; the same command starts again, or goes on from the last checkpoint")
