"""Tables of scores that were computed elsewhere, found by a key: what `python -m sd.data.columns add` joins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from sd.data.packing.sources.find import find_inputs
from sd.data.packing.sources.inputs import list_names, refuse_other_than_lines
from sd.data.parts import storage
from sd.data.parts.columns import FLOAT, INT, TEXT, Column, check_name, from_arrow
from sd.errors import InputError, first_line

_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
_BETWEEN = "\x1f"  # the values of a key of several columns
_EXACT = 2**53  # from here on a float64 stands for several whole numbers


@dataclass(frozen=True)
class Scores:
    """Columns of a table by key. keys: sorted uint64 hashes; rows: the table's row of each; kinds: types of the key's
    columns; columns: name -> Column of the whole table; num_without_key: rows that nothing can be found by."""

    keys: np.ndarray
    rows: np.ndarray
    kinds: tuple[str, ...]
    columns: dict[str, Column]
    num_without_key: int
    fingerprint: str

    def look_up(self, key: Sequence[Column], num_rows: int) -> np.ndarray:
        """The table's row for each row of a part by the part's own key columns; -1 where there is none. int64 [n]."""
        table_rows = np.full(num_rows, -1, np.int64)
        hashes, present = hash_keys(key)
        if len(self.keys):
            at = np.minimum(np.searchsorted(self.keys, hashes), len(self.keys) - 1)
            hit = present & (self.keys[at] == hashes)
            table_rows[hit] = self.rows[at[hit]]
        return table_rows

    def take(self, name: str, rows: np.ndarray) -> Column:
        """A column of the table at the rows that `look_up` gave, missing at -1."""
        import pyarrow as pa

        column, matched = self.columns[name], rows >= 0
        if column.type == TEXT:
            return Column(TEXT, column.values.take(pa.array(rows, mask=~matched)), None, self.fingerprint)
        at = np.maximum(rows, 0)  # a table has rows
        present = matched if column.present is None else matched & column.present[at]
        return Column(column.type, column.values[at], present, self.fingerprint)


def read_scores(path: str, key: Sequence[str], selected: Sequence[str] | None) -> Scores:
    """The Scores in a Parquet, CSV, TSV or JSONL file, or several by folder, glob or braces.

    selected: names of the columns to take, None for all but the key. Raises InputError for a table that cannot be read,
    a column that it lacks or whose values are of no type for a column, and for a key with different values.
    """
    files = _find(path)
    table = _read_table(files, key, selected)
    if not table.num_rows:
        raise InputError(f"{path}: no row in it")
    names = [name for name in table.column_names if name not in key]
    if not names:
        raise InputError(f"{path}: no column beside the key {', '.join(key)}")
    for name in names:
        try:
            check_name(name)
        except ValueError as error:
            raise InputError(f"{path}: {error}; name it, or take others by --columns") from None
    columns = {name: _column(table, name, path) for name in (*key, *names)}
    hashes, present = hash_keys([columns[name] for name in key])
    rows = np.flatnonzero(present)
    order = rows[np.argsort(hashes[rows], kind="stable")]
    keys = hashes[order]
    repeated = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    _check_repeated(path, table, key, names, order, repeated)
    chosen = np.ones(len(order), bool)
    chosen[repeated] = False
    digest = xxhash.xxh3_64()
    for file in files:
        digest.update(f"{storage.base_name(file)} {storage.version_of(file)} {key}\n".encode())
    kinds = tuple(columns[name].type for name in key)
    values = {name: columns[name] for name in names}
    return Scores(keys[chosen], order[chosen], kinds, values, table.num_rows - len(rows), digest.hexdigest())


def hash_keys(key: Sequence[Column]) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [n] that stand for the keys, bool [n] where every column of the key has a value).

    Whole numbers stand for themselves, in a column of float64 too, as pandas has them where some are missing; of texts,
    and of several columns, the 64 bits of XXH3 do.
    """
    if len(key) == 1 and key[0].type == INT:
        values = key[0].values.view(np.uint64)
        present = key[0].present
        return values, np.ones(len(values), bool) if present is None else present
    texts = [[_key_text(value) for value in column.to_arrow().to_pylist()] for column in key]
    joined: list = texts[0] if len(texts) == 1 else [_joined(values) for values in zip(*texts, strict=True)]
    present = np.array([text is not None for text in joined], bool)
    hashes = (xxhash.xxh3_64_intdigest((text or "").encode()) for text in joined)
    numbers = np.fromiter(hashes, np.uint64, len(joined))
    if len(key) == 1 and key[0].type == FLOAT:
        whole = present & (np.abs(key[0].values) < _EXACT) & (key[0].values == np.floor(key[0].values))
        numbers[whole] = key[0].values[whole].astype(np.int64).view(np.uint64)
    return numbers, present


