"""Pretrain Stable Diffusion on packed captioned images; `--help` lists the flags, train.sh holds a start."""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from sd import devices, runtime
from sd.errors import first_line
from sd.flags.files import expand
from sd.flags.help import training_help
from sd.logs import import_quietly, rank, set_up_logging
from sd.processes.pool import die_with_launcher
from sd.processes.progress import report_end
from sd.processes.signals import report_early_stop


def main() -> None:
    """Parse, build, train. Running the same command again resumes from the newest intact checkpoint."""
    argv = sys.argv[1:]
    if {"-h", "--help"} & set(argv):
        print(training_help(f"python {Path(sys.argv[0]).name}", argv, os.environ))
        return
    if "--doctor" in argv:
        from sd.training.doctor import main as examine

        examine([word for word in argv if word != "--doctor"])
        return
    die_with_launcher()
    report_early_stop()
    device = devices.requested(expand(argv, {"device": False}))
    devices.check_flags(device)
    runtime.prepare(device)
    set_up_logging()
    import_quietly()
    from sd.flags.command_line import parse_arguments
    from sd.training.run import train

    try:
        stopped_by = train(*parse_arguments())
    except Exception as error:
        report_end(error, first_line(error))
        raise
    except KeyboardInterrupt as stop:
        stopped_by = signal.Signals(stop.args[0]) if stop.args else signal.SIGINT
        if rank() == 0:
            print(
                "stopped at once; the same command resumes from the last checkpoint, if there is one", file=sys.stderr
            )
    if stopped_by is not None:
        report_end(None)
    leave(0 if stopped_by is None else 128 + stopped_by)


def leave(code: int) -> NoReturn:
    """End the process now that everything is written: Paddle's own end aborts it in one of ten runs on two ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
