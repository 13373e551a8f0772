"""Walking a folder of input, local or remote: a folder at a time, in the order of names."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from sd.data.packing.sources.inputs import input_error
from sd.data.parts import storage
from sd.errors import InputError


@dataclass(frozen=True)
class Listed:
    """Names of the files of one folder, sorted; `start` and `share` place it in the whole walk (0 to 1)."""

    folder: str  # below the root, "" for the root, else with a slash at its end
    names: list[str]
    start: float
    share: float


def walk(root: str) -> Iterator[Listed]:
    """Every folder below `root`, depth first, its own files before its sub-folders; hidden names are left out.

    Links to folders are followed, but not into a folder that holds the link. In memory are the names of the folders on
    the way, no more. Raises InputError for a root that is no folder.
    """
    list_one = _list_remote if storage.is_remote(root) else _list_local
    try:
        content = list_one(root)
    except OSError as error:
        raise input_error(root, error.strerror or str(error)) from error
    yield from _walk(root, "", content, list_one, 0.0, 1.0, (_identity(root),))


def top_folders(root: str) -> list[str]:
    """Names of the folders right below `root`, sorted; none where there is no such folder."""
    try:
        return (_list_remote if storage.is_remote(root) else _list_local)(root)[1]
    except OSError:
        return []


def _walk(root, folder, content, list_one, start, share, above):
    names, folders = content
    piece = share / max(1, len(folders) + bool(names))
    if names:
        yield Listed(folder, names, start, piece)
        start += piece
    for name in folders:
        path = storage.join(root, folder + name)
        identity = _identity(path)
        if identity not in above:
            try:
                inside = list_one(path)
            except OSError as error:
                raise InputError(f"{path}: {error.strerror or error}; make it readable, or move it away") from error
            yield from _walk(root, f"{folder}{name}/", inside, list_one, start, piece, (*above, identity))
        start += piece


def _identity(path):
    return path if storage.is_remote(path) else os.path.realpath(path)


def is_hidden(name: str) -> bool:
    """Whether a system hides a file or folder of the name, such as macOS's `._00000.tar`."""
    return name.startswith(".")


def _list_local(path):
    names, folders = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if not is_hidden(entry.name):
                (folders if _is_folder(entry) else names).append(entry.name)
    return sorted(names), sorted(folders)


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link to itself is a file that cannot be read
            raise
        return False


def _list_remote(path):
    fs, name = storage.filesystem(path)
    names, folders = [], []
    for entry in fs.ls(name, detail=True):
        base = storage.base_name(entry["name"])
        if not is_hidden(base) and entry["name"].rstrip("/") != name.rstrip("/"):
            (folders if entry["type"] == "directory" else names).append(base)
    return sorted(names), sorted(folders)