def _key_text(value):
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    return None if value is None else str(value)


def _joined(values):
    return None if None in values else _BETWEEN.join(values)


def _find(path):
    if storage.base_name(path).lower().endswith(_SUFFIXES) and not any(character in path for character in "*?[{"):
        return find_inputs(path, "", label="")
    for suffix in _SUFFIXES:
        try:
            return find_inputs(path, suffix)
        except InputError:
            continue
    raise InputError(f"{path}: no such table; expected {', '.join(_SUFFIXES)}, a folder or a glob of them")


def _read_table(files, key, names) -> Any:
    import pyarrow as pa

    tables = []
    for file in files:
        try:
            with storage.open_binary(file) as opened:
                tables.append(_select_columns(_read_one(file, opened), file, key, names))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file}: cannot be read as a table: {first_line(error)}") from error
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"{files[0]} and others: their columns differ in type: {first_line(error)}") from error


def _read_one(file, opened):
    from pyarrow import csv, json, parquet

    kind = storage.base_name(file).rpartition(".")[2].lower()
    if kind == "parquet":
        return parquet.read_table(opened)
    refuse_other_than_lines(opened, file)
    if kind == "jsonl":
        return json.read_json(opened)
    options = csv.ParseOptions(delimiter="\t" if kind == "tsv" else ",", newlines_in_values=True)
    return csv.read_csv(opened, parse_options=options, convert_options=csv.ConvertOptions(strings_can_be_null=True))


def _select_columns(table, file, key, names):
    for name in (*key, *(table.column_names if names is None else names)):
        if (count := table.column_names.count(name)) != 1:
            number = "several columns" if count else "no column"
            raise InputError(f"{file}: {number} {name!r}; it has {list_names(table.column_names)}")
    return table.select(list(dict.fromkeys((*key, *names)))) if names is not None else table


def _column(table, name, path):
    try:
        return from_arrow(table[name])
    except ValueError as error:
        raise InputError(f"{path}: column {name!r} is {error}; take others by --columns") from None


def _check_repeated(path, table, key, names, order, repeated):
    """Rows of one key are one row where their values are the same, else an InputError names the key."""
    import pyarrow as pa

    if not len(repeated):
        return
    one, other = (table.take(pa.array(order[at])) for at in (repeated - 1, repeated))
    for number in range(len(repeated)):
        if any(_value(one[name][number]) != _value(other[name][number]) for name in (*key, *names)):
            key_text = ", ".join(f"{name} {one[name][number].as_py()!r}" for name in key)
            raise InputError(
                f"{path}: {key_text} stands in rows {order[repeated[number] - 1] + 1}"
                f" and {order[repeated[number]] + 1} with different values; leave one row a key"
            )


def _value(scalar):
    """What a row has, None where it is missing: NaN is unequal to itself."""
    value = scalar.as_py()
    return None if value != value else value


def check_kinds(scores: Scores, key: Sequence[str], columns: Sequence[Column], location: str) -> None:
    """Raise InputError where a key is text on one side and a number on the other."""
    for name, kind, column in zip(key, scores.kinds, columns, strict=True):
        if (kind == TEXT) != (column.type == TEXT) and column.num_missing < len(column.values):
            raise InputError(f"{location}: column {name!r} is {column.type}, in the table {kind}; make them alike")
