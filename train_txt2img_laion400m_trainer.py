"""Pretrain Stable Diffusion on packed captioned images; `--help` lists the flags, train.sh holds a start."""

import os
import signal
import sys
from pathlib import Path

from sd import runtime, versions
from sd.data.process import die_with_launcher
from sd.errors import run_script
from sd.flags_help import training_help
from sd.logs import import_quietly, set_up_logging


def main():
    """Parse, build, train. Running the same command again goes on from the newest whole checkpoint."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(training_help(f"python {Path(__file__).name}"))
        return
    die_with_launcher()
    runtime.prepare()
    versions.check()
    set_up_logging()
    import_quietly()
    from sd.command_line import parse_arguments
    from sd.training import train

    try:
        stopped_by = train(*parse_arguments())
    except KeyboardInterrupt:
        stopped_by = signal.SIGINT
    leave(0 if stopped_by is None else 128 + stopped_by)


def leave(code):
    """End the process now that everything is written: Paddle's own end aborts it in one of ten runs on two ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run_script(main)
