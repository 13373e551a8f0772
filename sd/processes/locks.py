"""A folder that one process at a time may write, on one machine or on several that share it."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from sd.errors import InputError
from sd.files import try_flock, try_lock

logger = logging.getLogger(__name__)

_NAME = ".lock"


class LockHeldError(Exception):
    """Another process has the lock. The message names it as far as it is known."""


@contextmanager
def locked_folder(folder: str) -> Iterator[None]:
    """Hold an existing folder for this process alone. Raises InputError if another process or user has it.

    A record lock on a file reaches other machines of a network file system and ends with the process; a lock of the
    folder itself tells two users within one process apart. Where files cannot be locked, a warning says so.
    """
    with ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        try:
            if not _try(try_flock, descriptor, ""):
                raise LockHeldError
            stack.enter_context(lock_file(Path(folder)))
        except LockHeldError as error:
            holder = f" ({error})" if str(error) else ""
            raise InputError(f"{folder}: another run is at work there{holder}; wait for it or take another") from error
        stack.callback(Path(folder, _NAME).unlink, missing_ok=True)  # while the lock is held
        yield


def lock_file(folder: Path) -> TextIO:
    """The file `.lock` of a folder, open, with this process's record lock and number; the lock ends with the process.

    A record lock is used: unlike flock's it does not live on in DataLoader workers when this process is killed.
    Raises LockHeldError if another process has it, OSError if the file cannot be opened.
    """
    path = folder / _NAME
    while True:
        file = path.open("a+")
        try:
            if not _try(try_lock, file, str(folder)):
                file.seek(0)
                raise LockHeldError(file.read().strip() or "an unknown process")
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break  # not one that its holder has just removed
        except BaseException:
            file.close()
            raise
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def _try(lock, file: IO[Any] | int, warn_of: str) -> bool:
    """Whether `lock(file)` succeeded. Where the file system has no locks it counts as taken; NFS locks no folders."""
    try:
        return lock(file)
    except OSError as error:
        if warn_of:
            logger.warning("%s: its file system has no locks (%s), going on", warn_of, error.strerror)
        return True
