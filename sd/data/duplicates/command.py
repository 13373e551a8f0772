"""Find duplicate pictures in a data set, and write the column `duplicate`.

Each group of equal or nearly equal pictures keeps its largest: the column is false for it and for what has no
duplicate, true for the others, and missing where the picture cannot be read.
"""

import os
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from sd.data.duplicates.bands import HASH_BITS, MAX_DISTANCE
from sd.data.duplicates.cache import FingerprintCache
from sd.data.duplicates.fingerprint import Fingerprints, fingerprint_part
from sd.data.duplicates.groups import find_groups
from sd.data.duplicates.sheet import choose_groups, draw_groups
from sd.data.parts import storage
from sd.data.parts.columns import BOOL, Column, merge_columns
from sd.data.parts.filelist import read_file_list
from sd.data.parts.index import PartError, PartHeader
from sd.data.parts.moments import KIND
from sd.data.parts.part import load_header, load_index
from sd.data.resumable import resumable
from sd.errors import ArgumentError, InputError, RunError
from sd.flags.arguments import ENGINES, check_engine, check_range, check_ranges
from sd.flags.options import REQUIRED, option, parse
from sd.home import ensure_writable_home
from sd.logs import bar_seconds
from sd.processes.pool import run_local
from sd.processes.ray_engine import run_on_ray
from sd.runtime import usable_cores

COLUMN = "duplicate"
DISTANCE = 8
_NAMED = 10


@dataclass(frozen=True)
class DuplicateOptions:
    """The flags of the command. Raises InputError for a value out of range."""

    file_list: str = option(REQUIRED, "a .filelist.list, as --file_list of training takes it", positional=True)
    max_distance: int = option(
        DISTANCE, f"bits of {HASH_BITS} in which the hashes of near duplicates may differ, 0 to {MAX_DISTANCE}"
    )
    num_workers: int | None = option(None, "processes on this machine (default: the cores)")
    engine: str = option("local", "this machine, or a Ray cluster", choices=ENGINES)
    ray_address: str | None = option(None, "address of the Ray cluster (default: start one here)")
    cache_dir: str | None = option(None, "where fingerprints are kept (default: sd_fingerprints in the user's cache)")
    output: str = option("duplicates.png", "the contact sheet of some groups")

    def __post_init__(self):
        check_range("max_distance", self.max_distance, low=0, high=MAX_DISTANCE)
        check_ranges(self, "num_workers", low=1)
        check_engine(self.engine, self.ray_address)
        if Path(self.output).suffix.lower() != ".png":
            raise ArgumentError("output", self.output, "; expected a name that ends in .png")


@dataclass
class Duplicates:
    """The result of a run: the parts in order, {part: why} of those that cannot be read, and for each row its group.

    starts: int64 [parts + 1], numbers of the parts' first rows. owner, exact: see `find_groups`.
    """

    parts: list[PartHeader]
    unreadable: dict[str, str]
    starts: np.ndarray
    prints: Fingerprints
    owner: np.ndarray
    exact: np.ndarray

    def position(self, row: int) -> tuple[str, int]:
        """(path of the part, number in it) of a row of the whole list."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[part].path, row - int(self.starts[part])


def list_parts(file_list: str) -> tuple[list[PartHeader], dict[str, str]]:
    """Headers of the list's parts, each once, and {part: why} of those without one. Raises InputError."""
    parts, unreadable = [], {}
    for path in dict.fromkeys(part for source in read_file_list(file_list) for part in source.parts):
        try:
            part = load_header(path)
        except PartError as error:
            unreadable[path] = str(error)
            continue
        if part.kind == KIND:
            raise InputError(f"{file_list} is a cache of latents; name the list of the images, and cache them again")
        parts.append(part)
    if not parts:
        raise InputError(f"{file_list}: none of its parts can be read; the first: {next(iter(unreadable.values()))}")
    return parts, unreadable


def _work(path: str) -> Fingerprints:
    """A task of a worker process or of Ray."""
    threadpool_limits(1)
    return fingerprint_part(load_index(path))


def read_fingerprints(parts: list[PartHeader], options: DuplicateOptions, unreadable: dict[str, str]) -> Fingerprints:
    """The Fingerprints of all rows, kept ones first; thumbnails in a temporary file of 768 bytes a row.

    A part that cannot be opened gives unreadable rows, and a line in `unreadable`.
    """
    starts = np.cumsum([0] + [part.num_rows for part in parts])
    total = int(starts[-1])
    cache = FingerprintCache(options.cache_dir)
    prints_of_all = replace(Fingerprints.empty(0), **_arrays(total)) if total else Fingerprints.empty(0)

    def store(number, prints):
        for name, array in prints.arrays().items():
            getattr(prints_of_all, name)[starts[number] : starts[number + 1]] = array

    todo = []
    for number, part in enumerate(parts):
        if (prints := cache.load(part)) is None:
            todo.append(number)
        else:
            store(number, prints)
    if len(todo) < len(parts):
        tqdm.write(f"{len(parts) - len(todo)} of {len(parts)} parts are known from an earlier run", sys.stderr)
    if todo:
        tasks = [parts[number].path for number in todo]
        if options.engine == "ray":
            results = run_on_ray(_try, tasks, options.ray_address)
        else:
            results = run_local(_try, tasks, options.num_workers or usable_cores())
        rows = int(sum(parts[number].num_rows for number in todo))
        bar = tqdm(desc="reading", unit=" images", total=rows, mininterval=bar_seconds())
        with closing(results), bar:
            for number, (prints, reason) in zip(todo, results, strict=True):
                bar.update(parts[number].num_rows)
                if prints is None:
                    unreadable[parts[number].path] = reason
                    continue
                store(number, prints)
                cache.save(parts[number], prints)
    return prints_of_all


