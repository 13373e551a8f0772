"""Columns of a data set that is packed: join scores that were computed later, or write the columns to one table.

`python -m sd.data.columns add SCORES --key url LIST` and `python -m sd.data.columns export LIST OUT.parquet`.
"""

import sys

if __name__ == "__main__":  # before the imports, so that a wrong Python gets one line
    from sd.entry import columns

    columns()
    sys.exit()

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from sd.data.filters.rows import SIZES, add_types
from sd.data.parts import storage
from sd.data.parts.columns import (
    FLOAT,
    INT,
    TEXT,
    Column,
    ColumnsFile,
    column_types,
    merge_columns,
    read_columns,
)
from sd.data.parts.filelist import read_file_list
from sd.data.parts.index import PartError, PartHeader
from sd.data.parts.part import load_header, load_index
from sd.data.scores import Scores, check_kinds, read_scores
from sd.errors import InputError, RunError
from sd.flags.arguments import check_file
from sd.flags.options import REQUIRED, add_flags, option
from sd.flags.parser import Parser
from sd.home import ensure_writable_home
from sd.processes.locks import locked_folder

PART, ROW = "part", "row"  # names that a key may have without a column: the part's file name, the row from 1
_RESUMES = "the same command resumes from the finished parts"
_THREADS = 8  # a part waits for the disk most of the time


