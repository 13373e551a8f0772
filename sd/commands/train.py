"""Pretrain Stable Diffusion on packed captioned images; `--help` lists the flags, train.sh holds a start."""

import os
import signal
import sys
from pathlib import Path

from sd import runtime, versions
from sd.flags.help import training_help
from sd.logs import import_quietly, set_up_logging
from sd.processes.pool import die_with_launcher


def main():
    """Parse, build, train. Running the same command again goes on from the newest whole checkpoint."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(training_help(f"python {Path(sys.argv[0]).name}"))
        return
    die_with_launcher()
    runtime.prepare()
    versions.check()
    set_up_logging()
    import_quietly()
    from sd.flags.command_line import parse_arguments
    from sd.training.run import train

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
