"""Samples that a run leaves out: its own numbering, without gaps, mapped to the numbers of the order."""

from bisect import bisect_right
from collections.abc import Iterable

from sd.errors import InputError

Interval = tuple[int, int]


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Intervals [first, stop) of sample numbers, sorted, those that meet made one. Raises InputError for an empty or
    negative one."""
    joined: list[Interval] = []
    for first, stop in sorted((int(first), int(stop)) for first, stop in intervals):
        if not 0 <= first < stop:
            raise InputError(f"samples {first} to {stop} cannot be left out; expected 0 <= first < stop")
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], stop)
        else:
            joined.append((first, stop))
    return joined


class Gaps:
    """The order without some intervals of its samples: sample k of the run is number `number(k)` of the order."""

    def __init__(self, intervals: Iterable[Interval] = ()):
        self.intervals = merged(intervals)
        self._starts: list[int] = []  # of each interval: the sample of the run that comes after it
        self._widths = [0]  # numbers left out up to and with each interval
        for first, stop in self.intervals:
            self._starts.append(first - self._widths[-1])
            self._widths.append(self._widths[-1] + stop - first)

    def number(self, sample: int) -> int:
        """The number in the order of the run's sample `sample`, both from 0."""
        return sample + self._widths[bisect_right(self._starts, sample)]

    def contains(self, first: int, stop: int) -> bool:
        """Whether all numbers of [first, stop) are left out."""
        return any(start <= first and stop <= end for start, end in self.intervals)
