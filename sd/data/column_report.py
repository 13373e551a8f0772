"""The report of inspect on columns: type, missing values, distribution of the values."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sd.data.filters.rows import NO_VALUE, add_types
from sd.data.parts.columns import BOOL, TEXT, ColumnsFile
from sd.data.parts.index import PartError
from sd.data.parts.part import load_header
from sd.data.streaming.catalog import Catalog

_PARTS, _PARTS_OF_TEXT = 1000, 20  # read, spread over the list
_QUANTILES = (0, 1, 25, 50, 75, 99, 100)
_BARS, _LEVELS = 24, "▁▂▃▄▅▆▇█"
_TEXTS_NAMED, _TEXT_LENGTH = 5, 24


@dataclass
class _ColumnStats:
    """Values of a column so far: of numbers and bool as arrays, of text counted."""

    num_rows: int = 0
    num_missing: int = 0
    values: list = field(default_factory=list)
    texts: Counter = field(default_factory=Counter)
    text_rows: int = 0


def column_lines(catalog: Catalog) -> list[str]:
    """A line for each column of the parts of a catalog, none where they have no columns."""
    types: dict[str, str] = {}
    stats: dict[str, _ColumnStats] = {}
    num_rows = num_parts = num_with = 0
    damage = []
    parts_read = np.unique(np.linspace(0, len(catalog.paths) - 1, min(_PARTS, len(catalog.paths))).astype(int))
    of_text = set(parts_read[:: max(1, len(parts_read) // _PARTS_OF_TEXT)].tolist())
    for part in parts_read.tolist():
        if catalog.checksums[part] == "missing":
            continue
        num_parts += 1
        try:
            header = load_header(catalog.paths[part])
            num_rows += header.num_rows
            with ColumnsFile(header) as file:
                num_with += 1
                _add_part(file, header.num_rows, part in of_text, types, stats)
        except FileNotFoundError:
            continue
        except (PartError, OSError) as error:
            damage.append(f"columns that cannot be read: {error}")
    if not types:
        return damage
    several = "" if num_with == num_parts else f", {num_parts - num_with} of them without any"
    lines = [f"columns of {num_parts} parts{several}, {num_rows} rows: type, missing, values"]
    width = max(map(len, types))
    for name, kind in types.items():
        one = stats[name]
        missing = (num_rows - one.num_rows + one.num_missing) / max(1, num_rows)
        lines.append(f"    {name:{width}} {kind:8} {missing:6.1%}  {_describe_values(kind, one)}".rstrip())
    return lines + damage


def _add_part(file, num_rows, with_text, types, stats):
    own = {name: NO_VALUE if file.num_missing[name] == num_rows else kind for name, kind in file.types.items()}
    add_types(types, own)
    for name, kind in own.items():
        one = stats.setdefault(name, _ColumnStats())
        one.num_rows += num_rows
        one.num_missing += file.num_missing[name]
        if kind == NO_VALUE or (kind == TEXT and not with_text):
            continue
        column = file.read(name)
        if kind == TEXT:
            texts = column.values.drop_null().to_pylist()
            one.texts.update(texts)
            one.text_rows += len(texts)
        else:
            one.values.append(column.values if column.present is None else column.values[column.present])


def _describe_values(kind: str, one: _ColumnStats) -> str:
    if kind == TEXT and one.text_rows:
        return _describe_texts(one)
    if not one.values:
        return ""
    values: Any = np.concatenate(one.values)
    if kind == BOOL:
        return f"true {values.mean():.1%}"
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "infinite alone"
    quantiles = ", ".join(f"{share}%: {value:.4g}" for share, value in zip(_QUANTILES, _quantiles(finite), strict=True))
    return f"{quantiles}  {_sparkline(finite)}" + (
        f" {len(values) - len(finite)} infinite" * (len(finite) < len(values))
    )


def _quantiles(values):
    return np.percentile(values, _QUANTILES, method="nearest")


def _sparkline(values):
    """The histogram of values between their 1% and 99% quantiles; the highest bar is full, an empty one a blank."""
    with np.errstate(over="ignore", invalid="ignore"):  # of values as far apart as float64 goes
        low, high = np.percentile(values, [1, 99])
    if not ((low <= values) & (values <= high)).any():  # of two values both lie beyond
        low, high = values.min(), values.max()
    if not 0 < float(high) - float(low) < math.inf:
        return ""
    counts, _ = np.histogram(values, _BARS, (low, high))
    steps = np.ceil(counts / counts.max() * len(_LEVELS)).astype(int)
    return "".join(_LEVELS[step - 1] if step else " " for step in steps)


def _describe_texts(one):
    most_common = one.texts.most_common(_TEXTS_NAMED)
    named = ", ".join(f"{_short(text)} {count / one.text_rows:.1%}" for text, count in most_common if count > 1)
    distinct = f"{len(one.texts)} different of {one.text_rows} read"
    return f"{distinct}: {named}" if named else f"{distinct}, as {_short(most_common[0][0])}"


def _short(text):
    visible = "".join(character if character.isprintable() else " " for character in text[: _TEXT_LENGTH + 1])
    return repr(visible if len(text) <= _TEXT_LENGTH else visible[:_TEXT_LENGTH] + "...")
