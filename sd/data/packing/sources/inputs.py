"""What the kinds of input have in common: finding the files, and text by key."""

import posixpath
import re
from itertools import product
from pathlib import Path
from typing import BinaryIO

from sd.data.packing.outcomes import BadRow, NotDownloaded
from sd.data.parts import storage
from sd.errors import InputError

_BRACES = re.compile(r"\{([^{}]*[,.][^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_NAMES = 1_000_000


def input_error(path: str, reason: str, label: str = "--input_path ") -> InputError:
    """An InputError about the whole input; where nothing is there, with what may be meant. label: stands before it."""
    advice = ""
    if not storage.is_remote(path) and not Path(path).exists():
        if "coco_data" in Path(path).parts:
            advice = (
                "; coco_data stands beside PaddleMIX's example and shows the format by five lines: copy it here, or "
                "name a JSONL of your own (docs/data.md)"
            )
        elif near := storage.near_path(path):
            advice = f"; did you mean {near}?"
    return InputError(f"{label}{path}: {reason}{advice}")


def find_inputs(path: str, suffix: str, label: str = "--input_path ") -> list[str]:
    """The files that `path` names, sorted: one file, all `suffix` files below a folder, a glob, or names in braces.

    Of `{000..999}.tar` every name is returned, whether it is there or not. label: stands before the path in errors.
    Raises InputError where nothing is.
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
        return _visible(Path(path).rglob(f"*{suffix}"))
    pattern = Path(path)
    anchor = Path(pattern.anchor)
    return _visible(anchor.glob(str(pattern.relative_to(anchor))))


def _visible(files):
    """Files without those that a system hides, such as macOS's `._00000.tar`."""
    return sorted(str(file) for file in files if file.is_file() and not file.name.startswith("."))


def _find_remote(path, suffix):
    fs, name = storage.filesystem(path)
    protocol = path.partition("://")[0]
    if any(character in name for character in "*?["):
        names = fs.glob(name)
    elif fs.isfile(name):
        names = [name]
    else:
        names = [file for file in fs.find(name) if file.endswith(suffix)]
    return sorted(f"{protocol}://{file}" for file in names if not storage.base_name(file).startswith("."))


def text_of(fields: dict, key: str) -> str:
    """The text under `key` of a JSON object. Raises BadRow."""
    if not isinstance(fields, dict):
        raise BadRow("not a JSON object", type(fields).__name__)
    if key not in fields:
        raise BadRow(f"no key {key!r}", f"keys: {', '.join(map(str, fields))}")
    if not isinstance(fields[key], str):
        raise BadRow(f"{key!r} is not text", repr(fields[key]))
    return fields[key]


def raise_if_not_downloaded(fields: dict) -> None:
    """Raise NotDownloaded for the fields of a row without an image, if img2dataset's say that it could not get it."""
    status = fields.get("status")
    if isinstance(status, str) and status != "success":
        raise NotDownloaded(status, str(fields.get("error_message") or ""))


def refuse_utf16(file: BinaryIO, path: str) -> None:
    """Raise InputError for a file in UTF-16, which cannot be split into lines bytewise."""
    head = file.read(4)
    file.seek(0)
    suffix = posixpath.splitext(path)[1]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        raise InputError(f"{path}: UTF-16, expected UTF-8; convert it: iconv -f UTF-16 -t UTF-8 {path} > utf8{suffix}")
