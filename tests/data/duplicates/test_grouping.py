"""Grouping against brute force over all pairs, the check of thumbnails against NumPy's least squares in float64."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sd.data.duplicates.bands import HASH_BITS, MAX_DISTANCE, Bands, popcount
from sd.data.duplicates.fingerprint import Fingerprints
from sd.data.duplicates.groups import find_groups
from sd.data.duplicates.likeness import MIN_CONTRAST, are_similar, contrast, correlation, difference

_BITS = np.uint64(1) << np.arange(HASH_BITS, dtype=np.uint64)
_LUMA = (0.299, 0.587, 0.114)


def distance(one, other):
    return bin(int(one) ^ int(other)).count("1")


def clustered_hashes(draws, count, num_centres, most_flips):
    """Hashes around a few centres, so that all distances up to and beyond the limits come up."""
    centres = draws.integers(0, 2**HASH_BITS, num_centres, dtype=np.uint64)
    hashes = centres[draws.integers(num_centres, size=count)]
    for at in range(count):
        for bit in draws.choice(HASH_BITS, draws.integers(0, most_flips + 1), replace=False):
            hashes[at] ^= _BITS[bit]
    return hashes


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(0, MAX_DISTANCE), st.integers(1, 70))
def test_bands_find_each_pair_within_the_distance_once(seed, most, count):
    draws = np.random.default_rng(seed)
    hashes = clustered_hashes(draws, count, 1 + count // 20, most)
    bands = Bands(hashes, most)
    pairs = [[i, j] for i in range(count) for j in range(i + 1, count) if distance(hashes[i], hashes[j]) <= most]
    assert bands.neighbours(np.arange(count)).tolist() == pairs
    some = np.unique(draws.integers(count, size=5))
    assert bands.neighbours(some).tolist() == [pair for pair in pairs if pair[0] in some]
    assert (bands.costs(some) >= [sum(pair[0] == query for pair in pairs) for query in some]).all()


def test_popcount_counts_bits():
    words = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    words[:2] = 0, 2**64 - 1
    assert popcount(words.copy()).tolist() == [bin(word).count("1") for word in words.tolist()]


def make_prints(draws, count):
    """Fingerprints with equal files, near and far hashes, like and unlike thumbnails, plain and unreadable pictures."""
    pictures = draws.integers(0, 256, (4, 16, 16, 3))
    which = draws.integers(4, size=count)
    prints = Fingerprints.empty(count)
    prints.hashes[:] = clustered_hashes(draws, 4, 2, 6)[which]
    for at in range(count):
        prints.hashes[at] ^= np.bitwise_or.reduce(draws.choice(_BITS, draws.integers(0, 8)), initial=np.uint64(0))
    noise = draws.normal(0, draws.uniform(0, 60, (count, 1, 1, 1)), (count, 16, 16, 3))
    prints.thumbs[:] = np.clip(pictures[which] + noise, 0, 255)
    prints.thumbs[draws.random(count) < 0.1] = 128
    prints.sizes[:] = draws.integers(1, 4, (count, 2))
    prints.digests[:, 0] = draws.integers(0, 2 * count, count)
    prints.readable[:] = draws.random(count) < 0.9
    return prints


def brute_force(prints, most):
    """Each picture, from the largest, joins the first representative that is like it, or becomes one."""
    rows = sorted(np.flatnonzero(prints.readable).tolist(), key=lambda row: (*(-prints.sizes[row]), row))
    owner, representatives, by_bytes = list(range(len(prints))), [], {}
    has_contrast = contrast(prints.thumbs) >= MIN_CONTRAST
    for row in rows:
        equal = by_bytes.setdefault(tuple(prints.digests[row].tolist()), row)
        if equal != row:
            owner[row] = owner[equal]
            continue
        like = (
            other
            for other in representatives
            if has_contrast[row]
            and has_contrast[other]
            and distance(prints.hashes[row], prints.hashes[other]) <= most
            and are_similar(prints.thumbs[other][None], prints.thumbs[row][None])[0]
        )
        owner[row] = next(like, row)
        if owner[row] == row:
            representatives.append(row)
    return owner


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, MAX_DISTANCE), st.integers(0, 60))
def test_groups_are_those_of_all_pairs(seed, most, count):
    prints = make_prints(np.random.default_rng(seed), count)
    done = []
    owner, exact = find_groups(prints, most, done.append)
    assert owner.tolist() == brute_force(prints, most)
    assert sum(done) == count
    digests = prints.digests[:, 0].tolist()
    equal = np.array([digests.count(digest) > 1 for digest in digests], bool)
    assert not exact[~equal].any()


def test_a_row_of_small_steps_is_no_group():
    """Neighbours are within the distance, ends are not: whoever is too far from the representative stays out."""
    prints = Fingerprints.empty(6)
    prints.thumbs[:] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    prints.hashes[:] = np.cumsum(_BITS[: 6 * 4].reshape(6, 4).sum(1, dtype=np.uint64), dtype=np.uint64)
    prints.digests[:, 0] = range(6)
    prints.readable[:] = True
    owner, _ = find_groups(prints, 8)
    assert owner.tolist() == [0, 0, 0, 3, 3, 3]


def reference_difference(one, other):
    """The docstring of `likeness`, a pair at a time, by numpy.linalg.lstsq with the costs as further equations."""
    dark, bright = sorted((one.astype(np.float64), other.astype(np.float64)), key=np.sum)
    side = len(dark)
    down, right = np.gradient(dark, axis=(0, 1))
    place = (np.arange(side) - (side - 1) / 2) / side * 2
    unit = 0.06 * side / 2
    terms = [dark, np.ones_like(dark), unit * right, unit * down]
    terms += [unit * right * place[None, :, None], unit * down * place[:, None, None]]
    matrix = np.stack([term.ravel() for term in terms], 1)
    target = bright.ravel()
    luma = bright @ _LUMA
    spread = 3 * np.square(luma - luma.mean()).sum()
    cost = np.array([1e-3, 1e-3, *[0.002 * spread + 1e-3] * 4])
    known = target < 250
    rows = np.concatenate([matrix[known], np.diag(np.sqrt(cost))])
    fit = np.linalg.lstsq(rows, np.concatenate([target[known], np.zeros(6)]), rcond=None)[0]
    left = np.square(target - np.clip(matrix @ fit, 0, 255)).sum() + (cost * fit**2)[2:].sum()
    return left / spread


def test_difference_is_that_of_least_squares():
    """float32 sums of 768 products of values up to 255, condition up to about 1e3: 1e-3 of the result."""
    draws = np.random.default_rng(1)
    one = draws.integers(0, 256, (40, 16, 16, 3), np.uint8)
    smooth = np.cumsum(draws.normal(0, 8, (40, 16, 16, 3)), axis=1) + 128
    one[20:] = smooth[20:].clip(0, 255)
    other = np.clip(one * draws.uniform(0.7, 1.4, (40, 1, 1, 1)) + draws.normal(0, 10, one.shape), 0, 255).astype(
        np.uint8
    )
    actual = difference(one, other)
    np.testing.assert_allclose(
        actual, [reference_difference(*pair) for pair in zip(one, other, strict=True)], rtol=1e-3
    )
    np.testing.assert_array_equal(actual, difference(other, one))
    expected = [np.corrcoef((a @ _LUMA).ravel(), (b @ _LUMA).ravel())[0, 1] for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(correlation(one, other), expected, atol=1e-4)


def test_of_two_pictures_of_one_colour_neither_is_like_the_other():
    flat = np.full((1, 16, 16, 3), 200, np.uint8)
    assert contrast(flat)[0] < MIN_CONTRAST
    assert np.isfinite(difference(flat, flat)).all() and not are_similar(flat, flat)[0]
