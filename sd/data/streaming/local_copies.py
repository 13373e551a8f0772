"""Local copies of parts that cannot be read in any order where they lie: remote ones, and gzip streams (unpacked)."""

import fcntl
import os
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import cast

from sd.data.parts import storage
from sd.data.parts.gunzip import PIECE_BYTES, DamageError, unpack
from sd.data.parts.index import LINES, STREAM, PartError, PartHeader, PartIndex
from sd.data.parts.part import PartReader
from sd.errors import RunError
from sd.files import try_flock

DEFAULT_BYTES = 10 * 2**30
_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0
_ABANDONED_SECONDS = 60


def needs_copy(path: str | Path, layout: str) -> bool:
    """Whether the rows of a part cannot be reached in any order where it lies."""
    return layout == STREAM or storage.is_remote(path)


class LocalCopies:
    """Opens parts for reading in any order, through a local copy where one is needed.

    An LRU cache: the folder holds at most `limit_bytes`, partial copies among them, or one part if that is larger; the
    least recently opened is evicted first. A partial copy whose process has ended is removed.
    Several processes may share it.
    """

    def __init__(self, limit_bytes: int = DEFAULT_BYTES, folder: str | Path | None = None):
        self.limit_bytes, self.folder = limit_bytes, Path(folder or storage.cache_folder("sd_parts"))

    def open(self, path: str | Path, index: PartIndex) -> PartReader:
        """A PartReader that is open already.

        Raises PartError if the part cannot be read, RunError if the folder cannot hold it.
        """
        if not needs_copy(path, index.layout):
            return PartReader(path, index)
        name = sha256(f"{path} {index.checksum} {index.layout}".encode()).hexdigest()[:32]
        copy = self.folder / f"{name}.part"
        write = _copy_into
        if index.layout == STREAM:
            index, write = replace(index, layout=LINES), _unpack_into
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(copy.with_suffix(".lock")):
                if (reader := _reader_of(copy, index)) is None:
                    reader = self._fetch(path, copy, index, write)
                else:
                    with suppress(FileNotFoundError):  # another process may be evicting it; the open reader stays valid
                        os.utime(copy)
                    with self._eviction_lock():
                        self._evict(keep=copy)
        except OSError as error:
            raise RunError(
                f"{self.folder}: cannot keep a copy of {path}: {error.strerror or error}; free some space, "
                "lower --data_cache_bytes or set XDG_CACHE_HOME"
            ) from error
        return reader

    def prepare(self, path: str | Path, index: PartHeader | PartIndex) -> None:
        """Make the copy that `open` will need. index: PartIndex or PartHeader. Raises as `open`."""
        if needs_copy(path, index.layout):
            self.open(path, cast(PartIndex, index)).close()  # no row is read

    def _fetch(self, path, copy, index, write):
        """Write the copy and open it before it is renamed, so that no other process can evict it in between."""
        temporary = copy.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            for attempt in range(_ATTEMPTS):
                with temporary.open("wb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    try:
                        write(path, file)
                        break
                    except _ReadError as error:
                        if attempt + 1 == _ATTEMPTS:
                            raise PartError(f"{path}: cannot be read: {error}") from error
                time.sleep(_PAUSE_SECONDS * 2**attempt)
            reader = PartReader(temporary, index)
            with self._eviction_lock():  # evict first, counting `temporary`, then rename: never over the limit
                self._evict(keep=copy)
                temporary.replace(copy)
            return reader
        finally:
            temporary.unlink(missing_ok=True)

    def _eviction_lock(self):
        """Context in which no other process evicts or renames a copy."""
        return _locked(self.folder / "room.lock")

    def _evict(self, keep):
        copies = []
        for copy in self.folder.glob("*.part"):
            with suppress(FileNotFoundError):
                stat = copy.stat()
                copies.append((stat.st_mtime, stat.st_size, copy))
        total = sum(size for _, size, _ in copies) + sum(map(_size_if_in_work, self.folder.glob("*.tmp")))
        for _, size, copy in sorted(copies):
            if total <= self.limit_bytes:
                break
            if copy != keep:
                copy.unlink(missing_ok=True)
                copy.with_suffix(".lock").unlink(missing_ok=True)
                total -= size


def _size_if_in_work(temporary):
    """Bytes of a half-made copy; 0 after removing one whose maker is gone, since a maker holds its lock."""
    with suppress(FileNotFoundError), temporary.open("rb") as file:
        stat = os.fstat(file.fileno())
        if time.time() - stat.st_mtime < _ABANDONED_SECONDS:  # it may be about to take its lock, or its name
            return stat.st_size
        if not try_flock(file):
            return stat.st_size
        temporary.unlink()
    return 0


def _reader_of(copy, index):
    """An open PartReader of a copy, None if there is no such file."""
    with suppress(PartError):
        return PartReader(copy, index)
    return None


class _ReadError(Exception):
    """The source could not be read, which may pass; an OSError of the copy is another matter."""


def _pieces(path):
    try:
        with storage.open_binary(path) as source:
            while piece := source.read(PIECE_BYTES):
                yield piece
    except FileNotFoundError as error:
        raise PartError(f"{path}: no such part; check the path in the file list") from error
    except Exception as error:  # clients of object stores raise exceptions of their own
        raise _ReadError(f"{type(error).__name__}: {error}") from error


def _copy_into(path, file):
    for piece in _pieces(path):
        file.write(piece)


def _unpack_into(path, file):
    pieces = _pieces(path)
    with suppress(DamageError):  # rows after the damage show as cut when they are read
        for piece, _ in unpack(lambda: next(pieces, b"")):
            file.write(piece)


@contextmanager
def _locked(path):
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
