"""Distributions of numbers as lines of text: a histogram, and least, greatest, median and mean."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def histogram(values: npt.ArrayLike, edges: Sequence[float]) -> list[str]:
    """Lines `low-high  share  bar`, one for each range that starts at an edge; the last is open."""
    values = np.asarray(values)
    ranges = np.searchsorted(edges, values, side="right") - 1
    lines = []
    for at, low in enumerate(edges):
        share = float((ranges == at).mean()) if len(values) else 0.0
        high = f"-{edges[at + 1] - 1}" if at + 1 < len(edges) else "+"
        name = f"{low}" if high == f"-{low}" else f"{low}{high}"
        lines.append(f"    {name:>10} {share:7.1%}  {'#' * round(40 * share)}".rstrip())
    return lines


def summary_of(values: Sequence[float] | np.ndarray, unit: str) -> str:
    """`20 to 400 characters, median 80, mean 95.1` of a sequence of numbers; `none` of an empty one."""
    if not len(values):
        return "none"
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:.0f} to {high:.0f} {unit}, median {middle:.0f}, mean {np.mean(values):.1f}"
