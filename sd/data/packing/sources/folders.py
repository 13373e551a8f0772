"""Image files below a folder, local or remote, and nothing beyond it unless that is allowed."""

import errno
import os
import posixpath
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from sd.data.packing.outcomes import BadRow
from sd.data.parts import storage

MAX_IMAGE_BYTES = 47 << 20  # its base64 and a caption still fit a row that readers accept (scan.MAX_ROW_BYTES)
MAX_TEXT_BYTES = 1 << 20

_OUTSIDE = "image outside the input's folder"  # or its caption
_REMOTE_THREADS = 32


def folder_at(path: str, allow_outside: bool) -> "LocalFolder | RemoteFolder":
    """The LocalFolder or RemoteFolder at a path or address."""
    return (RemoteFolder if storage.is_remote(path) else LocalFolder)(path, allow_outside)


class LocalFolder:
    """Reads files below a folder, and not beyond it: absolute paths, `..` and links are followed only so far."""

    def __init__(self, folder: str | Path, allow_outside: bool):
        self._folder = os.path.realpath(folder)
        self._inside = self._folder.rstrip("/") + "/"
        self._allow_outside = allow_outside
        self._resolve = lru_cache(maxsize=4096)(os.path.realpath)  # images come by folder
        self._located = {}  # names that `versions` has looked at and `read` has not

    def versions(self, names: Iterable[str]) -> list[str]:
        """Size and time of change of each file, or why there is none: what a signature needs."""
        return [self._version(name) for name in names]

    def _version(self, name):
        try:
            path = self._located[name] = self._locate(name)
        except BadRow as row:
            return row.reason
        except (OSError, ValueError) as error:
            return type(error).__name__
        return storage.version_or_error(path)

    def prefetch(self, names: Iterable[str]) -> None:
        """No-op: a local file is read on demand."""

    @staticmethod
    def is_prefetched(name: str) -> bool:
        return True

    def read(self, name: str) -> bytes:
        return self._checked(name, check_size, "image")

    def read_text(self, name: str) -> bytes:
        """The bytes of a file that holds a caption. Raises BadRow."""
        return self._checked(name, check_text_size, "caption")

    def _checked(self, name, check, subject):
        try:
            return self._read(self._located.pop(name, None) or self._locate(name), name, check)
        except FileNotFoundError as error:
            raise BadRow(f"{subject} missing", name) from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise BadRow(f"{subject} cannot be read", f"{name}: {reason}") from error

    def _locate(self, name):
        if not name:
            raise BadRow("no image in the row", "its path is empty")
        head, _, tail = (name if name.startswith("/") else f"{self._folder}/{name}").rpartition("/")
        path = f"{self._resolve(head or '/')}/{tail}"
        if tail in ("", ".", ".."):
            path = os.path.realpath(path)
        self._check_inside(path, name)
        if stat.S_ISLNK(os.lstat(path).st_mode):
            path = os.path.realpath(path)
            self._check_inside(path, name)
        return path

    def _check_inside(self, path, name):
        if not self._allow_outside and not path.startswith(self._inside):
            raise BadRow(_OUTSIDE, f"{name}; --allow_outside takes it from {path}")

    @staticmethod
    def _read(path, name, check):
        # A link put there meanwhile is not followed, and a pipe does not block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            check(status.st_size, name)
            return file.read()


class RemoteFolder:
    """Reads objects below an address; `..` cannot lead out of it."""

    def __init__(self, folder: str | Path, allow_outside: bool):
        self._fs, self._folder = storage.filesystem(folder)
        self._protocol = str(folder).partition("://")[0]
        self._inside = self._folder.rstrip("/") + "/"
        self._allow_outside = allow_outside
        self._prefetched = {}

    def versions(self, names: Iterable[str]) -> list[str]:
        """Size and tag of each object, or why there is none; many at a time, since each is a request."""
        with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
            return list(pool.map(self._version, names))

    def _version(self, name):
        try:
            return storage.version_or_error(f"{self._protocol}://{self._locate(name)}")
        except BadRow as row:
            return row.reason

    def prefetch(self, names: Iterable[str]) -> None:
        """Read objects at once, none further than the largest image goes, for `read` to hand out."""
        paths = {}
        for name in names:
            self._prefetched.setdefault(name)
            with suppress(BadRow):
                paths[name] = self._locate(name)
        starts, ends = [0] * len(paths), [MAX_IMAGE_BYTES + 1] * len(paths)
        contents = self._fs.cat_ranges(list(paths.values()), starts, ends, on_error="return")
        self._prefetched.update(zip(paths, contents, strict=True))

    def is_prefetched(self, name: str) -> bool:
        return name in self._prefetched

    def read(self, name: str) -> bytes:
        data = self._prefetched.pop(name, None)
        path = self._locate(name)
        try:
            if not isinstance(data, bytes):  # an error, among them that of a range in an empty object
                check_size(self._fs.size(path), name)
                data = self._fs.cat_file(path)
        except FileNotFoundError as error:
            raise BadRow("image missing", name) from error
        check_size(len(data), name)
        return data

    def read_text(self, name: str) -> bytes:
        """The bytes of an object that holds a caption. Raises BadRow."""
        path = self._locate(name)
        try:
            check_text_size(self._fs.size(path), name)
            return self._fs.cat_file(path)
        except FileNotFoundError as error:
            raise BadRow("caption missing", name) from error

    def _locate(self, name):
        if not name:
            raise BadRow("no image in the row", "its path is empty")
        path = posixpath.normpath(posixpath.join(self._folder, name))
        if not self._allow_outside and not path.startswith(self._inside):
            raise BadRow(_OUTSIDE, f"{name}; --allow_outside takes it from {path}")
        return path


def check_size(num_bytes: int, name: str) -> None:
    """Raise BadRow for an image file of no bytes, or of so many that no reader would take its row."""
    if num_bytes == 0:
        raise BadRow("image file is empty", name)
    if num_bytes > MAX_IMAGE_BYTES:
        raise BadRow("image file too large", f"{name}: {num_bytes} bytes, limit {MAX_IMAGE_BYTES}")


def check_text_size(num_bytes: int, name: str) -> None:
    """Raise BadRow for a file of captions that is too large to be one."""
    if num_bytes > MAX_TEXT_BYTES:
        raise BadRow("caption too large", f"{name}: {num_bytes} bytes")
