"""The programs' common entry: the environment is checked before a program's imports, which need its packages."""

from __future__ import annotations

import errno
import importlib
import re
import sys

from sd import versions
from sd.errors import InputError, run_script

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)  # what a user's path may be refused for
_MISSING_LIBRARY = re.compile(r"(lib[\w+.-]+\.so[.\d]*): cannot open shared object file")


def run(module: str, when_stopped: str = "the same command starts again") -> None:
    """Check the installed versions, import `module`, call its `main()`; errors end the process as in `run_script`.

    when_stopped: what the line of Ctrl-C says of what is saved and how to resume.
    """

    def start() -> None:
        versions.check()
        try:
            importlib.import_module(module).main()
        except (ImportError, OSError) as error:
            missing = _MISSING_LIBRARY.search(str(error))
            if missing is None and isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
                raise InputError(f"{error.filename}: {error.strerror}; name another, or change its rights") from error
            if missing is None:
                raise
            raise InputError(versions.library_advice(missing[1])) from error

    run_script(start, when_stopped)


def check() -> None:
    """Check the installed versions alone."""
    run_script(versions.check)


def pack() -> None:
    """sd-pack, create_pretraining_data.py"""
    run("sd.commands.pack", "the same command resumes from the finished parts")


def cache() -> None:
    """sd-cache, precompute_latents.py"""
    run("sd.commands.cache", "the same command resumes from the finished parts")


def train() -> None:
    """sd-train, train_txt2img_laion400m_trainer.py"""
    if "--doctor" in sys.argv[1:]:
        doctor("sd.commands.train")
        return
    run("sd.commands.train", "nothing was saved; the same command starts again, or resumes from the last checkpoint")


def launch() -> None:
    """python -m sd.processes.launch"""
    run("sd.processes.launch", "the same command starts again, or resumes from what was saved")


def sample() -> None:
    """sd-sample, eval.py"""
    run("sd.commands.sample", "finished pictures are kept; the same command resumes with the rest")


def export() -> None:
    """sd-export, export.py"""
    run("sd.commands.export")


def serve() -> None:
    """app.py"""
    run("sd.commands.serve")


def doctor(module: str = "sd.training.doctor") -> None:
    """sd-doctor, python -m sd.doctor"""
    run(module, "nothing was changed; the same command starts again")


def columns() -> None:
    """python -m sd.data.columns"""
    run("sd.data.columns", "finished parts are kept; the same command resumes with the rest")


def inspect() -> None:
    """sd-inspect, python -m sd.data.inspect"""
    run("sd.data.inspect")


def duplicates() -> None:
    """python -m sd.data.duplicates"""
    run("sd.data.duplicates.command", "the same command resumes from the parts that were read")