@dataclass
class Outcome:
    """What became of the rows of a part, or of all."""

    rows: int = 0
    matched: int = 0
    without_key: int = 0
    done_before: int = 0  # of a part that has the columns from the same table already

    def add(self, other: "Outcome") -> None:
        for name in ("rows", "matched", "without_key", "done_before"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def without_match(self) -> int:
        return self.rows - self.matched - self.without_key - self.done_before


def parts_of(file_list: str) -> list[str]:
    """The parts of a file list, each once. Raises InputError."""
    return list(dict.fromkeys(part for source in read_file_list(file_list) for part in source.parts))


def add_scores(file_list: str, scores: Scores, key: Sequence[str], overwrite: bool = False) -> Outcome:
    """Join the columns of a table to every part of a list; each part's file is replaced as a whole.

    A run that was stopped resumes: parts that have the columns from the same table are passed over. Raises InputError
    where a part lacks the key, or has a column of that name from elsewhere (unless `overwrite`), or no row matches;
    RunError for a part that cannot be read or written.
    """
    paths, total, unmatched = parts_of(file_list), Outcome(), []
    for name in scores.columns:
        if name in (*SIZES, PART, ROW):
            raise InputError(f"column {name!r}: every part has that by itself; rename it in the table")
    with ExitStack() as stack:
        for folder in sorted({storage.folder_of(path) for path in paths if not storage.is_remote(path)}):
            try:
                stack.enter_context(locked_folder(folder))
            except OSError as error:
                raise InputError(
                    f"{folder}: {error.strerror or error}; columns lie beside the parts, so name a list "
                    "of parts that are there, in a folder that can be written"
                ) from error
        headers = [_header(path) for path in tqdm(paths, desc="looking", unit=" parts", leave=False)]
        for header in headers:
            _check(header, scores, key, overwrite)
        pool = stack.enter_context(ThreadPoolExecutor(_THREADS))
        stack.callback(pool.shutdown, cancel_futures=True)  # Ctrl-C waits for the parts in hand, not for all
        done = pool.map(lambda header: _add(header, scores, key), headers)
        for header, outcome in zip(headers, tqdm(done, "joining", len(paths), leave=False), strict=True):
            total.add(outcome)
            if not outcome.matched and not outcome.done_before:
                unmatched.append(header)
        if total.matched or total.done_before:  # else it is the wrong key, and every part stays as it is
            list(pool.map(lambda header: _write(header, scores, np.full(header.num_rows, -1)), unmatched))
    return total


def _header(path):
    try:
        return load_header(path)
    except PartError as error:
        raise RunError(f"{path}: {error}") from error


def _check(header: PartHeader, scores: Scores, key, overwrite):
    """Refuse a part before any is written."""
    try:
        types, origins = _types(header)
    except PartError as error:
        raise RunError(f"{storage.folder_of(header.path)}: {error}") from error
    for name in key:
        if name not in types and name not in (PART, ROW):
            have = ", ".join(types) or "none; pack with --keep_columns"
            raise InputError(f"{header.path}: no column {name!r} to join by; it has {have}; or give --key part,row")
    if overwrite:
        return
    for name in scores.columns:
        if name in types and origins[name] != scores.fingerprint:
            raise InputError(f"{header.path}: column {name!r} is there already; --overwrite replaces it")


def _types(header):
    try:
        with ColumnsFile(header) as file:
            return file.types, file.origins
    except FileNotFoundError:
        return {}, {}


def _add(header, scores, key):
    try:
        _, origins = _types(header)
        if all(origins.get(name) == scores.fingerprint for name in scores.columns):
            return Outcome(header.num_rows, done_before=header.num_rows)
        columns = _key_columns(header, key)
        check_kinds(scores, key, columns, header.path)
        table_rows = scores.look_up(columns, header.num_rows)
        without = np.zeros(header.num_rows, bool)
        for column in columns:
            without |= ~column.to_arrow().is_valid().to_numpy(zero_copy_only=False)
    except (PartError, OSError) as error:
        raise RunError(f"{header.path}: {error}; {_RESUMES}") from error
    if (table_rows >= 0).any():
        _write(header, scores, table_rows)
    return Outcome(header.num_rows, int(np.count_nonzero(table_rows >= 0)), int(np.count_nonzero(without)))


def _write(header, scores, table_rows):
    try:
        merge_columns(header, {name: scores.take(name, table_rows) for name in scores.columns})
    except OSError as error:
        raise RunError(f"{header.path}: {error}; {_RESUMES}") from error


def _key_columns(header, key) -> list[Column]:
    own = read_columns(header, key) or {}
    builtin_columns = {PART: _names, ROW: lambda header: Column(INT, np.arange(1, header.num_rows + 1))}
    return [own[name] if name in own else builtin_columns[name](header) for name in key]


def _names(header):
    import pyarrow as pa

    name = storage.base_name(header.path)
    return Column(TEXT, pa.array([name] * header.num_rows, pa.large_string()))


def export(file_list: str, output: str) -> int:
    """Write part, row, width, height and all columns of a list to one Parquet file. Returns the number of rows.

    A column is float64 where one part has whole numbers and another has not, text where they differ otherwise.
    """
    import pyarrow as pa
    from pyarrow import parquet

    headers = [_header(path) for path in parts_of(file_list)]
    types: dict[str, str] = {}
    for header in headers:
        for name, kind in column_types(header).items():
            add_types(types, {name: _common(types.get(name, kind), kind)})
    arrow = {FLOAT: pa.float64(), INT: pa.int64(), TEXT: pa.large_string(), "bool": pa.bool_()}
    fixed = {PART: pa.large_string(), ROW: pa.int64(), "width": pa.int64(), "height": pa.int64()}
    schema = pa.schema([*fixed.items(), *((name, arrow[kind]) for name, kind in types.items() if name not in fixed)])
    num_rows = 0
    with storage.AtomicFile(output) as file, parquet.ParquetWriter(file.file, schema) as writer:
        for header in tqdm(headers, unit=" parts", leave=False):
            index = load_index(header.path)
            own = {name: column.to_arrow() for name, column in (read_columns(header) or {}).items()}
            sizes = {"width": pa.array(index.widths), "height": pa.array(index.heights)}
            builtin_columns = {PART: _names(header).values, ROW: pa.array(np.arange(1, index.num_rows + 1))}
            values = {**builtin_columns, **sizes, **own}
            arrays = [_cast_or_null(values.get(field.name), field.type, index.num_rows) for field in schema]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            num_rows += index.num_rows
    return num_rows


def _common(one, other):
    return one if one == other else FLOAT if {one, other} == {INT, FLOAT} else TEXT


def _cast_or_null(array, kind, num_rows):
    import pyarrow as pa

    return pa.nulls(num_rows, kind) if array is None else array.cast(kind)


@dataclass(frozen=True)
class AddOptions:
    """The flags of `add`. Raises InputError for a key without a name."""

    scores: str = option(
        REQUIRED, "Parquet, CSV, TSV or JSONL; or a folder, glob or braces of one kind", positional=True
    )
    file_list: str = option(REQUIRED, "a .filelist.list of images or of a cache", positional=True)
    key: str = option(REQUIRED, "column of both by which rows are found; or part,row")
    columns: str | None = option(None, "names to take, separated by commas; default: all but the key")
    overwrite: bool = option(False, "replace columns of the same name")

    def __post_init__(self):
        if not _names_in(self.key):
            raise InputError(f"--key {self.key!r}; expected the name of a column, or several separated by commas")


@dataclass(frozen=True)
class ExportOptions:
    """The flags of `export`. Raises InputError for what is no name of a file."""

    file_list: str = option(REQUIRED, "a .filelist.list", positional=True)
    output: str = option(REQUIRED, "the Parquet file", positional=True)

    def __post_init__(self):
        check_file("output", self.output)


def _names_in(text):
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the flags, join or write."""
    parser = Parser(prog="python -m sd.data.columns", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    joining = commands.add_parser("add", help="join the columns of a table to the parts of a list, by a key")
    add_flags(joining, AddOptions)
    writing = commands.add_parser("export", help="write part, row, width, height and all columns to one Parquet file")
    add_flags(writing, ExportOptions)
    given = vars(parser.parse_args(arguments))
    ensure_writable_home(os.environ)
    if given.pop("command") == "export":
        _export(ExportOptions(**given))
    else:
        _join(AddOptions(**given))


def _export(options):
    try:
        print(f"{export(options.file_list, options.output)} rows in {options.output}")
    except (PartError, OSError) as error:
        raise RunError(f"{options.output}: {error}") from error


def _join(options):
    key = _names_in(options.key)
    scores = read_scores(options.scores, key, _names_in(options.columns) if options.columns else None)
    total = add_scores(options.file_list, scores, key, options.overwrite)
    for line in lines_of(total, scores, options):
        print(line)


def lines_of(total: Outcome, scores: Scores, options: AddOptions) -> list[str]:
    """What `add` prints. Raises InputError where no row matched."""
    if total.matched == 0 and total.done_before == 0:
        raise InputError(
            f"{options.file_list}: none of {total.rows} rows has a {options.key} that stands in {options.scores}; "
            "nothing was written; name another --key"
        )
    counts = [
        (total.matched, "matched"),
        (total.without_match, "without a match"),
        (total.without_key, "without a key"),
        (total.done_before, "of parts that were done already"),
    ]
    outcomes = ", ".join(f"{count} {outcome}" for count, outcome in counts if count)
    kinds = ", ".join(f"{name} ({column.type})" for name, column in scores.columns.items())
    lost = f"; {scores.num_without_key} rows of the table have no key" if scores.num_without_key else ""
    return [f"{options.file_list}: {kinds} added to {total.rows} rows: {outcomes}{lost}"]
