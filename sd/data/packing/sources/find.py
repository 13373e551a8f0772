"""Finding the files of an input by name, folder, glob or braces, local or remote."""

import re
from itertools import product
from pathlib import Path

from sd.data.packing.sources.inputs import input_error
from sd.data.packing.sources.walk import is_hidden, walk
from sd.data.parts import storage
from sd.errors import InputError

_BRACES = re.compile(r"\{([^{}]*[,.][^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_NAMES = 1_000_000


def find_inputs(path: str, suffix: str, label: str = "--input_path ") -> list[str]:
    """The files that `path` names, sorted: one file, all `suffix` files below a folder, a glob, or names in braces.

    A suffix may be in capitals; folders are walked as `walk` does it. Of `{000..999}.tar` every name is returned,
    whether it is there or not. label: stands before the path in errors. Raises InputError where nothing is.
    """
    find = _find_remote if storage.is_remote(path) else _find_local
    try:
        files = find(path, suffix)
        if not files and (names := expand_braces(path)) != [path]:
            lists = {name: find(name, suffix) for name in names}
            files = [file for name in names for file in lists[name] or [name]] if any(lists.values()) else []
    except OSError as error:
        raise input_error(path, error.strerror or str(error), label) from error
    if not files:
        others = f", nor a folder or glob with *{suffix} files" if suffix else ""
        raise input_error(path, f"no such file{others}", label)
    return files


def expand_braces(pattern: str) -> list[str]:
    """`{00..12}` and `{a,b}` in a name written out, as a shell does it. Raises InputError for a million names."""
    pieces = _BRACES.split(pattern)
    options = [[piece] if at % 2 == 0 else _expand_one(piece) for at, piece in enumerate(pieces)]
    count = 1
    for names in options:
        count *= len(names)
    if count > _MAX_NAMES:
        raise InputError(f"--input_path {pattern}: the braces stand for {count} names; expected at most {_MAX_NAMES}")
    return ["".join(names) for names in product(*options)]


def _expand_one(inside):
    if match := _RANGE.fullmatch(inside):
        first, last = match.groups()
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def _find_local(path, suffix):
    if Path(path).is_file():
        return [path]
    if Path(path).is_dir():
        files = (Path(path, listed.folder, name) for listed in walk(path) for name in listed.names)
        # A link to nothing stays, for the reader to report.
        return sorted(
            str(file) for file in files if _has_suffix(file.name, suffix) and (file.is_file() or file.is_symlink())
        )
    pattern = Path(path)
    anchor = Path(pattern.anchor)
    files = anchor.glob(str(pattern.relative_to(anchor)))
    return sorted(str(file) for file in files if file.is_file() and not is_hidden(file.name))


def _find_remote(path, suffix):
    fs, name = storage.filesystem(path)
    protocol = path.partition("://")[0]
    if fs.isfile(name):  # its name may hold what stands for others in a pattern
        names = [name]
    elif any(character in name for character in "*?[") and not fs.isdir(name):
        names = [file for file in fs.glob(name) if not is_hidden(storage.base_name(file))]
    else:
        names = [file for file in fs.find(name) if _has_suffix(file, suffix)]
        names = [file for file in names if not any(map(is_hidden, file.removeprefix(name).split("/")))]
    return sorted(f"{protocol}://{file}" for file in names)


def _has_suffix(name, suffix):
    return name.lower().endswith(suffix)
