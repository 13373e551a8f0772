"""All pairs of 48-bit hashes within a Hamming distance, by banding (multi-index hashing, Norouzi et al., 2012).

A hash is cut into three bands of 16 bits. Two hashes that differ in at most d bits differ in at most d // 3 bits in one
of the bands, so it is enough to compare a hash with those in the buckets that close to its own: no pair is missed, and
each is compared in full.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

BANDS, BAND_BITS = 3, 16
HASH_BITS = BANDS * BAND_BITS
MAX_DISTANCE = 11
_CHUNK = 1 << 20  # pairs compared at a time: 50 MB
_BUCKETS = 1 << BAND_BITS


def _keys(hashes):
    """A key for each band, of bits b, b + 3, b + 6, ..., so that each has low and high frequencies: uint16 [3, n]."""
    bits = np.unpackbits(hashes.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    mixed = bits[:, :HASH_BITS].reshape(-1, BAND_BITS, BANDS).transpose(2, 0, 1)
    return np.packbits(np.ascontiguousarray(mixed), axis=2, bitorder="little").view("<u2")[..., 0]


def popcount(words: np.ndarray) -> np.ndarray:
    """How many bits of each uint64 are set: uint64 [n]; `words` is overwritten."""
    once = words >> np.uint64(1)
    once &= np.uint64(0x5555_5555_5555_5555)
    words -= once
    np.right_shift(words, np.uint64(2), out=once)
    once &= np.uint64(0x3333_3333_3333_3333)
    words &= np.uint64(0x3333_3333_3333_3333)
    words += once
    np.right_shift(words, np.uint64(4), out=once)
    words += once
    words &= np.uint64(0x0F0F_0F0F_0F0F_0F0F)
    words *= np.uint64(0x0101_0101_0101_0101)
    words >>= np.uint64(56)
    return words


def _masks(radius):
    """The 16-bit numbers of at most `radius` bits: uint16 [m]."""
    chosen = (bits for count in range(radius + 1) for bits in combinations(range(BAND_BITS), count))
    return np.array([sum(1 << bit for bit in bits) for bits in chosen], np.uint16)


class Bands:
    """Finds, for hashes of an array, those behind them within a Hamming distance of at most `most_distance`.

    hashes: uint64 [n], of which the lower 48 bits count.
    """

    def __init__(self, hashes: np.ndarray, max_distance: int):
        self._max_distance = max_distance
        self._hashes = hashes
        # A pair within d bits: d // 3 in one of the bands, and one bit less will do in those beyond the rest of d / 3.
        radii = [max_distance // BANDS - (band > max_distance % BANDS) for band in range(BANDS)]
        self._bands = [
            _Band(key, self._hashes, radius) for key, radius in zip(_keys(hashes), radii, strict=True) if radius >= 0
        ]

    def costs(self, queries: np.ndarray) -> np.ndarray:
        """How many pairs have to be compared for each of the queries, numbers into the hashes: int64."""
        return np.sum([band.counts(queries).sum(1) for band in self._bands], axis=0)

    def neighbours(self, queries: np.ndarray) -> np.ndarray:
        """The pairs (query, its neighbour behind it), numbers into the hashes: int64 [m, 2], in ascending order."""
        pair_keys = [pair for band in self._bands for pair in band.near(queries, self._hashes, self._max_distance)]
        if not pair_keys:
            return np.zeros((0, 2), np.int64)
        size = np.int64(max(1, len(self._hashes)))
        pairs = np.unique(np.concatenate(pair_keys))
        return np.stack(np.divmod(pairs, size), 1)


class _Band:
    """The rows in order of one 16-bit key, and the buckets to look into around a key."""

    def __init__(self, keys, hashes, radius):
        self._keys, self._masks = keys, _masks(radius)
        self._order = np.argsort(keys, kind="stable")
        self._hashes = hashes[self._order]
        counts = np.bincount(keys, minlength=_BUCKETS)
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def counts(self, queries):
        """Sizes of the buckets that each of the queries looks into: int64 [queries, masks]."""
        probes = (self._keys[queries, None] ^ self._masks).astype(np.int64)
        return self._starts[probes + 1] - self._starts[probes]

    def near(self, queries, hashes, max_distance) -> Iterator[np.ndarray]:
        """Arrays of query * n + neighbour, int64."""
        probes = (self._keys[queries, None] ^ self._masks).astype(np.int64)
        starts = self._starts[probes].ravel()
        counts = self._starts[probes + 1].ravel() - starts
        owners = np.repeat(np.arange(len(queries)), len(self._masks))
        filled = counts > 0
        starts, counts, owners = starts[filled], counts[filled], owners[filled]
        ends = np.cumsum(counts)
        begin = 0
        while begin < len(counts):
            done = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, done + _CHUNK, side="right")))
            yield self._compare(queries, owners[begin:end], starts[begin:end], counts[begin:end], hashes, max_distance)
            begin = end

    def _compare(self, queries, owners, starts, counts, hashes, max_distance):
        total = int(counts.sum())
        first = np.cumsum(counts) - counts
        positions = np.repeat(starts - first, counts)
        positions += np.arange(total)
        words = np.repeat(hashes[queries[owners]], counts)
        words ^= self._hashes[positions]
        near = np.flatnonzero(popcount(words) <= np.uint64(max_distance))
        owner = queries[owners[np.searchsorted(first, near, side="right") - 1]]
        neighbour = self._order[positions[near]]
        ahead = neighbour > owner
        return owner[ahead] * np.int64(len(hashes)) + neighbour[ahead]
