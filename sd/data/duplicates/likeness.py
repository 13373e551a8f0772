"""Whether two thumbnails show one picture: brighter, darker, re-encoded, resized or cut by a few percent.

The darker thumbnail A is fitted to the brighter B by least squares: B ~ gain A + offset + a small shift and stretch, to
first order (Lucas and Kanade, 1981), cut at white. What remains, as a share of B's own contrast, is the difference.
"""

import numpy as np

# Measured on re-encoded, halved, cut and brightened photographs and on distinct crops of them: docs/data.md.
MAX_DIFFERENCE = 0.08
MIN_CONTRAST = 4.0  # standard deviation of luma in 255: below it, noise decides the hash
MIN_CORRELATION = 0.85  # of luma without a fit; spares most of the fits
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_WHITE = 250  # a mean of pixels from here on holds some that were cut
_MAX_STRETCH = 0.06  # of the half side: what a stretch or shift of one unit moves the edge
_STRETCH_COST = 0.002  # of the contrast, for a shift or stretch of one unit


def contrast(thumbs: np.ndarray) -> np.ndarray:
    """Standard deviation of luma of uint8 [n, s, s, 3]: float32 [n]."""
    return (thumbs.astype(np.float32) @ _LUMA).std((1, 2))


def are_similar(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether each pair of uint8 [n, s, s, 3] shows one picture: bool [n]."""
    alike = correlation(one, other) >= MIN_CORRELATION
    alike[alike] = difference(one[alike], other[alike]) <= MAX_DIFFERENCE
    return alike


def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the luma of each pair of uint8 [n, s, s, 3], 0 without contrast: float64 [n]."""
    first, second = (
        (thumbs @ _LUMA).reshape(len(thumbs), thumbs.shape[1] * thumbs.shape[2]) for thumbs in (one, other)
    )
    first -= first.mean(1, keepdims=True)
    second -= second.mean(1, keepdims=True)
    products = np.einsum("nk,nk->n", first, second).astype(np.float64)
    squares = np.einsum("nk,nk->n", first, first).astype(np.float64) * np.einsum("nk,nk->n", second, second)
    return products / np.sqrt(np.maximum(squares, 1e-9))


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What a fit of the darker to the brighter of each pair leaves, as a share of its contrast: float64 [n].

    one, other: uint8 [n, s, s, 3]. 0 for equal ones; symmetric.
    """
    dark, bright = _by_brightness(one, other)
    terms = _terms(dark)  # [n, 6, k]
    target = bright.reshape(len(bright), terms.shape[2])
    luma = bright @ _LUMA
    spread = 3 * np.square(luma - luma.mean((1, 2), keepdims=True)).sum((1, 2), dtype=np.float64)
    weighted = terms * (target < _WHITE)[:, None]
    normal = np.matmul(weighted, terms.transpose(0, 2, 1)).astype(np.float64)
    right = np.matmul(weighted, target[..., None]).astype(np.float64)
    cost = np.zeros((len(normal), 6))
    cost[:, :2] = 1e-3  # keeps the matrix regular where a thumbnail is of one colour
    cost[:, 2:] = _STRETCH_COST * spread[:, None] + 1e-3
    normal[:, range(6), range(6)] += cost
    fit = np.linalg.solve(normal, right)[..., 0]
    fitted = np.matmul(fit[:, None].astype(np.float32), terms)[:, 0].clip(0, 255)
    left = np.square(target - fitted).sum(1, dtype=np.float64) + (cost * np.square(fit))[:, 2:].sum(1)
    return left / np.maximum(spread, 1e-9)


def _by_brightness(one, other):
    one, other = one.astype(np.float32), other.astype(np.float32)
    swap = (one.sum((1, 2, 3)) > other.sum((1, 2, 3)))[:, None, None, None]
    return np.where(swap, other, one), np.where(swap, one, other)


def _terms(dark):
    """What the fit is a sum of: the picture, a constant, and its change by a shift and a stretch along each side."""
    side = dark.shape[1]
    unit = np.float32(_MAX_STRETCH * side / 2)
    down, right = np.gradient(dark, axis=(1, 2))
    position = ((np.arange(side, dtype=np.float32) - (side - 1) / 2) / side * 2).astype(np.float32)
    across, along = position[None, None, :, None], position[None, :, None, None]
    terms = (dark, np.ones_like(dark), unit * right, unit * down, unit * right * across, unit * down * along)
    return np.stack(terms, 1).reshape(len(dark), len(terms), side * side * 3)