def _try(path):
    try:
        return _work(path), ""
    except (PartError, OSError) as error:
        return None, str(error)


def _arrays(total):
    """Empty arrays of `total` rows; the thumbnails lie in a file without a name, which goes with the process."""
    arrays = Fingerprints.empty(0).arrays()
    empty = {
        name: np.zeros((total, *array.shape[1:]), array.dtype) for name, array in arrays.items() if name != "thumbs"
    }
    thumbs = arrays["thumbs"]
    with tempfile.TemporaryFile() as file:
        empty["thumbs"] = np.memmap(file, thumbs.dtype, "w+", shape=(total, *thumbs.shape[1:]))
    return empty


def find_duplicates(options: DuplicateOptions) -> Duplicates:
    """Fingerprints of all rows and their groups. Raises InputError, or RunError for a worker that was killed."""
    parts, unreadable = list_parts(options.file_list)
    prints = read_fingerprints(parts, options, unreadable)
    with tqdm(desc="grouping", unit=" images", total=len(prints), mininterval=bar_seconds()) as bar:
        owner, exact = find_groups(prints, options.max_distance, bar.update)
    starts = np.cumsum([0] + [part.num_rows for part in parts])
    return Duplicates(parts, unreadable, starts, prints, owner, exact)


def write_column(duplicates: Duplicates) -> None:
    """The column beside each part that can be read; each atomic. Raises OSError."""
    is_duplicate = duplicates.owner != np.arange(len(duplicates.owner))
    for part, start, end in zip(duplicates.parts, duplicates.starts, duplicates.starts[1:], strict=False):
        if part.path not in duplicates.unreadable:
            readable = duplicates.prints.readable[start:end]
            present = None if readable.all() else readable
            merge_columns(part, {COLUMN: Column(BOOL, is_duplicate[start:end], present)})


def report(duplicates: Duplicates) -> list[str]:
    """The lines that the command prints: outcomes that add up to the rows, and the largest groups."""
    joined = duplicates.owner != np.arange(len(duplicates.owner))
    heads, counts = np.unique(duplicates.owner[joined], return_counts=True)
    num_exact = int(np.count_nonzero(joined & duplicates.exact))
    num_bad = int(np.count_nonzero(~duplicates.prints.readable))
    num_rows, num_joined = len(joined), int(np.count_nonzero(joined))
    lines = [
        f"{num_rows} rows in {len(duplicates.parts)} parts: {num_rows - num_joined - num_bad} kept, {num_joined} "
        f"duplicates ({num_exact} of equal files, {num_joined - num_exact} near), {num_bad} unreadable",
        f"groups of duplicates: {len(heads)}",
    ]
    for group in np.lexsort((heads, -counts))[:_NAMED]:
        path, row = duplicates.position(int(heads[group]))
        lines.append(f"    {counts[group] + 1} rows, kept: {storage.base_name(path)} row {row + 1}")
    lines += [f"    and {len(heads) - _NAMED} smaller or equal ones"] * (len(heads) > _NAMED)
    bad = list(duplicates.unreadable.values())
    lines += [f"no column: {reason}" for reason in bad[:_NAMED]]
    lines += [f"    and {len(bad) - _NAMED} more"] * (len(bad) > _NAMED)
    return lines


def contact_sheet(duplicates: Duplicates, path: str) -> None:
    """Draw some groups. Raises RunError where the file cannot be written."""
    groups = []
    for rows in choose_groups(duplicates.owner, duplicates.exact):
        head = duplicates.prints.hashes[rows[0]]
        texts = [
            f"kept, one of {len(rows)}"
            if row == rows[0]
            else "equal file"
            if duplicates.exact[row]
            else f"near, {int(head ^ duplicates.prints.hashes[row]).bit_count()} bits"
            for row in rows.tolist()
        ]
        groups.append([(*duplicates.position(row), text) for row, text in zip(rows.tolist(), texts, strict=True)])
    try:
        draw_groups(groups).save(path, "PNG")
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error


def parse_arguments(arguments: list[str] | None = None) -> DuplicateOptions:
    """The flags."""
    description = (__doc__ or "").split("\n\n")[0]
    return parse(DuplicateOptions, arguments, prog="python -m sd.data.duplicates", description=description)


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, find the groups, write the columns, print the report, draw the sheet."""
    options = parse_arguments(arguments)
    ensure_writable_home(os.environ)
    with resumable(options.file_list, "the parts that were read") as raise_if_stopped:
        duplicates = find_duplicates(options)
        raise_if_stopped()
        write_column(duplicates)
    print("\n".join(report(duplicates)))
    if (duplicates.owner != np.arange(len(duplicates.owner))).any():
        contact_sheet(duplicates, options.output)
        print(f"contact sheet: {options.output}")
    print(f'train without them: --file_list {options.file_list} --data_filter "not {COLUMN}"')
