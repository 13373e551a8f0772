"""Pretrain Stable Diffusion on packed captioned images; `--help` lists the flags, train.sh holds a start."""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from sd import devices, runtime
from sd.data.parts.filelist import read_file_list
from sd.errors import first_line
from sd.flags.arguments import SDDataArguments, SDModelArguments
from sd.flags.command_line import check_early, parse_arguments
from sd.flags.files import expand
from sd.flags.help import training_help
from sd.logs import import_quietly, rank, set_up_logging
from sd.models.loading import FLAGS, component_source, local_folder
from sd.processes.pool import die_with_launcher
from sd.processes.progress import report_end
from sd.processes.signals import report_early_stop


def check(model_args: SDModelArguments, data_args: SDDataArguments) -> None:
    """Raise InputError for a list or a model that is not there, before the seconds of Paddle's import."""
    for file_list in filter(None, (data_args.file_list, data_args.eval_file_list)):
        read_file_list(file_list)
    for component in FLAGS:
        name, subfolder = component_source(model_args, component)
        if not Path(name).is_file():  # a UNet's configuration, or a whole model
            local_folder(component, name, subfolder)


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
    try:
        device = devices.requested(expand(argv, {"device": False}))
        devices.check_flags(device)
        check(*check_early(argv))
        runtime.prepare(device)
        set_up_logging()
        import_quietly()
        from sd.training.run import train

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
