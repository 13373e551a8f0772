"""The columns that packing keeps: which fields of a row, as which type, and what becomes of values of another kind.

A field is kept as the input has it: JSON's and Parquet's types, or, of CSV and TSV, whose fields are all text, the type
that every value of a part reads as; an empty one is missing. Whole numbers beside others make a column float64; what
differs otherwise makes it text, as JSON writes it. A type that is named (`aesthetic:float64`) holds for every part; a
value that is none of it is missing and counted. NaN is missing.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sd.data.filters.rows import SIZES
from sd.data.packing.outcomes import BadRow
from sd.data.parts.columns import BOOL, FLOAT, INT, INT_MAX, INT_MIN, TEXT, TYPES, Column, check_name, floats
from sd.errors import InputError
from sd.text import TextError, decode_text

ORIGINAL_SIZE = ("original_width", "original_height")
_ENTRY = re.compile(r"(?P<name>[^=:]+)(=(?P<key>[^=:]+))?(:(?P<type>\w+))?")
_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d*)?(?:\.\d*)?(?:[eE][+-]?\d+)?")  # no leading zero: that is a name
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_NAN_TEXTS = ("nan", "NaN", "NAN")


@dataclass(frozen=True)
class ColumnSpec:
    """A column `name` of what stands under `key` of a row; type: one of TYPES, or None for what the values are."""

    name: str
    key: str
    type: str | None = None

    def __str__(self):
        key = f"={self.key}" if self.key != self.name else ""
        return f"{self.name}{key}" + (f":{self.type}" if self.type else "")


class _Untyped(str):
    """A value of an input without types."""


def parse_keep_columns(text: str | None) -> tuple[ColumnSpec, ...]:
    """`aesthetic,url=URL,score:float64` -> KeptColumns. Raises InputError."""
    specs = []
    for entry in filter(None, (entry.strip() for entry in (text or "").split(","))):
        match = _ENTRY.fullmatch(entry)
        if match is None or (match["type"] or FLOAT) not in TYPES:
            raise InputError(f"--keep_columns {entry!r}; expected NAME, NAME=KEY or NAME:TYPE, TYPE one of {TYPES}")
        name, key = match["name"].strip(), (match["key"] or match["name"]).strip()
        if name in SIZES:
            raise InputError(
                f"--keep_columns {name}: every part has the {name} of its pictures; original_{name} is kept"
            )
        try:
            check_name(name)
        except ValueError as error:
            raise InputError(f"--keep_columns {entry!r}: {error}") from None
        if name in [column.name for column in specs]:
            raise InputError(f"--keep_columns {entry!r}: named twice")
        specs.append(ColumnSpec(name, key, match["type"]))
    if text is not None and not specs:
        raise InputError(f"--keep_columns {text!r}; expected names separated by commas")
    return tuple(specs)


class ColumnBuilder:
    """Takes the fields of the rows of a part and makes Columns of them.

    `num_unfit` counts, by name, values that are not of the type that was named.
    """

    def __init__(self, specs: Sequence[ColumnSpec]):
        self._specs = specs
        self._values: list[list] = [[] for _ in specs]
        self.num_unfit = dict.fromkeys((column.name for column in specs), 0)

    def add(self, fields: Mapping[str, Any], size: tuple[int, int], typed: bool = True) -> None:
        """A row. size: width and height of its picture before --resize, which stand for an original size that the input
        does not have; (0, 0) if unknown. typed: whether the input has types; of CSV all is text."""
        for column, values in zip(self._specs, self._values, strict=True):
            try:
                value = _plain(fields.get(column.key))
            except (TextError, BadRow, OverflowError, ValueError):
                self.num_unfit[column.name] += 1
                value = None
            if not typed and isinstance(value, str):
                value = _Untyped(value.strip()) if value.strip() else None
            if value is None and column.key in ORIGINAL_SIZE:
                value = size[ORIGINAL_SIZE.index(column.key)] or None
            values.append(value)

    def columns(self) -> dict[str, Column]:
        """Name -> Column of all rows. Call it once."""
        return {
            column.name: self._column(column, values) for column, values in zip(self._specs, self._values, strict=True)
        }

    def _column(self, column, values):
        kind = column.type
        if kind is None:
            values = _parse_untyped(values)
            kind = _common_type(values)
        converted = [_convert(value, kind) for value in values]
        self.num_unfit[column.name] += sum(
            value is not None and one is None and not (_is_nan(value) or value in _NAN_TEXTS)
            for value, one in zip(values, converted, strict=True)
        )
        return _make_column(kind, converted)


def _plain(value):
    """None, bool, int, float or text of what a row has: a pyarrow scalar's value, the JSON of lists and objects."""
    if hasattr(value, "as_py"):
        value = _of_scalar(value)
    if isinstance(value, bytes):
        value = decode_text(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a surrogate
    if value is None or isinstance(value, bool | int | float):
        return None if _is_nan(value) else value
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "replace").decode("utf-8")
    try:
        return float(value)  # Decimal
    except (TypeError, ValueError):
        return str(value)  # times


def _of_scalar(scalar):
    from pyarrow import types

    if scalar.is_valid and (types.is_string(scalar.type) or types.is_large_string(scalar.type)):
        return decode_text(scalar.as_buffer().to_pybytes())  # a column of text may hold what is not UTF-8
    return scalar.as_py()


def _is_nan(value):
    return isinstance(value, float) and math.isnan(value)


def _common_type(values):
    """The type of a column of plain values."""
    kinds = {str if isinstance(value, _Untyped) else type(value) for value in values if value is not None}
    if kinds == {int} and all(value is None or INT_MIN <= value <= INT_MAX for value in values):
        return INT
    if kinds <= {int, float}:
        return FLOAT
    return BOOL if kinds == {bool} else TEXT


def _parse_untyped(values):
    """The values with those without a type as numbers or bool, if all of these read so."""
    untyped = [value for value in values if isinstance(value, _Untyped)]
    if untyped and all(text in (*_TRUE, *_FALSE) for text in untyped):
        return [value in _TRUE if isinstance(value, _Untyped) else value for value in values]
    if untyped and all(map(_reads_as_number, untyped)):
        return [_number(value) if isinstance(value, _Untyped) else value for value in values]
    return values


def _reads_as_number(text):
    return text in _NAN_TEXTS or (_NUMBER.fullmatch(text) is not None and any(map(str.isdigit, text)))


def _number(text):
    """The number that a text reads as; None for NaN. Raises ValueError."""
    value = float(text)
    if math.isnan(value):
        return None
    return int(text) if text.lstrip("+-").isdigit() else value


def _convert(value, kind):
    """A plain value as one of a type; None where it is none of it."""
    if value is None or kind == TEXT:
        return value if value is None or isinstance(value, str) else json.dumps(value)
    try:
        if kind == BOOL:
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}[str(value)]
        number = _number(value.strip()) if isinstance(value, str) else value
        if kind == FLOAT:
            return None if number is None else float(number)
        return int(number) if number is not None and number == int(number) and INT_MIN <= number <= INT_MAX else None
    except (ValueError, KeyError, OverflowError):
        return None


def _make_column(kind, values):
    if kind == TEXT:
        import pyarrow as pa

        return Column(TEXT, pa.array(values, pa.large_string()))
    if kind == FLOAT:
        return floats(np.array([math.nan if value is None else value for value in values], np.float64))
    present = np.array([value is not None for value in values], bool)
    filled = np.array([value or 0 for value in values], np.int64 if kind == INT else bool)
    return Column(kind, filled, None if present.all() else present)
