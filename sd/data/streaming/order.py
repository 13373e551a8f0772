"""Sample number -> record: pure integer arithmetic, without files, processes or any state but one number.

The samples of a run are numbered s = 0, 1, 2, ... over all ranks. Lanes are dealt `deal_size` samples at a time, and
each lane walks through its own range of every pass, window by window. So a record's position follows from `s` alone.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence

from sd.errors import InputError

# The first key word of a random stream: what is drawn. The values are part of the order, do not renumber them.
PARTS, WINDOW, MIX, REPLACE, CROP, CAPTION, DRAW, EVAL, BUCKET = range(1, 10)

MIX_BLOCK = 4096  # weights of several sources are honoured to one part in this many
CACHED_WINDOWS = 2048
CACHED_ROWS = 500_000  # in windows: 16 bytes each
CACHED_PASSES = 4
REPLACEMENT_DRAWS = 200

Rows = npt.NDArray[np.int64]


def rng(seed: int, purpose: int, *coordinates: int) -> np.random.Generator:
    """A generator that depends on nothing but its (up to three) integer coordinates.

    Philox is counter based: streams with different coordinates do not overlap, and none has to be replayed.
    """
    words = [int(c) % 2**64 for c in coordinates] + [0] * (3 - len(coordinates))
    counter = np.array([0, *words], np.uint64)
    return np.random.Generator(np.random.Philox(_key(int(seed) % 2**64, purpose), counter=counter))


class _Key(ISeedSequence):
    """A key of Philox, as what it takes keys from. (Given a plain `key`, it draws a seed from the system all the same,
    which takes longer than all the rest.)"""

    def __init__(self, words):
        self._words = np.array(words, np.uint64)

    def generate_state(self, n_words, dtype=np.uint32):
        return self._words


@functools.lru_cache(maxsize=1024)
def _key(seed, purpose):
    return _Key((seed, purpose))


def worker_samples(
    start: int, batch_size: int, rank: int, world_size: int, worker: int, num_workers: int
) -> Iterator[int]:
    """The sample numbers of one worker, for ever: micro-batches worker, worker + num_workers, ... of its rank.

    Micro-batch m of rank r is samples `start + (m * world_size + r) * batch_size` and the next `batch_size - 1`.
    """
    micro_batch = worker
    while True:
        first = start + (micro_batch * world_size + rank) * batch_size
        yield from range(first, first + batch_size)
        micro_batch += num_workers


class Order:
    """Sample number -> (part, ordinal of the usable row in that part).

    sources: pairs (weight, counts), counts int64 [parts], the usable rows of each part. Parts are numbered through
    all sources. In a pass the parts of a source are permuted, their rows laid end to end (starting at a random row),
    and cut into `lanes` ranges equal to within one row; a lane shuffles each window of `buffer_size` rows of its range.
    Several sources are mixed in blocks of `MIX_BLOCK` samples of a lane. Raises InputError where a lane would be empty.
    """

    def __init__(
        self,
        sources: Sequence[tuple[float, npt.ArrayLike]],
        *,
        seed: int,
        lanes: int,
        deal_size: int,
        buffer_size: int,
    ):
        for name, value in (("lanes", lanes), ("deal_size", deal_size), ("buffer_size", buffer_size)):
            if value < 1:
                raise InputError(f"{name}={value}; expected 1 or more")
        weighted_counts = [(weight, np.asarray(counts, np.int64)) for weight, counts in sources]
        self.seed, self.lanes, self.deal_size, self.buffer_size = seed, lanes, deal_size, buffer_size
        self.counts = [counts for _, counts in weighted_counts]
        self.first_part = np.cumsum([0] + [len(counts) for counts in self.counts])
        self.rows = [int(counts.sum()) for counts in self.counts]
        self.num_usable = sum(self.rows)
        self.quotas = _quotas(
            [weight if rows else 0.0 for (weight, _), rows in zip(weighted_counts, self.rows, strict=True)]
        )
        self._check_size()
        # Which source each slot of an unshuffled block takes.
        self._block = np.repeat(np.arange(len(self.quotas), dtype=np.int16), self.quotas)
        self._mixed = int((self.quotas > 0).sum()) > 1
        self._passes = FifoCache(CACHED_PASSES * len(weighted_counts), self._make_pass)
        # One of each source is in use on a lane; a worker may serve several lanes.
        windows = max(2 * len(weighted_counts), min(CACHED_WINDOWS, CACHED_ROWS // buffer_size))
        self._windows = FifoCache(windows, self._make_window)
        self._blocks = FifoCache(CACHED_WINDOWS, self._make_block)

    def _check_size(self):
        need = self.lanes * self.deal_size
        if self.num_usable < need:
            raise InputError(
                f"{self.num_usable} usable records are fewer than one batch for each lane "
                f"({self.lanes} lanes x {self.deal_size} = {need}); use fewer ranks, workers or lanes, "
                "a smaller batch, or more data"
            )
        for number, (rows, quota) in enumerate(zip(self.rows, self.quotas, strict=True)):
            if quota and rows < self.lanes:
                raise InputError(
                    f"source {number} has {rows} usable records, fewer than the {self.lanes} lanes; "
                    "use fewer ranks, workers or lanes, or more data in it"
                )

    # -- coordinates of a sample -----------------------------------------------------------------------------------

    def lane_of(self, sample: int) -> tuple[int, int]:
        """(lane, index of the sample within its lane)."""
        block, within = divmod(sample, self.deal_size)
        turn, lane = divmod(block, self.lanes)
        return lane, turn * self.deal_size + within

    def sample_at(self, lane: int, index: int) -> int:
        """The sample number of a lane's index: the inverse of `lane_of`."""
        turn, within = divmod(index, self.deal_size)
        return (turn * self.lanes + lane) * self.deal_size + within

    def lane_range(self, source: int, lane: int) -> tuple[int, int]:
        """The range of rows of a pass, in the order of that pass, that belongs to the lane."""
        rows = self.rows[source]
        return lane * rows // self.lanes, (lane + 1) * rows // self.lanes

    def coordinates(self, sample: int) -> tuple[int, int, int, int, int]:
        """(source, lane, pass, window, slot in the shuffled window) of a sample."""
        lane, index = self.lane_of(sample)
        source = 0 if len(self.rows) == 1 else int(np.argmax(self.quotas))
        if self._mixed:
            number, slot = divmod(index, MIX_BLOCK)
            drawn, earlier = self._blocks[lane, number]
            source = int(drawn[slot])
            index = number * int(self.quotas[source]) + int(earlier[slot])
        start, stop = self.lane_range(source, lane)
        pass_number, offset = divmod(index, stop - start)
        window, slot = divmod(offset, self.window_rows(source))
        return source, lane, pass_number, window, slot

    def window_rows(self, source: int) -> int:
        """Rows in a window of a source."""
        return self.buffer_size

    def bucket_of(self, sample: int) -> int | None:
        """The bucket of a sample; None where rows are not kept apart by shape."""
        return None

    def position(self, sample: int) -> tuple[int, int]:
        """(part, ordinal among the usable rows of the part) of a sample."""
        source, lane, pass_number, window, slot = self.coordinates(sample)
        parts, ordinals = self._windows[source, lane, pass_number, window]
        return int(parts[slot]), int(ordinals[slot])

    def window(self, sample: int) -> tuple[Rows, Rows, int]:
        """All positions of the sample's window in shuffled order, (parts, ordinals) int64, and the sample's slot."""
        *window, slot = self.coordinates(sample)
        parts, ordinals = self._windows[tuple(window)]
        return parts, ordinals, slot

    def window_parts(self, source: int, lane: int, pass_number: int, window: int) -> tuple[set[int], set[int]]:
        """The parts of a window and of the next one on its lane, as two sets."""
        start, stop = self.lane_range(source, lane)
        after = (
            (pass_number, window + 1)
            if (window + 1) * self.window_rows(source) < stop - start
            else (pass_number + 1, 0)
        )
        parts, _ = self._windows[source, lane, pass_number, window]
        following, _ = self._windows[source, lane, after[0], after[1]]
        return set(np.unique(parts).tolist()), set(np.unique(following).tolist())

    def candidates(self, sample: int) -> Iterator[tuple[int, int]]:
        """The sample's own position, then those that replace it in turn should a row turn out to be corrupt.

        First the rest of its window, from the next slot on and round; then rows drawn from the whole source.
        The same for any number of ranks and workers.
        """
        parts, ordinals, slot = self.window(sample)
        for step in range(len(parts)):
            at = (slot + step) % len(parts)
            yield int(parts[at]), int(ordinals[at])
        source, _, pass_number, _, _ = self.coordinates(sample)
        rows = self.rows[source]
        for row in rng(self.seed, REPLACE, sample).integers(rows, size=min(rows, REPLACEMENT_DRAWS)):
            parts, ordinals = self._locate(source, pass_number, np.array([row]))
            yield int(parts[0]), int(ordinals[0])

    # -- computed once and cached ----------------------------------------------------------------------------------

    def _make_pass(self, source, pass_number):
        """The parts of a source in the order of a pass, the running sum of their rows, and the row it starts at."""
        draw = rng(self.seed, PARTS, source, pass_number)
        parts = draw.permutation(len(self.counts[source]))
        return parts, np.cumsum(self.counts[source][parts]), int(draw.integers(self.rows[source]))

    def _make_window(self, source, lane, pass_number, window):
        start, stop = self.lane_range(source, lane)
        size = self.window_rows(source)
        first = start + window * size
        rows = np.arange(first, min(first + size, stop))
        # Philox takes three coordinates, so lane and source share one word: both stay far below 2**32.
        shuffle = rng(self.seed, WINDOW, source * 2**32 + lane, pass_number, window)
        return self._locate(source, pass_number, shuffle.permutation(rows))

    def _make_block(self, lane, number):
        """Which source each slot of a block takes, and how many earlier slots of the block take the same one."""
        drawn = rng(self.seed, MIX, lane, number).permutation(self._block)
        earlier = np.empty(MIX_BLOCK, np.int16)
        for source, quota in enumerate(self.quotas):
            earlier[drawn == source] = np.arange(quota)
        return drawn, earlier

    def _locate(self, source, pass_number, rows):
        """Rows of a pass -> (parts numbered through all sources, ordinals within the parts)."""
        parts, ends, shift = self._passes[source, pass_number]
        rows = (rows + shift) % self.rows[source]
        at = np.searchsorted(ends, rows, side="right")
        ordinals = rows - (ends[at] - self.counts[source][parts[at]])
        return parts[at] + self.first_part[source], ordinals


class FifoCache(OrderedDict):
    """A FIFO cache: computes missing values by `make(*key)`, evicts the oldest."""

    def __init__(self, size: int, make: Callable[..., Any]):
        super().__init__()
        self._size, self._make = size, make

    def __missing__(self, key):
        value = self[key] = self._make(*key)
        if len(self) > self._size:
            self.popitem(last=False)
        return value


def _quotas(weights):
    """Weights -> samples of each source in a block of MIX_BLOCK, int64, by largest remainder; at least 1 each."""
    weights = np.asarray(weights, np.float64)
    if not len(weights) or not np.isfinite(weights).all() or (weights < 0).any():
        raise InputError(f"weights {weights.tolist()}; expected numbers of 0 or more, one at least above 0")
    if not weights.any():
        raise InputError("no source has both usable records and a weight above 0; check the file list")
    share = weights / weights.sum() * MIX_BLOCK
    quotas = np.maximum(np.floor(share), weights > 0).astype(np.int64)
    while quotas.sum() != MIX_BLOCK:
        step = 1 if quotas.sum() < MIX_BLOCK else -1
        quotas[np.argmax(step * (share - quotas) - 2.0 * MIX_BLOCK * ((quotas <= 1) & (step < 0)))] += step
    return quotas
