"""Files by path or by address: local paths stay plain files, `s3://bucket/name` and the like go through fsspec."""

import os
from pathlib import Path

from sd.errors import RunError


def is_remote(path):
    return "://" in str(path)


def filesystem(address):
    """The fsspec file system of an address, and the address without its protocol."""
    import fsspec  # a fifth of a second that a local run does not need

    try:
        return fsspec.core.url_to_fs(str(address))
    except (ImportError, ValueError) as error:
        raise RunError(f"{address}: {error}") from error


def open_binary(path):
    """A seekable binary file, open for reading."""
    if is_remote(path):
        fs, name = filesystem(path)
        return fs.open(name, "rb")
    return Path(path).open("rb")


def read_bytes(path):
    with open_binary(path) as file:
        return file.read()


def join(folder, name):
    """`folder/name`, with the folder exactly as the user wrote it (no `./` dropped, no `..` resolved)."""
    folder = str(folder)
    return folder + name if folder.endswith("/") else f"{folder}/{name}"


def base_name(path):
    return str(path).rstrip("/").rsplit("/", 1)[-1]


def folder_of(path):
    """The folder that holds `path`, `.` for a bare name."""
    head, slash, _ = str(path).rstrip("/").rpartition("/")
    return head or slash or "."


def exists(path):
    if is_remote(path):
        fs, name = filesystem(path)
        return fs.exists(name)
    return Path(path).exists()


def size_of(path):
    """Bytes of a file. Raises FileNotFoundError (or another OSError)."""
    if is_remote(path):
        fs, name = filesystem(path)
        return fs.size(name)
    return Path(path).stat().st_size


def version_of(path):
    """Something that changes when the file does: size and time of a local file, size and tag of a remote one."""
    if is_remote(path):
        fs, name = filesystem(path)
        info = fs.info(name)
        return f"{info['size']}-{info.get('ETag') or info.get('LastModified') or info.get('mtime')}"
    stat = Path(path).stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def make_folder(path):
    if is_remote(path):
        fs, name = filesystem(path)
        fs.makedirs(name, exist_ok=True)
    else:
        Path(path).mkdir(parents=True, exist_ok=True)


def list_folder(path):
    """Names (not paths) in a folder; nothing if the folder is missing."""
    if is_remote(path):
        fs, name = filesystem(path)
        try:
            return sorted(base_name(entry) for entry in fs.ls(name, detail=False, refresh=True))
        except FileNotFoundError:
            return []
    folder = Path(path)
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def remove(path):
    if is_remote(path):
        fs, name = filesystem(path)
        fs.rm_file(name)
    else:
        Path(path).unlink(missing_ok=True)


def write_whole(path, data):
    """Write bytes so that `path` either keeps what it was or holds all of `data`, even if the machine stops."""
    if is_remote(path):
        fs, name = filesystem(path)
        fs.pipe_file(name, data)  # object stores show an object only when it is complete
        return
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with Path(temporary).open("wb") as file:
            file.write(data)
            sync(file)
        rename(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync(file):
    file.flush()
    os.fsync(file.fileno())


def rename(temporary, path):
    """Rename and make the new name last: without the folder's fsync a power cut may forget it."""
    Path(temporary).replace(path)
    descriptor = os.open(folder_of(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
