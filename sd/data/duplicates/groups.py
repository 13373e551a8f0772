"""Fingerprints -> groups of duplicates: each has a representative, its largest picture, and is close to that alone.

Pictures are taken from the largest to the smallest. One that no group has yet becomes a representative, and those
behind it that are like it join: equal bytes, or a hash within a Hamming distance and a thumbnail that passes the check.
A group is therefore never wider than twice the limits: pictures are not chained through a row of others.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sd.data.duplicates.bands import Bands
from sd.data.duplicates.fingerprint import Fingerprints
from sd.data.duplicates.likeness import MIN_CONTRAST, are_similar, contrast
from sd.runtime import usable_cores

_MAX_COMPARED = 1 << 22  # pairs of hashes looked at before the pictures that were found leave
_QUERIES = 4096  # pictures that become representatives, at most, before those that joined them leave
_WAVE = 8192  # pairs of thumbnails compared before the pictures that were found leave
_CHECKED = 256  # by one thread at a time: 20 MB
_REBUILDS = 16  # how often the index is rebuilt of the pictures that are left


def find_groups(
    prints: Fingerprints, max_distance: int, progress: Callable[[int], object] = lambda count: None
) -> tuple[np.ndarray, np.ndarray]:
    """(representative of each row, itself where it has no duplicate; whether it was found by its bytes).

    int64 [n] and bool [n]. Unreadable rows are nobody's duplicates. Rows of equal size are taken in their order.
    progress(count): called with the number of rows done since the last call.
    """
    owner = np.arange(len(prints))
    order = _by_size(prints)
    order = order[prints.readable[order]]
    first = _first_of_equal(prints.digests[order])
    exact = np.zeros(len(prints), bool)
    owner[order] = order[first]
    exact[order] = first != np.arange(len(order))
    progress(len(prints) - int(np.count_nonzero(first == np.arange(len(order)))))
    single = order[first == np.arange(len(order))]
    plain = np.concatenate(
        [contrast(prints.thumbs[single[a : a + _WAVE]]) < MIN_CONTRAST for a in range(0, len(single), _WAVE)]
        or [np.zeros(0, bool)]
    )
    progress(int(np.count_nonzero(plain)))
    rows = single[~plain]
    if len(rows):
        _join_similar(rows, prints, max_distance, owner, progress)
    return owner[owner], exact  # an exact duplicate of a picture that has joined a group belongs to that


def _by_size(prints):
    """Rows by falling number of pixels, then of bytes, then by rising number."""
    return np.lexsort((np.arange(len(prints)), -prints.sizes[:, 1], -prints.sizes[:, 0]))


def _first_of_equal(digests):
    """For each of uint64 [n, 2] the first place that has the same value: int64 [n]."""
    if not len(digests):
        return np.zeros(0, np.int64)
    _, first, which = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    return first[which.reshape(-1)]


def _join_similar(rows, prints, max_distance, owner, progress):
    """Set the `owner` of those of `rows` (from the largest to the smallest picture) that are like one before them."""
    free = np.ones(len(rows), bool)
    step = -(-len(rows) // _REBUILDS)
    for start in range(0, len(rows), step):
        left = start + np.flatnonzero(free[start:])
        index = Bands(prints.hashes[rows[left]], max_distance)
        stop = int(np.searchsorted(left, start + step))
        at = 0
        while at < stop:
            queries = at + np.flatnonzero(free[left[at : min(stop, at + _QUERIES)]])
            num_queries = max(1, int(np.searchsorted(np.cumsum(index.costs(queries)), _MAX_COMPARED)))
            _claim(left[index.neighbours(queries[:num_queries])], rows, prints, owner, free)
            at = int(queries[num_queries]) if num_queries < len(queries) else at + _QUERIES
        progress(min(step, len(rows) - start))


def _claim(pairs, rows, prints, owner, free):
    """Have each free row of `pairs` (in ascending order; numbers into `rows`) take its free neighbours that are alike.

    Thumbnails are compared a few thousand at a time, and only of those that are free by then.
    """
    begins = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    ends = np.append(begins[1:], len(pairs))
    at = 0
    while at < len(begins):
        upto = max(at + 1, int(np.searchsorted(ends, begins[at] + _WAVE, side="right")))
        wave = pairs[begins[at] : ends[upto - 1]]
        wave = wave[free[wave].all(1)]
        wave = wave[_are_similar(rows[wave], prints)]
        for query, neighbour in wave.tolist():
            if free[query] and free[neighbour]:
                free[neighbour] = False
                owner[rows[neighbour]] = rows[query]
        at = upto


def _are_similar(pairs, prints):
    """Whether the thumbnails of each pair of rows pass: bool [m]."""

    def check(start):
        part = pairs[start : start + _CHECKED]
        return are_similar(prints.thumbs[part[:, 0]], prints.thumbs[part[:, 1]])

    starts = range(0, len(pairs), _CHECKED)
    if len(starts) < 2:
        return check(0) if len(pairs) else np.zeros(0, bool)
    with ThreadPoolExecutor(usable_cores()) as pool:
        return np.concatenate(list(pool.map(check, starts)))
