"""File lists: `.filelist` names parts, `.filelist.list` names those lists, each with an optional weight and filter."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from math import gcd, isfinite
from pathlib import Path

from sd.data.parts import storage
from sd.data.parts.index import SUFFIX
from sd.errors import InputError, one_line
from sd.text import TextError, text_lines

_MAX_LIST_BYTES = 1 << 30
_DEMO_LIST = "data/filelist/train.filelist.list"  # the default of --file_list, as in PaddleMIX
_WHERE_KEYWORD = re.compile(r"\s+where(?=\s|$)")
_PROBED = 3  # paths of a list that are looked for: one missing part is no moved folder


@dataclass(frozen=True)
class Source:
    """The parts of one `.filelist` (`name`, as the list of lists has it), in its order, its weight and its filter."""

    weight: float
    parts: list[str]
    name: str = field(default="", compare=False)
    filter: str | None = None


def read_file_list(path: str | Path) -> list[Source]:
    """Read a `.filelist.list` into Sources.

    The packer repeats the whole list `num_repeat` times because the reference reads it so; here a pass is each record
    once, so repeats that all parts share are divided out. Paths are taken from the current folder, as they stand; where
    nothing is there, by the list's own place, so that a folder that was moved, or is used from elsewhere, is read.
    A line is `path`, `path weight`, `path where EXPRESSION` or `path weight where EXPRESSION`.
    Raises InputError for a list that is missing, empty, or names an empty list.
    """
    entries = [_split_entry(line, path) for line in _lines(path)]
    if not entries:
        raise InputError(f"{path}: the file list is empty; it needs one .filelist path a line")
    _check_entry(entries[0][0], path)
    sources = []
    for name, (_, weight, chosen) in zip(_resolve_paths([entry[0] for entry in entries], path), entries, strict=True):
        parts = _resolve_paths(_divide_repeats(_lines(name, path)), name)
        if not parts:
            raise InputError(f"{name}: names no part; pack again or take it out of {path}")
        sources.append(Source(weight, parts, name, chosen))
    return sources


def _check_entry(name, path):
    """Raise InputError for a file that is no list of lists, by its first entry."""
    if name.startswith("{"):
        raise InputError(
            f"{path}: holds JSON, not paths; pack it (create_pretraining_data.py --input_path {path}), and name the "
            "list that this writes"
        )
    names_parts = False
    with suppress(OSError):  # a name that no file can have
        names_parts = not name.endswith(".filelist") and storage.exists(_resolve_paths([name], path)[0] + SUFFIX)
    if names_parts:
        raise InputError(f"{path}: names parts, so it is one .filelist; {_list_of_lists(path)}")


def _list_of_lists(path):
    whole = f"{path}.list"
    return f"name {whole}" if storage.exists(whole) else "name the .filelist.list, which has its path on a line"


def file_list_path(folder: str | Path, output_name: str) -> str:
    """The path of the `.filelist.list` of an output."""
    return storage.join(folder, f"{output_name}.filelist.list")


def check_replaceable(file_list: str, part_folder: str) -> None:
    """Raise InputError where a `.filelist.list` of the name is there and its parts lie in a folder of another name than
    `part_folder`: images where a cache is made, or a cache where images are packed."""
    try:
        firsts = [source.parts[0] for source in read_file_list(file_list)]
    except InputError:  # no list, or one that names nothing
        return
    for part in firsts:
        if storage.base_name(storage.folder_of(part)) != storage.base_name(part_folder):
            raise InputError(
                f"{file_list}: names other data ({part}) and would be replaced; take another --output_path or "
                "--output_name"
            )


def write_file_lists(folder: str | Path, output_name: str, parts: Sequence[str], num_repeat: int) -> str:
    """Write `<output_name>.filelist` and `.filelist.list` and return the path of the latter."""
    part_list = storage.join(folder, f"{output_name}.filelist")
    once = "".join(f"{part}\n" for part in parts).encode()
    with storage.AtomicFile(part_list) as file:
        for _ in range(num_repeat):
            file.write(once)
    storage.write_atomic(whole := file_list_path(folder, output_name), f"{part_list}\n".encode())
    return whole


def _resolve_paths(names, named_in):
    """The paths of a list as they stand if one of the first is there; else beside the list, if one of them is there.

    Beside: relative to its folder, or with the same last folder as in `out/filelist` and `out/laion400m_format_data`.
    """
    folder = storage.folder_of(named_in)

    def in_list_folder(name):
        return storage.join(folder, name)

    def in_sibling_folder(name):
        above = storage.folder_of(folder) if storage.is_remote(folder) else os.path.normpath(f"{folder}/..")
        return storage.join(above, "/".join(name.split("/")[-2:]))

    for resolve in (str, in_list_folder, in_sibling_folder):
        with suppress(OSError):  # a name that no file can have
            if any(storage.exists(resolve(name)) for name in names[:_PROBED]):
                return [resolve(name) for name in names]
    return names


def _lines(path, named_in=None):
    hint = f" (named in {named_in}; relative paths start at the current folder or beside it)" if named_in else ""
    try:
        if storage.size_of(path) > _MAX_LIST_BYTES:
            raise InputError(f"{path}: too large for a list of paths{hint}")
        lines = text_lines(storage.read_bytes(path))
    except TextError as error:
        remedy = _list_of_lists(named_in) if named_in else "--file_list takes a .filelist.list"
        raise InputError(f"{path}: not a text file{hint}; {remedy}") from error
    except OSError as error:
        problem = f"{one_line(str(path))}: {error.strerror or error}{hint}"
        raise InputError(f"{problem}; {_remedy(path, named_in, error)}") from error
    return [line.strip() for line in lines if line.strip()]


def _remedy(path, named_in, error):
    """What to do about a list that cannot be read, by what it is."""
    if named_in:
        no_list = "" if str(named_in).endswith(".list") else " (a file list? they end in .filelist.list)"
        return f"correct that line of {named_in}{no_list}, or pack again"
    if isinstance(error, IsADirectoryError):
        lists = [name for name in storage.list_folder(f"{path}/filelist") if name.endswith(".filelist.list")]
        list_name = f"{path}/filelist/{lists[0]}" if lists else "the .filelist.list that packing or caching wrote"
        return f"name a file list, here {list_name}" if lists else f"name {list_name}"
    if str(path).endswith(_DEMO_LIST):
        return (
            "that is the list of PaddleMIX's laion400m_demo_data.tar.gz, which does not come with this toolkit: unpack "
            "it here, or pack data of your own with create_pretraining_data.py and name its list with --file_list"
        )
    if not isinstance(error, FileNotFoundError):
        return "make it readable, or name another --file_list"
    if near := "" if storage.is_remote(path) else storage.near_path(path):
        return f"did you mean {near}?"
    return "create_pretraining_data.py and precompute_latents.py end with the name of the list that they wrote"


def list_entry(path: str, weight: float = 1.0, chosen: str | None = None) -> str:
    """A line of a `.filelist.list`, without its newline."""
    return path + ("" if weight == 1 else f" {weight!r}") + (f" where {chosen}" if chosen else "")


def _split_entry(line, path):
    """(path, weight, filter or None) of a line of a `.filelist.list`."""
    match = _WHERE_KEYWORD.search(line)
    if match is None or storage.exists(line) or storage.exists(_split_weight(line, path)[0]):
        return *_split_weight(line, path), None
    return *_split_weight(line[: match.start()].strip(), path), line[match.end() :].strip()


def _split_weight(line, path):
    head, *rest = line.rsplit(maxsplit=1)  # by blanks or tabs
    try:
        weight = float(rest[0])
    except (IndexError, ValueError):
        return line, 1.0
    if not (isfinite(weight) and weight > 0):
        raise InputError(f"{path}: weight {rest[0]} of {head}; it must be above 0")
    return head, weight


def _divide_repeats(parts):
    counts = Counter(parts)
    divisor = reduce(gcd, counts.values(), 0)
    return [part for part, count in counts.items() for _ in range(count // divisor)]
