"""File lists: `.filelist` names parts, `.filelist.list` names those lists, each with an optional weight."""

from collections import Counter
from dataclasses import dataclass, field
from functools import reduce
from math import gcd, isfinite

from sd.data.parts import storage
from sd.errors import InputError

_MAX_LIST_BYTES = 1 << 30


@dataclass(frozen=True)
class Source:
    """The parts of one `.filelist` (`name`, as the list of lists has it), in its order, and its weight."""

    weight: float
    parts: list[str]
    name: str = field(default="", compare=False)


def read_file_list(path):
    """Read a `.filelist.list` into Sources.

    The packer repeats the whole list `num_repeat` times because the reference reads it so; here a pass is each record
    once, so repeats that all parts share are divided out. Paths are taken from the current folder, as they stand.
    Raises InputError for a list that is missing, empty, or names an empty list.
    """
    entries = [_split_weight(line, path) for line in _lines(path)]
    if not entries:
        raise InputError(f"{path}: the file list is empty; it needs one .filelist path a line")
    sources = [Source(weight, _divide_repeats(_lines(name, path)), name) for name, weight in entries]
    for source, (name, _) in zip(sources, entries, strict=True):
        if not source.parts:
            raise InputError(f"{name}: names no part; pack again or take it out of {path}")
    return sources


def write_file_lists(folder, output_name, parts, num_repeat):
    """Write `<output_name>.filelist` and `.filelist.list` and return the path of the latter."""
    part_list = storage.join(folder, f"{output_name}.filelist")
    list_of_lists = part_list + ".list"
    once = "".join(f"{part}\n" for part in parts).encode()
    with storage.NewFile(part_list) as file:
        for _ in range(num_repeat):
            file.write(once)
    storage.write_whole(list_of_lists, f"{part_list}\n".encode())
    return list_of_lists


def _lines(path, named_in=None):
    where = f" (named in {named_in}; relative paths start at the current folder)" if named_in else ""
    try:
        if storage.size_of(path) > _MAX_LIST_BYTES:
            raise InputError(f"{path}: too large for a list of paths{where}")
        text = storage.read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file{where}; --file_list takes a .filelist.list") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}{where}; create_pretraining_data.py makes it") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _split_weight(line, path):
    head, _, tail = line.rpartition(" ")
    try:
        weight = float(tail)
    except ValueError:
        return line, 1.0
    if not head:
        return line, 1.0
    if not (isfinite(weight) and weight > 0):
        raise InputError(f"{path}: weight {tail} of {head.strip()}; it must be above 0")
    return head.strip(), weight


def _divide_repeats(parts):
    counts = Counter(parts)
    divisor = reduce(gcd, counts.values(), 0)
    return [part for part, count in counts.items() for _ in range(count // divisor)]
