"""Files by path or by address: local paths stay plain files, `s3://bucket/name` and the like go through fsspec."""

import difflib
import errno
import functools
import io
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from sd.errors import InputError, first_line
from sd.files import publish, temporary_path

T = TypeVar("T")

_VERSION_KEYS = ("ETag", "etag", "LastModified", "mtime", "updated", "created")  # of the stores that fsspec knows


def failures() -> tuple[type[BaseException], ...]:
    """OSError, and what the S3 client raises without being one: no credentials, no connection."""
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return (OSError,)
    return OSError, BotoCoreError


def _as_os_errors(function: Callable[..., T]) -> Callable[..., T]:
    """What the S3 client raises without being an OSError comes as one, with the address: callers know that kind."""

    @functools.wraps(function)
    def wrapped(path: str | Path, *args: object) -> T:
        try:
            return function(path, *args)
        except OSError:
            raise
        except Exception as error:
            if not (is_remote(path) and isinstance(error, failures())):
                raise
            raise OSError(errno.EIO, first_line(error), str(path)) from error

    return wrapped


def is_remote(path: str | Path) -> bool:
    return "://" in str(path)


def filesystem(address: str | Path) -> tuple[Any, str]:
    """The fsspec file system of an address, and the address without its protocol."""
    import fsspec  # a fifth of a second that a local run does not need

    try:
        return fsspec.core.url_to_fs(str(address))
    except ImportError as error:
        raise InputError(f"{address}: {error} (for s3:// pip install -r requirements-s3.txt)") from error
    except ValueError as error:
        raise InputError(f"{address}: {error}") from error


@_as_os_errors
def open_binary(path: str | Path) -> BinaryIO:
    """A seekable binary file, open for reading."""
    if is_remote(path):
        fs, name = filesystem(path)
        return io.BufferedReader(fs.open(name, "rb"))  # for readline with a limit, which fsspec lacks
    return open(path, "rb")  # noqa: PTH123 - a start over 60,000 parts spends a fifth of its time in pathlib


def read_bytes(path: str | Path) -> bytes:
    with open_binary(path) as file:
        return file.read()


def join(folder: str | Path, name: str) -> str:
    """`folder/name`, with the folder exactly as the user wrote it (no `./` dropped, no `..` resolved)."""
    folder = str(folder)
    return folder + name if folder.endswith("/") else f"{folder}/{name}"


def base_name(path: str | Path) -> str:
    return str(path).rstrip("/").rsplit("/", 1)[-1]


def folder_of(path: str | Path) -> str:
    """The folder that holds `path`, `.` for a bare name."""
    head, slash, _ = str(path).rstrip("/").rpartition("/")
    return head or slash or "."


@_as_os_errors
def exists(path: str | Path) -> bool:
    if is_remote(path):
        fs, name = filesystem(path)
        return fs.exists(name)
    return os.path.exists(path)  # noqa: PTH110


def near_path(path: str | Path) -> str:
    """The path whose last name is most like that of a local path that is not there; "" where none is."""
    folder = folder_of(path)
    with suppress(OSError):
        if near := difflib.get_close_matches(base_name(path), [entry.name for entry in Path(folder).iterdir()], 1):
            return near[0] if folder == "." and not str(path).startswith("./") else join(folder, near[0])
    return ""


@_as_os_errors
def size_of(path: str | Path) -> int:
    """Bytes of a file. Raises FileNotFoundError (or another OSError)."""
    if is_remote(path):
        fs, name = filesystem(path)
        return fs.size(name)
    return os.stat(path).st_size  # noqa: PTH116


@_as_os_errors
def version_of(path: str | Path) -> str:
    """Something that changes when the file does: size and time of a local file, size and tag of a remote one."""
    if is_remote(path):
        fs, name = filesystem(path)
        info = fs.info(name)
        tag = next(filter(None, map(info.get, _VERSION_KEYS)), None)
        return f"{info['size']}-{tag}"
    stat = Path(path).stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def versions_below(path: str | Path) -> str:
    """Names, sizes and times of change of a local file or of all files below a folder; "" where there is neither."""
    path = Path(path)
    if path.is_file():
        return version_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    return " ".join(f"{file.relative_to(path)} {version_or_error(file)}" for file in files)


def version_or_error(path: str | Path) -> str:
    """As `version_of`; the error's name where there is no such file: what a signature needs."""
    try:
        return version_of(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return type(error).__name__


def cache_folder(name: str) -> Path:
    """Where caches of a name are kept for all runs of this user; nothing is made."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder, name)
    try:
        return Path.home() / ".cache" / name
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")


@_as_os_errors
def make_folder(path: str | Path) -> None:
    if is_remote(path):
        fs, name = filesystem(path)
        fs.makedirs(name, exist_ok=True)
    else:
        Path(path).mkdir(parents=True, exist_ok=True)


@_as_os_errors
def list_folder(path: str | Path) -> list[str]:
    """Names (not paths) in a folder; nothing if the folder is missing."""
    if is_remote(path):
        fs, name = filesystem(path)
        try:
            return sorted(base_name(entry) for entry in fs.ls(name, detail=False, refresh=True))
        except FileNotFoundError:
            return []
    folder = Path(path)
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


@_as_os_errors
def remove(path: str | Path) -> None:
    if is_remote(path):
        fs, name = filesystem(path)
        with suppress(FileNotFoundError):
            fs.rm_file(name)
    else:
        Path(path).unlink(missing_ok=True)


class AtomicFile:
    """An atomic file write: temporary name, fsync, rename; it appears whole or not at all, also after a crash.

    Write inside a `with` block, by `write` or to `file`, which is open for binary writing; it appears at the block's
    end, and an error leaves no trace. A remote file is put together locally first.
    """

    def __init__(self, path: str | Path):
        self._path = str(path)

    def __enter__(self):
        if is_remote(self._path):
            descriptor, self._temporary = tempfile.mkstemp(suffix=".tmp")
            os.close(descriptor)
        else:
            self._temporary = str(temporary_path(Path(self._path)))
        self.file = self._file = Path(self._temporary).open("wb")
        self.write = self._file.write
        return self

    def __exit__(self, error_type, error, traceback):
        try:
            if error_type is None:
                self._publish()
        finally:
            with suppress(OSError):  # closing flushes, which fails again on a full disk
                self._file.close()
            Path(self._temporary).unlink(missing_ok=True)

    def _publish(self):
        self._file.flush()
        if is_remote(self._path):
            fs, name = filesystem(self._path)
            fs.put_file(self._temporary, name)
            return
        os.fsync(self._file.fileno())
        publish(Path(self._temporary), Path(self._path))


def write_atomic(path: str | Path, data: bytes) -> None:
    with AtomicFile(path) as file:
        file.write(data)
