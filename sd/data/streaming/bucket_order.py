"""The order with aspect-ratio buckets: whole groups of one bucket, each position a function of the sample's number.

Samples s, s + 1, ... make groups of `group_size`; each group is of one source and one bucket, so that all ranks have
the same shape in a micro-batch. The rows of a (source, bucket), a *unit*, are dealt as `Order` deals those of a
source: passes, lanes, windows. What a pass leaves over, less than a group, opens the next one: the passes of a unit
lie end to end, and after p passes of a source its bucket with n rows has been dealt floor(p n / group_size) groups.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np

from sd.data.streaming.order import BUCKET, CACHED_ROWS, CACHED_WINDOWS, MIX_BLOCK, PARTS, FifoCache, Order, rng
from sd.errors import InputError

DEAL_BLOCK = 4096  # groups of a source in which its buckets are shuffled among each other, or a whole pass if shorter
_CACHED_PASSES = 2  # of each unit: the one in use, and the one before it on a lane that is a row behind


class Deal:
    """Group number of a source -> (bucket, number of the group within the bucket), by arithmetic on row counts.

    A pass is cut into `blocks` equal shares. After t of them a bucket with n rows has been dealt
    floor(t n / (blocks x group_size)) groups, and within a block the buckets are shuffled by `shuffle(t)`, a Generator.
    """

    def __init__(self, rows: Sequence[int], group_size: int, shuffle: Callable[[int], np.random.Generator]):
        self.rows, self.group_size, self._shuffle = [int(count) for count in rows], group_size, shuffle
        self.blocks = max(1, sum(self.rows) // (group_size * DEAL_BLOCK))
        self._step = self.blocks * group_size

    def dealt(self, block: int) -> list[int]:
        """Groups of each bucket before a block."""
        return [block * count // self._step for count in self.rows]

    def block_of(self, group: int) -> int:
        """The block in which a group of the source lies."""
        total = sum(self.rows)
        # sum(dealt(t)) lies within a group a bucket below t x total / step; later blocks may be empty of groups.
        first = group * self._step // total
        last = (group + len(self.rows) + 1) * self._step // total + 1
        return first + bisect_right(range(first, last + 1), group, key=lambda block: sum(self.dealt(block))) - 1

    def make_block(self, block: int) -> tuple[int, np.ndarray, np.ndarray]:
        """(first group of the block, the bucket of each of its groups, the number of each within its bucket)."""
        before, after = self.dealt(block), self.dealt(block + 1)
        counts = [end - start for start, end in zip(before, after, strict=True)]
        drawn = self._shuffle(block).permutation(np.repeat(np.arange(len(counts), dtype=np.int16), counts))
        numbers = np.empty(len(drawn), np.int64)
        for bucket, (start, count) in enumerate(zip(before, counts, strict=True)):
            numbers[drawn == bucket] = np.arange(start, start + count)
        return sum(before), drawn, numbers


class BucketOrder(Order):
    """Sample number -> (part, ordinal of the usable row in that part); ordinals count rows by bucket, then by place.

    sources: pairs (weight, counts), counts int [buckets, parts]: the usable rows. group_size: a multiple of
    lanes x deal_size. Sources are mixed in blocks of MIX_BLOCK groups. A window holds of each bucket its share of
    `buffer_size` rows, so that the buckets of a source walk through its parts side by side. Raises InputError.
    """

    def __init__(
        self,
        sources: Sequence[tuple[float, np.ndarray]],
        *,
        group_size: int,
        seed: int,
        lanes: int,
        deal_size: int,
        buffer_size: int,
    ):
        by_source = [np.asarray(counts) for _, counts in sources]
        totals = [(weight, counts.sum(0)) for (weight, _), counts in zip(sources, by_source, strict=True)]
        super().__init__(totals, seed=seed, lanes=lanes, deal_size=deal_size, buffer_size=buffer_size)
        if group_size < 1 or group_size % (lanes * deal_size):
            raise InputError(
                f"a group of {group_size} samples; expected a multiple of {lanes} lanes x {deal_size} = "
                f"{lanes * deal_size}"
            )
        if self.num_usable < group_size:
            raise InputError(
                f"{self.num_usable} usable records are fewer than one group of {group_size} samples; use fewer ranks, "
                "a smaller batch, or more data"
            )
        self.group_size, self._lane_group = group_size, group_size // lanes
        self.num_buckets = len(by_source[0])
        self._source_rows, self._by_source = self.rows, by_source
        self._source_counts = self.counts
        self.counts = [counts for of_source in by_source for counts in of_source]
        self.first_part = np.repeat(self.first_part[:-1], self.num_buckets)
        self.rows = [int(counts.sum()) for counts in self.counts]
        self._check_units()
        self._deals = [self._deal(source) for source in range(len(by_source))]
        self._passes = FifoCache(_CACHED_PASSES * len(self.rows), self._make_pass)
        self._permutations = FifoCache(2 * _CACHED_PASSES * len(by_source), self._permute_parts)
        windows = min(CACHED_WINDOWS, CACHED_ROWS * self.num_buckets // buffer_size)
        self._windows = FifoCache(max(2 * len(self.rows), windows), self._make_window)
        self._groups = FifoCache(4 * len(by_source), lambda source, block: self._deals[source].make_block(block))

    def _deal(self, source):
        rows = self.rows[source * self.num_buckets : (source + 1) * self.num_buckets]
        return Deal(rows, self.group_size, lambda block: rng(self.seed, BUCKET, source, block))

    def _check_units(self):
        for unit, rows in enumerate(self.rows):
            source, bucket = divmod(unit, self.num_buckets)
            if rows and self.quotas[source] and rows < self.lanes:
                raise InputError(
                    f"bucket {bucket} of source {source} has {rows} usable records, fewer than the {self.lanes} lanes; "
                    "use fewer lanes, or leave the bucket out"
                )

    # -- coordinates of a sample -----------------------------------------------------------------------------------

    def coordinates(self, sample: int) -> tuple[int, int, int, int, int]:
        """(unit, lane, pass of the unit, window, slot in the shuffled window); unit = source x buckets + bucket."""
        lane, index = self.lane_of(sample)
        group, offset = divmod(index, self._lane_group)
        unit, number = self.group_at(group)
        start, stop = self.lane_range(unit, lane)
        pass_number, within = divmod(number * self._lane_group + offset, stop - start)
        window, slot = divmod(within, self.window_rows(unit))
        return unit, lane, pass_number, window, slot

    def group_at(self, group: int) -> tuple[int, int]:
        """(unit, number of the group within the unit) of a group of the run."""
        source = int(np.argmax(self.quotas))
        if self._mixed:
            number, slot = divmod(group, MIX_BLOCK)
            drawn, earlier = self._blocks[0, number]
            source = int(drawn[slot])
            group = number * int(self.quotas[source]) + int(earlier[slot])
        first, buckets, numbers = self._groups[source, self._deals[source].block_of(group)]
        return source * self.num_buckets + int(buckets[group - first]), int(numbers[group - first])

    def bucket_of(self, sample: int) -> int:
        """The bucket of a sample and of all that may replace it."""
        return self.group_at(sample // self.group_size)[0] % self.num_buckets

    def window_rows(self, unit: int) -> int:
        """Rows in a window of a unit."""
        share = -(-self.buffer_size * self.rows[unit] // self._source_rows[unit // self.num_buckets])
        return min(self.buffer_size, max(self.deal_size, share))

    # -- computed once and cached ----------------------------------------------------------------------------------

    def _permute_parts(self, source, pass_number):
        draw = rng(self.seed, PARTS, source, pass_number)
        return draw.permutation(len(self._source_counts[source])), int(draw.integers(self._source_rows[source]))

    def _make_pass(self, unit, pass_number):
        """As of `Order`; all buckets of a source take its parts in one order, from about the same place on."""
        source = unit // self.num_buckets
        parts, start = self._permutations[source, pass_number]
        of_source = self._source_counts[source][parts]
        ends = np.cumsum(of_source)
        at = int(np.searchsorted(ends, start, side="right"))
        share = (start - int(ends[at] - of_source[at])) / int(of_source[at])
        counts = self.counts[unit][parts]
        ends = np.cumsum(counts, dtype=np.int64)
        return parts, ends, int(ends[at] - counts[at]) + int(share * int(counts[at]))

    def _locate(self, unit, pass_number, rows):
        """Rows of a pass -> (parts, ordinals among all usable rows of the part, which lie by bucket)."""
        parts, ordinals = super()._locate(unit, pass_number, rows)
        source, bucket = divmod(unit, self.num_buckets)
        earlier = self._by_source[source][:bucket, parts - self.first_part[unit]]
        return parts, ordinals + earlier.sum(0, dtype=np.int64)
