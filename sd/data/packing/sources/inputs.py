"""What the kinds of input have in common: errors about the whole, and text by key."""

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from sd.data.packing.outcomes import BadRow, NotDownloaded
from sd.data.parts import storage
from sd.errors import InputError, one_line

_COMPRESSED = {  # whole signatures: a tar begins with a name, which may be that of BZhang or PKU
    "gzip": rb"\x1f\x8b",
    "bzip2": rb"BZh[1-9]1AY&SY",
    "xz": rb"\xfd7zXZ\0",
    "zstd": rb"\x28\xb5\x2f\xfd",
    "zip": rb"PK\x03\x04",
}


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


def list_names(names: Iterable[str]) -> str:
    """The names of a table's columns for a message, which may be bytes of anything: printable, about 200 characters."""
    return one_line(", ".join(name if name.isprintable() else repr(name) for name in names))


def compression_of(head: bytes) -> str:
    """What a file that begins with these bytes is compressed with, "" for none that is known."""
    return next((kind for kind, magic in _COMPRESSED.items() if re.match(magic, head)), "")


def refuse_other_than_lines(file: BinaryIO, path: str) -> None:
    """Raise InputError for a file that cannot be split into lines bytewise: compressed, or in UTF-16 or UTF-32."""
    head = file.read(16)
    file.seek(0)
    if kind := compression_of(head):
        workbook = ", or if it is a workbook, save its table as CSV" if kind == "zip" else ""
        raise InputError(f"{path}: compressed with {kind}, expected text; unpack it{workbook}")
    suffix = posixpath.splitext(path)[1]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:4]:
        encoding = "UTF-32" if head.startswith((b"\xff\xfe\0\0", b"\0\0")) else "UTF-16"
        raise InputError(
            f"{path}: {encoding}, expected UTF-8; convert it: iconv -f {encoding} -t UTF-8 {path} > utf8{suffix}"
        )
