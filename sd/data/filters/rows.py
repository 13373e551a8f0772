"""Which rows of a part are used: those whose picture is large enough and that pass the filters."""

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from sd.data.filters.evaluate import TypeMismatchError, where
from sd.data.filters.parse import FilterError, parse
from sd.data.filters.tree import And, Node, names_in
from sd.data.parts import storage
from sd.data.parts.columns import INT, Column, ColumnsFile
from sd.data.parts.index import PartError, PartHeader, PartIndex
from sd.data.parts.moments import KIND

if TYPE_CHECKING:
    from sd.data.streaming.bucketing import Bucketing

NO_VALUE = "missing"  # the type of a column that has no value in a part
SIZES = ("width", "height")  # of the stored picture: known of every row, from the index


@dataclass(frozen=True)
class RowFilter:
    """An expression on columns, and where its text comes from, for messages. Raises FilterError."""

    text: str
    label: str = "--data_filter"
    tree: Node = field(init=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "tree", parse(self.text, self.label))

    def __str__(self):
        return str(self.tree)

    @property
    def clauses(self) -> tuple[Node, ...]:
        """What the outermost `and` joins, or the whole."""
        return self.tree.children if isinstance(self.tree, And) else (self.tree,)

    def error(self, at: int, reason: str, types: Mapping[str, str]) -> FilterError:
        """A FilterError at a place of the text, with the columns that there are."""
        return FilterError(self.label, self.text, at, reason, listed(types))


def add_types(types: dict[str, str], more: Mapping[str, str]) -> None:
    """Take a part's columns in; a type that other parts have stands for one without values here."""
    for name, kind in more.items():
        if kind != NO_VALUE or name not in types:
            types[name] = kind


def listed(types: Mapping[str, str]) -> str:
    """The line of an error that lists columns, name -> type."""
    named = ", ".join(f"{name} ({kind})" for name, kind in types.items()) or "none; pack with --keep_columns"
    return f"columns: {named}; of every picture: width, height"


@dataclass(frozen=True)
class RowSelection:
    """What a RowRule says of the rows of a part.

    mask: bool [rows], those to use. num_large: rows whose picture is large enough. num_passing: rows of any size that
    pass the filters. removed: of the large rows, how many each clause removes. digest: of which rows pass, "" without
    filters. types: the part's columns, name -> type. buckets: int16 [rows], the bucket of each row before any merging,
    -1 for none; None without buckets.
    """

    mask: np.ndarray
    num_large: int
    num_passing: int
    removed: tuple[int, ...] = ()
    digest: str = ""
    types: Mapping[str, str] = field(default_factory=dict)
    buckets: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """The numbers of the rows to use, int64, ascending."""
        return np.flatnonzero(self.mask)


@dataclass(frozen=True)
class RowRule:
    """Rows with a short side of `min_side` pixels or more that pass all of `filters` are used; or, to look at them, the
    large ones that do not pass (`left_out`).

    shapes: a sd.data.streaming.bucketing.Bucketing, which then says in place of `min_side` what is large enough.
    """

    min_side: int
    filters: tuple[RowFilter, ...] = ()
    left_out: bool = False
    shapes: "Bucketing | None" = None

    @functools.cached_property
    def clauses(self) -> tuple[tuple[RowFilter, Node], ...]:
        return tuple((one, clause) for one in self.filters for clause in one.clauses)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The columns that the filters speak of, width and height among them."""
        return frozenset(name.name for _, clause in self.clauses for name in names_in(clause))

    def large(self, index: PartIndex) -> np.ndarray:
        """Bool [rows]: whose picture is large enough."""
        if self.shapes is not None:
            return self.shapes.choose(index) >= 0
        return index.short_sides >= max(1, self.min_side)

    def select_index(self, index: PartIndex) -> RowSelection:
        """The RowSelection of a part by its whole index. Raises as `select`."""
        return self.select(index, lambda: index)

    def select(self, header: PartHeader | PartIndex, load_index: Callable[[], PartIndex]) -> RowSelection:
        """The RowSelection of a part. load_index: called where header and columns are not enough.

        Raises PartError where the columns are damaged or of other rows, FilterError for a comparison of unlike types.
        """
        num_rows = header.num_rows
        large: np.ndarray | None = None  # all
        buckets: np.ndarray | None = None
        if self.shapes is not None:
            buckets = self.shapes.choose(load_index())
            large = buckets >= 0
        elif header.num_usable(self.min_side) != num_rows:
            large = self.large(load_index())
        num_large = num_rows if large is None else int(np.count_nonzero(large))
        if not self.filters:
            mask = np.ones(num_rows, bool) if large is None else large
            return RowSelection(mask, num_large, num_rows, buckets=buckets)
        columns, types = self._columns(header, load_index)
        clauses, removed = [], []
        for one, clause in self.clauses:
            try:
                true = where(clause, columns, num_rows)
            except TypeMismatchError as error:
                raise one.error(error.at, f"{storage.base_name(header.path)}: {error.reason}", types) from None
            removed.append(num_large - int(np.count_nonzero(true if large is None else true & large)))
            clauses.append(true)
        passing = functools.reduce(operator.and_, clauses)
        if self.left_out:
            passing = ~passing
        digest = f"{xxhash.xxh3_64_intdigest(np.packbits(passing).tobytes()):016x}"
        mask = passing if large is None else passing & large
        return RowSelection(mask, num_large, int(np.count_nonzero(passing)), tuple(removed), digest, types, buckets)

    def _columns(self, header, load_index):
        """(name -> Column of the names that the part has, name -> type of all its columns)."""
        try:
            with ColumnsFile(header) as file:
                types = dict(file.types)
                for name, missing in file.num_missing.items():
                    if missing == header.num_rows:  # of no type that a comparison could contradict
                        types[name] = NO_VALUE
                columns = {name: file.read(name) for name in self.names if types.get(name, NO_VALUE) != NO_VALUE}
        except FileNotFoundError:
            types, columns = {}, {}
        except OSError as error:
            raise PartError(f"{header.path}: its columns cannot be read: {error.strerror or error}") from error
        if header.kind != KIND and not self.names.isdisjoint(SIZES):  # a cache keeps them as columns
            index = load_index()
            columns |= {"width": _size(index.widths), "height": _size(index.heights)}
        return columns, types


def _size(values):
    present = values > 0
    return Column(INT, values.astype(np.int64), None if present.all() else present)
