"""The rows of a file list by bucket: counted from the indexes, small buckets merged, both reported as log lines."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sd.data.parts.moments import KIND, Manifest
from sd.data.parts.storage import base_name
from sd.data.streaming.buckets import BucketTable, check_cached
from sd.errors import ArgumentError
from sd.flags.aspect import format_size, parse_aspect_buckets


@dataclass(frozen=True)
class Bucketing:
    """How rows go to buckets. group_size: a bucket with fewer rows in a source is merged into another of it; 1 merges
    none. enlarge: images that are smaller than every bucket are taken too."""

    table: BucketTable
    group_size: int = 1
    enlarge: bool = False

    _latest: list = field(default_factory=lambda: [(None, None)], init=False, repr=False, compare=False)

    def choose(self, index: Any) -> np.ndarray:
        """The bucket of each row of a PartIndex before any merging: int16 [n], -1 for none."""
        latest, chosen = self._latest[0]
        if latest is not index:  # consecutive calls have the same index
            chosen = self._choose(index)
            self._latest[0] = index, chosen
        return chosen

    def _choose(self, index):
        if index.kind == KIND:
            return self.table.exact(index.widths, index.heights)
        return self.table.choose(index.widths, index.heights, self.enlarge)

    def count(self, index: Any, mask: np.ndarray) -> np.ndarray:
        """Rows of a PartIndex in each bucket before any merging: int32 [buckets]. mask: bool [n], those that count."""
        chosen = np.where(mask, self.choose(index), -1)
        return np.bincount(chosen[chosen >= 0], minlength=len(self.table)).astype(np.int32)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `from_flags` reads."""
    parser.add_argument("--aspect_buckets", help="as in training: how many buckets, or their sizes")
    parser.add_argument(
        "--aspect_group_size", type=int, default=1, help="as in training: buckets with fewer rows are merged; default 1"
    )
    parser.add_argument(
        "--side_multiple",
        type=int,
        default=64,
        help="what sides must be multiples of, for a number of buckets; default 64, as v1-4's VAE and UNet need",
    )


def from_flags(options: argparse.Namespace, manifest: Manifest | None) -> Bucketing | None:
    """The Bucketing of flags where no model says what sides must be multiples of, a list is taken as it is; or that of
    a cache. None for squares. Raises InputError."""
    for name in ("side_multiple", "aspect_group_size"):
        if getattr(options, name) < 1:
            raise ArgumentError(name, getattr(options, name), "; expected at least 1")
    sizes = manifest.sizes if manifest is not None and manifest.aspect_buckets else None
    if sizes or options.aspect_buckets is None:
        return Bucketing(BucketTable(sizes)) if sizes else None
    multiple = options.side_multiple if isinstance(parse_aspect_buckets(options.aspect_buckets), int) else 1
    table = BucketTable.from_flag(options.aspect_buckets, options.resolution, multiple)
    return Bucketing(table, options.aspect_group_size, options.enlarge)


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

    def by_bucket(self, part: int, index: Any, rows: np.ndarray) -> np.ndarray:
        """A part's usable rows, numbers in ascending order, by bucket, then by number: what ordinals count."""
        chosen = self.bucketing.choose(index)[rows]
        return rows[np.argsort(self.goes_to_of(part)[chosen], kind="stable")]

    def goes_to_of(self, part: int) -> np.ndarray:
        """`goes_to` of the source of a part."""
        return self.goes_to[int(np.searchsorted(self._first_part, part, side="right")) - 1]

    def bucket(self, part: int, ordinal: int) -> int:
        """The bucket of a usable row."""
        return int(np.searchsorted(np.cumsum(self.counts[:, part]), ordinal, side="right"))

    def size(self, part: int, ordinal: int) -> tuple[int, int]:
        """(width, height) of the bucket of a usable row."""
        return self.bucketing.table.sizes[self.bucket(part, ordinal)]

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
