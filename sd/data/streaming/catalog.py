"""The catalog of a file list: parts, usable rows of each, missing and damaged ones, and a fingerprint of all."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np

from sd.data.filters.rows import RowFilter, RowRule
from sd.data.parts import storage
from sd.data.parts.filelist import read_file_list
from sd.data.parts.index import STREAM, SUFFIX, PartError, PartIndex
from sd.data.parts.moments import KIND, find_manifest, manifest_path
from sd.data.parts.part import load_header, load_index
from sd.data.streaming.bucket_counts import BucketCountCache
from sd.data.streaming.bucketing import Bucketing, BucketRows
from sd.data.streaming.filtering import describe_filters, total_filtering
from sd.data.streaming.local_copies import needs_copy
from sd.errors import InputError

logger = logging.getLogger(__name__)

_REMOTE_THREADS = 32
_UNPACKED = 4 / 3  # bytes of base64 for each one of its gzip
_NAMED = 10  # bad parts named one by one in the log


@dataclass(frozen=True)
class PartSummary:
    """What is known of a part at start. `num_bad` are known bad rows; `damage` says what is wrong with the file."""

    usable: int = 0
    num_rows: int = 0
    num_bad: int = 0
    kind: str = ""
    num_bytes: int = 0
    checksum: str = "missing"
    layout: str = ""
    damage: str = ""
    lost_unknown: bool = False  # rows are missing, their number is unknown
    large: int = 0  # rows whose picture is large enough
    passing: int = 0  # rows of any size that pass the filters
    removed: tuple[int, ...] = ()  # large rows that each clause of the filters removes
    digest: str = ""  # of which rows pass
    types: Mapping[str, str] = field(default_factory=dict)  # of the columns, with a filter
    buckets: np.ndarray | None = None  # int32 [buckets], usable rows in each


class Catalog:
    """The parts of a file list in order, numbered through all its sources.

    - paths: list of str; usable: int64 [parts], the rows that are used: those with a short side of `resolution` or
      more, with `enlarge` of any, that pass `data_filter` and their source's own filter; checksums: names of the
      parts' bytes, "missing" where the index cannot be read; digests: of which rows pass the filters, "" without. A
      part of which no row passes is not among them.
    - num_parts, num_rows, num_usable: totals. num_lost: rows of missing or damaged parts, guessed from the rest.
      num_bad: these and the rows without a readable image. filtering: what the filters leave out, see Filtering.
    - copied: numbers of the parts that are read from local copies, copied_rows and copied_bytes: their rows, and about
      the bytes of the copies; damage: {part number: reason}.
    - kind: "image" or "moments"; manifest: the Manifest of the latter, else None.
    - bucket_rows: with `bucketing` the BucketRows, else None; usable are then the rows that have a bucket.
    - fingerprint: a hash of weights, names, checksums and which rows pass, the same wherever the parts lie.

    data_filter: an expression, or one that is read already. left_out: the large rows that do not pass are used instead,
    to look at them.

    Raises InputError where nothing is usable (unless `may_be_unusable`), more than `max_bad_fraction` of the rows is
    bad, images and cached moments stand in one list, or a filter cannot be read or names a column that no part has.
    """

    def __init__(
        self,
        file_list: str,
        resolution: int,
        *,
        max_bad_fraction: float = 0.05,
        cache_dir: str | Path | None = None,
        may_be_unusable: bool = False,
        enlarge: bool = False,
        data_filter: str | RowFilter | None = None,
        left_out: bool = False,
        bucketing: Bucketing | None = None,
    ):
        self.file_list, self.resolution, self.bucketing = str(file_list), resolution, bucketing
        if isinstance(data_filter, str):
            data_filter = RowFilter(data_filter)  # read before any file is
        global_filters = [] if data_filter is None else [data_filter]
        self.manifest = find_manifest(file_list)
        # Of a cache the rows that are smaller than it hold no picture, and the enlarged ones have its size.
        self.min_side = 1 if enlarge and self.manifest is None else resolution
        sources = read_file_list(file_list)
        self.names = [source.name for source in sources]
        self.weights = [source.weight for source in sources]
        self.rules = [self._rule(source, global_filters, left_out) for source in sources]
        self.paths = [part for source in sources for part in source.parts]
        self.num_parts = len(self.paths)
        self.first_part = np.cumsum([0] + [len(source.parts) for source in sources])
        parts = self._load(cache_dir)
        self.filtering = total_filtering(self, parts, log=not left_out)
        self.num_rows = sum(part.num_rows for part in parts)
        self.num_lost = _count_lost(parts)
        self.num_bad = sum(part.num_bad for part in parts) + self.num_lost
        self.kind = self._kind(parts)
        parts = self._without_emptied(parts)
        self.bucket_rows = self._bucket_rows(parts)
        self.usable = np.array([part.usable for part in parts], np.int64)
        self._ends = np.cumsum(self.usable)
        self.checksums = [part.checksum for part in parts]
        self.digests = [part.digest for part in parts]
        self.num_usable = int(self.usable.sum())
        self.copied = {number for number, part in enumerate(parts) if needs_copy(self.paths[number], part.layout)}
        copied = [parts[number] for number in self.copied]
        self.copied_rows = sum(part.num_rows for part in copied)
        self.copied_bytes = sum(part.num_bytes * (_UNPACKED if part.layout == STREAM else 1) for part in copied)
        self.damage = {number: part.damage for number, part in enumerate(parts) if part.damage}
        self.fingerprint = self._fingerprint(parts)
        if not left_out:
            self._report(max_bad_fraction, may_be_unusable)

    def _rule(self, source, global_filters, left_out):
        """The RowRule of a Source: the filter of all, then its own."""
        own = [RowFilter(source.filter, f"{self.file_list}: {source.name}")] if source.filter is not None else []
        return RowRule(self.min_side, (*global_filters, *own), left_out, self.bucketing)

    def position(self, usable_row: int) -> tuple[int, int]:
        """(part, ordinal among its usable rows) of a usable row, which are numbered through all parts."""
        part = int(np.searchsorted(self._ends, usable_row, side="right"))
        return part, int(usable_row - self._ends[part] + self.usable[part])

    def source_of(self, part: int) -> int:
        """The number of the source that a part belongs to."""
        return int(np.searchsorted(self.first_part, part, side="right")) - 1

    def rule(self, part: int) -> RowRule:
        """Which rows of a part are used."""
        return self.rules[self.source_of(part)]

    @property
    def data_filter(self) -> str | None:
        """All filters in normal form, those of single sources with their names; None where there is none."""
        return describe_filters(self.rules, self.names)

    @property
    def sources(self) -> list[tuple[float, np.ndarray]]:
        """Pairs (weight, usable rows of each part), as Order takes them; by bucket too, as BucketOrder does."""
        ranges = zip(self.first_part, self.first_part[1:], strict=False)
        counts = self.usable if self.bucket_rows is None else self.bucket_rows.counts
        return [(weight, counts[..., a:b]) for weight, (a, b) in zip(self.weights, ranges, strict=True)]

    def rows(self, part: int, index: PartIndex) -> np.ndarray:
        """Row numbers of the usable rows of a part, in the order in which ordinals count them."""
        selection = self.rule(part).select_index(index)
        return selection.rows if self.bucket_rows is None else self.bucket_rows.by_bucket(part, selection)

    def name(self, part: int, row: int) -> str:
        """`part-000001.gz row 17`, rows counted from 1 as editors do."""
        return f"{storage.base_name(self.paths[part])} row {row + 1}"

    def _load(self, cache_dir):
        count_cache = None if self.bucketing is None else BucketCountCache(self.bucketing, cache_dir)

        def load(number):
            return summarise(self.paths[number], self.rule(number), cache_dir, count_cache)

        numbers = range(len(self.paths))
        if any(storage.is_remote(path) for path in self.paths):
            with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
                parts = list(pool.map(load, numbers))
        else:
            parts = list(map(load, numbers))
        if count_cache is not None:
            count_cache.save()
        return parts

    def _bucket_rows(self, parts):
        if self.bucketing is None:
            return None
        none = np.zeros(len(self.bucketing.table), np.int32)
        chosen = np.stack([none if part.buckets is None else part.buckets for part in parts], axis=1)
        return BucketRows(self.bucketing, chosen, self.first_part, self.names, self.kind)

    def _without_emptied(self, parts):
        """The parts without those of which no row passes, as if they had been packed from the rows that pass.

        A source is not left without any part.
        """
        left = [number for number, part in enumerate(parts) if part.passing or part.damage or not part.num_rows]
        sizes = np.bincount([self.source_of(number) for number in left], minlength=len(self.rules))
        if len(left) == len(parts) or not sizes.all():
            return parts
        self.paths = [self.paths[number] for number in left]
        self.first_part = np.cumsum([0, *sizes])
        return [parts[number] for number in left]

    def _kind(self, parts):
        """The kind that all parts have, by the manifests beside the filelists and by their own indexes."""
        kind = "image" if self.manifest is None else KIND
        for number, part in enumerate(parts):
            if part.kind in ("", kind):
                continue
            name = self.names[self.source_of(number)]
            location = f"{name}: {storage.base_name(self.paths[number])}"
            if self.manifest is None:
                raise InputError(
                    f"{location} is a part of cached latents, but there is no {manifest_path(name)}; copy the manifest "
                    "beside the filelist, and keep images and cached parts in lists of their own"
                )
            raise InputError(f"{location} is a part of images, but {self.manifest.path} is the manifest of a cache")
        return kind

    def _fingerprint(self, parts):
        digest = sha256()
        for number, weight in enumerate(self.weights):
            digest.update(f"source {weight!r}\n".encode())
            for part in range(self.first_part[number], self.first_part[number + 1]):
                chosen = f" {parts[part].digest}" if parts[part].digest else ""
                digest.update(f"{storage.base_name(self.paths[part])} {parts[part].checksum}{chosen}\n".encode())
        return digest.hexdigest()[:32]

    def _report(self, max_bad_fraction, may_be_unusable):
        reasons = list(self.damage.values())
        for reason in reasons[:_NAMED]:
            logger.warning("bad part: %s", reason)
        if len(reasons) > _NAMED:
            logger.warning("and %d more bad parts", len(reasons) - _NAMED)
        logger.info(
            f"{self.file_list}: {self.num_parts} parts, {self.num_rows} rows, {self.num_usable} of them usable at "
            f"{self.resolution} px, {self.num_bad} bad, {len(reasons)} parts damaged"
        )
        for line in self.filtering.lines():
            logger.info("%s: %s", self.file_list, line)
        smaller = self.num_rows + self.num_lost - self.num_bad - self.filtering.num_large
        if smaller > 0 and self.kind != KIND:
            than = f"than {self.resolution} px" if self.bucketing is None else "than every bucket"
            logger.warning(
                f"{smaller} of {self.num_rows} images are smaller {than} and left out; "
                "--enlarge True takes them, enlarged"
            )
        total = self.num_rows + self.num_lost
        if self.num_bad > max_bad_fraction * total:
            first = reasons[0] if reasons else "rows without a readable image"
            raise InputError(
                f"{self.file_list}: about {self.num_bad} of {total} rows are bad, more than --max_bad_fraction "
                f"{max_bad_fraction} allows; the first: {first}"
            )
        if may_be_unusable:
            return
        self.filtering.check()
        if not self.num_usable:
            if self.bucketing is not None:
                raise InputError(
                    f"{self.file_list}: none of {self.num_rows} rows is as large as one of the buckets "
                    f"{self.bucketing.table}; lower the resolution, give smaller buckets or pack larger images"
                )
            raise InputError(
                f"{self.file_list}: none of {self.num_rows} rows has a short side of {self.resolution} px or more; "
                "lower the resolution or pack larger images"
            )


def summarise(
    path: str | Path, rule: RowRule, cache_dir: str | Path | None = None, count_cache: BucketCountCache | None = None
) -> PartSummary:
    """PartSummary of a part, from the header of its index where that is enough. Damage does not raise.

    count_cache: BucketCountCache of the rule's buckets.
    """

    @cache
    def full_index():
        return load_index(path, cache_dir)

    try:
        header = load_header(path, cache_dir)
        num_bytes = header.part_bytes if storage.is_remote(path) else storage.size_of(path)
        usable = None if rule.filters or rule.shapes else header.num_usable(rule.min_side)
        scanned = not storage.exists(str(path) + SUFFIX)
        index, counts = None, None
        if count_cache is not None and not (rule.filters or scanned) and num_bytes == header.part_bytes:
            counts = count_cache.get(header)
            usable = None if counts is None else int(counts.sum())
        # Of rows below 8 px the header does not say which are readable.
        has_small = int(header.side_counts[1]) < header.num_rows
        if scanned or has_small or num_bytes != header.part_bytes or (usable is None and not rule.filters):
            index = full_index()
    except (PartError, OSError) as error:
        reason = str(error) if isinstance(error, PartError) else f"{path}: {error.strerror or error}"
        return PartSummary(damage=reason, lost_unknown=True)
    num_bad, damage = 0 if index is None else int(np.count_nonzero(index.short_sides < 1)), ""
    if num_bytes != header.part_bytes:
        num_bad += _rows_beyond(index, num_bytes)
        damage = f"{path}: {num_bytes} bytes where its index says {header.part_bytes}; copy or pack it again"
    elif index is not None and index.damage:
        damage = f"{path}: {index.damage}"
    selected = {} if counts is None else {"buckets": counts}
    if usable is None:
        usable, selected, reason = _select_rows(header, rule, full_index)
        if count_cache is not None and "buckets" in selected and not (rule.filters or damage):
            count_cache.add(header, selected["buckets"])
        if reason:
            num_bad, damage = header.num_rows, damage or reason
    return PartSummary(
        usable=usable,
        num_rows=header.num_rows,
        num_bytes=header.part_bytes,
        num_bad=num_bad,
        kind=header.kind,
        checksum=header.checksum,
        layout=header.layout,
        damage=damage,
        lost_unknown=scanned and bool(damage),
        **cast(dict[str, Any], {"large": usable, "passing": header.num_rows} | selected),
    )


def _select_rows(header, rule, full_index):
    """(usable rows, further fields of PartSummary, why the rows cannot be judged or "")."""
    try:
        selected = rule.select(header, full_index)
    except PartError as error:  # of columns, or of the index behind its header
        return 0, {"large": 0, "passing": 0}, f"{storage.folder_of(header.path)}: {error}"
    names = ("removed", "digest", "types")
    fields = {name: getattr(selected, name) for name in names} | {
        "large": selected.num_large,
        "passing": selected.num_passing,
    }
    if rule.shapes is not None:
        fields["buckets"] = rule.shapes.count(selected)
    return int(np.count_nonzero(selected.mask)), fields, ""


def _count_lost(parts):
    """Rows that missing or cut parts held beside those that are left, guessed from the size of the others."""
    sound = [part.num_rows for part in parts if not part.lost_unknown]
    typical = round(float(np.median(sound))) if sound else 0
    return sum(max(1, typical - part.num_rows) for part in parts if part.lost_unknown)


def _rows_beyond(index, num_bytes):
    """Rows that do not lie whole within the first `num_bytes` of the file."""
    return int(np.count_nonzero(index.offsets[1:] > num_bytes)) if index.layout != STREAM else 0
