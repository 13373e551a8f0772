"""FID, CMMD and CLIP score as arithmetic on features, in float64; no model and no picture is known here."""

import numpy as np

from sd.errors import InputError

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
_KERNEL_ROWS = 1024


class Moments:
    """Count, sum and sum of outer products of features seen so far: all that FID needs of them."""

    def __init__(self, width: int):
        self.count = 0
        self._sum = np.zeros(width)
        self._outer = np.zeros([width, width])
        self._origin: np.ndarray | None = None

    def add(self, features: np.ndarray) -> None:
        """Take in features [N, D]. They are counted from the first one on, so that large means cost no digits."""
        features = np.asarray(features, np.float64)
        if len(features) == 0:
            return
        self._origin = features[0] if self._origin is None else self._origin
        features = features - self._origin
        self.count += len(features)
        self._sum += features.sum(0)
        self._outer += features.T @ features

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [D] and unbiased covariance [D, D]. Raises InputError for fewer than two features."""
        if self._origin is None or self.count < 2:
            raise InputError(f"{self.count} pictures have no covariance; FID needs at least two")
        mean = self._sum / self.count
        covariance = (self._outer - self.count * np.outer(mean, mean)) / (self.count - 1)
        return mean + self._origin, covariance


def frechet_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """Squared Frechet distance of two Gaussians (arXiv 1706.08500, eq. 6), the FID of their features.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2). The last trace is that of (A^1/2 B A^1/2)^1/2, a symmetric matrix
    whose eigenvalues are real, so no imaginary rest has to be thrown away when A or B is singular.
    """
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    between = np.linalg.eigvalsh(root @ covariance_b @ root)
    overlap = np.sqrt(np.clip(between, 0, None)).sum()
    shift = np.sum((np.asarray(mean_a) - mean_b) ** 2)
    distance = float(shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap)
    return max(0.0, distance)  # of equal Gaussians the rounding alone is left, which may be below


def cmmd(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """1000 times the squared maximum mean discrepancy of pictures' CLIP features [N, D] and [M, D] (arXiv 2401.09603):
    features of length one, a Gaussian kernel exp(-|a - b|^2 / (2 * 10^2)), and the biased estimate, as published."""
    if not len(features_a) or not len(features_b):
        raise InputError("CMMD of no pictures; expected at least one on each side")
    a, b = (_unit(np.asarray(features, np.float64)) for features in (features_a, features_b))
    return CMMD_SCALE * (_mean_kernel(a, a) + _mean_kernel(b, b) - 2 * _mean_kernel(a, b))


def _unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _mean_kernel(a, b):
    """Mean over all pairs of exp(-|a - b|^2 / (2 sigma^2)) - 1; the ones cancel, and with them the lost digits."""
    total = 0.0
    for start in range(0, len(a), _KERNEL_ROWS):  # |a - b|^2 = 2 - 2 a.b of features of length one
        products = a[start : start + _KERNEL_ROWS] @ b.T
        total += float(np.expm1((products - 1) / CMMD_SIGMA**2).sum())
    return total / (len(a) * len(b))


def clip_scores(image_features: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    """CLIP score of each picture with its text: their cosine, or 0 if that is negative (arXiv 2104.08718, w = 1).

    Features [N, D] each. MLPerf's figures are means of these; torchmetrics' are 100 times as large.
    """
    images = np.asarray(image_features, np.float64)
    texts = np.asarray(text_features, np.float64)
    norms = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    return np.maximum((images * texts).sum(1) / norms, 0)
