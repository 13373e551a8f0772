"""Atomic writes and file locks, one of each for the whole toolkit. Standard library only."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_TEMPORARY = ".tmp"
_LOCKED = (errno.EAGAIN, errno.EACCES)


def temporary_path(path: Path) -> Path:
    """A new name beside `path` for a file that is being written: two machines may write the same file at once."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")


def is_unfinished(name: str) -> bool:
    """Whether a file name is one of `temporary_path`: left by a kill, unless its writer is still at work."""
    return re.search(r"\.[0-9a-f]{8}\.tmp$", name) is not None


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception says that a file did not fit, on the disk or in the user's share of it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fsync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Rename a file or folder whose content is fsynced to its name, and fsync the name."""
    temporary.rename(path)
    fsync(path.parent)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Atomic write by code that opens files itself: write to the temporary path that the block gets.

    At the block's end the file is fsynced and renamed to `path`; an error leaves what was there before.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        fsync(temporary)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def try_lock(file: IO[Any] | int, start: int | None = None) -> bool:
    """Take the exclusive record lock of a file, or of its byte `start`; False if another process has it.

    A record lock reaches the other machines of a network file system, is not inherited by children, and ends with the
    process. Raises OSError where the file system has no locks.
    """
    part = () if start is None else (1, start)
    return _try_lock(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *part))


def try_flock(file: IO[Any] | int) -> bool:
    """Take the exclusive lock of an open file or folder; False if it is locked through another open file.

    Unlike a record lock it excludes two users within one process. Raises OSError where there are no such locks.
    """
    return _try_lock(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB))


def _try_lock(lock):
    try:
        lock()
    except OSError as error:
        if error.errno in _LOCKED:
            return False
        raise
    return True
