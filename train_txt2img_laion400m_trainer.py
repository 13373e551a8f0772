"""Pretrain Stable Diffusion on packed captioned images; `--help` lists the flags, train.sh holds a start."""

import sys

from sd import runtime
from sd.errors import run_script
from sd.logs import import_quietly, set_up_logging


def main():
    """Parse, build, train. Running the same command again goes on from the newest whole checkpoint."""
    runtime.prepare()
    from sd.versions import check

    check()
    set_up_logging()
    import_quietly()
    from sd.command_line import parse_arguments
    from sd.training import train

    stopped_by = train(*parse_arguments())
    if stopped_by is not None:
        sys.exit(128 + stopped_by)


if __name__ == "__main__":
    run_script(main)
