"""The rows of a file list by bucket: counted from the indexes, small buckets merged, both reported as log lines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sd.data.filters.rows import RowSelection
from sd.data.parts.index import PartIndex
from sd.data.parts.moments import KIND
from sd.data.parts.storage import base_name
from sd.data.streaming.buckets import BucketTable, check_cached
from sd.flags.aspect import format_size


@dataclass(frozen=True)
class Bucketing:
    """How rows go to buckets. group_size: a bucket with fewer rows in a source is merged into another of it; 1 merges
    none. enlarge: images that are smaller than every bucket are taken too."""

    table: BucketTable
    group_size: int = 1
    enlarge: bool = False

    def choose(self, index: PartIndex) -> np.ndarray:
        """The bucket of each row of a part before any merging: int16 [n], -1 for none."""
        if index.kind == KIND:
            return self.table.exact(index.widths, index.heights)
        return self.table.choose(index.widths, index.heights, self.enlarge)

    def count(self, selection: RowSelection) -> np.ndarray:
        """The rows to use that are in each bucket before any merging: int32 [buckets]."""
        assert selection.buckets is not None
        return np.bincount(selection.buckets[selection.mask], minlength=len(self.table)).astype(np.int32)


class BucketRows:
    """How many rows of each part are in each bucket.

    counts: int32 [buckets, parts] after merging; goes_to: for each source int16 [buckets], see BucketTable.merge.

    chosen: int32 [buckets, parts] before it; first_part: number of the first part of each source, and of all parts;
    names: of the sources. Raises InputError where a bucket of a latent cache would have to be merged.
    """

    def __init__(
        self, bucketing: Bucketing, chosen: np.ndarray, first_part: np.ndarray, names: Sequence[str], kind: str
    ):
        self.bucketing, self._chosen = bucketing, chosen
        self._first_part, self._names = first_part, [base_name(name) for name in names]
        self.counts, self.goes_to = np.zeros_like(chosen), []
        for source, name in enumerate(names):
            parts = slice(first_part[source], first_part[source + 1])
            rows = chosen[:, parts].sum(1)
            if kind == KIND:
                check_cached(rows, bucketing.table.sizes, bucketing.group_size, name)
            goes_to = bucketing.table.merge(rows, bucketing.group_size)
            np.add.at(self.counts[:, parts], goes_to, chosen[:, parts])
            self.goes_to.append(goes_to)

    @property
    def covered(self) -> bool:
        """Whether every usable image is at least as large as its bucket: none is enlarged, and none was merged."""
        return not self.bucketing.enlarge and bool((self.counts == self._chosen).all())

    @property
    def used(self) -> BucketTable:
        """The table without the buckets that hold no row of any source; whole where none holds any."""
        rows = self.counts.sum(1)
        sizes = tuple(size for size, count in zip(self.bucketing.table.sizes, rows, strict=True) if count)
        return BucketTable(sizes or self.bucketing.table.sizes)

    def by_bucket(self, part: int, selection: RowSelection) -> np.ndarray:
        """The numbers of a part's rows to use by bucket, then by number: what ordinals count."""
        assert selection.buckets is not None
        rows = selection.rows
        chosen = selection.buckets[rows]
        return rows[np.argsort(self.goes_to_of(part)[chosen], kind="stable")]

    def goes_to_of(self, part: int) -> np.ndarray:
        """`goes_to` of the source of a part."""
        return self.goes_to[int(np.searchsorted(self._first_part, part, side="right")) - 1]

    def bucket(self, part: int, ordinal: int) -> int:
        """The bucket of a usable row."""
        return int(np.searchsorted(np.cumsum(self.counts[:, part]), ordinal, side="right"))

    def lines(self) -> list[str]:
        """A line on the rows of each bucket, then one for each bucket that is merged or has no row."""
        sizes, total = self.bucketing.table.sizes, max(1, int(self.counts.sum()))
        lines = [
            f"bucket {format_size(size)}: {count} rows ({count / total:.1%})"
            for size, count in zip(sizes, self.counts.sum(1).tolist(), strict=True)
            if count
        ]
        for source, goes_to in enumerate(self.goes_to):
            source_name = f" of {self._names[source]}" if len(self.goes_to) > 1 else ""
            parts = slice(self._first_part[source], self._first_part[source + 1])
            rows = self._chosen[:, parts].sum(1).tolist()
            for bucket, target in enumerate(goes_to.tolist()):
                if target != bucket and rows[bucket]:
                    lines.append(
                        f"bucket {format_size(sizes[bucket])}{source_name} has {rows[bucket]} rows, fewer than a group "
                        f"of {self.bucketing.group_size} samples: they go to {format_size(sizes[target])}"
                    )
        for size, count in zip(sizes, self._chosen.sum(1).tolist(), strict=True):
            if not count:
                lines.append(f"bucket {format_size(size)} has no row")
        return lines
