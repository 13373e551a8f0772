"""A folder that one process at a time may write, on one machine or on several that share it."""

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sd.errors import InputError

logger = logging.getLogger(__name__)

_NAME = ".lock"
_HELD = (errno.EAGAIN, errno.EACCES)


@contextmanager
def locked_folder(folder: str) -> Iterator[None]:
    """Hold a folder, which is there, for this process alone. Raises InputError if another has it.

    A record lock on a file reaches other machines of a network file system and ends with the process; a lock of the
    folder itself tells two users within one process apart. Where files cannot be locked, a warning says so.
    """
    with ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        _take(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB), folder)
        file = stack.enter_context(_lock_file(folder))
        stack.callback(Path(folder, _NAME).unlink, missing_ok=True)  # while the lock is held
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _lock_file(folder):
    """The open file with its lock: the one of that name, not one that its holder has just removed."""
    path = Path(folder, _NAME)
    while True:
        file = path.open("a+")
        try:
            _take(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB), folder, file)  # noqa: B023
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _take(lock, folder, file=None):
    try:
        lock()
    except OSError as error:
        if error.errno not in _HELD:
            if file is not None:  # NFS locks no folders
                logger.warning("%s: its file system has no locks (%s), going on", folder, error.strerror)
            return
        holder = ""
        if file is not None:
            file.seek(0)
            holder = f" ({file.read().strip()})"
        raise InputError(f"{folder}: another run is at work there{holder}; wait for it or take another") from error
