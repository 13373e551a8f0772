"""Aspect-ratio buckets: the table of sizes, the bucket of a row, and which buckets are too small to stand alone.

Widths and heights lie in the index, so all of it is arithmetic on integers and on quotients of two, which IEEE 754
rounds alike on every processor: a row is in the same bucket wherever it is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sd.errors import ArgumentError, InputError
from sd.flags.aspect import NAME, format_size, parse_aspect_buckets

_AREA_FACTOR = 2  # a listed bucket's area may differ from resolution squared by so much


@dataclass(frozen=True)
class BucketTable:
    """sizes: (width, height) in pixels of each bucket, by width/height, no two of which are equal."""

    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def from_flag(cls, text: str, resolution: int, multiple: int) -> "BucketTable":
        """The table of --aspect_buckets: a number of buckets, or a list of sizes.

        multiple: what every side must be a multiple of, the VAE's factor times the UNet's. Raises ArgumentError.
        """
        parsed = parse_aspect_buckets(text)
        if isinstance(parsed, int):
            return cls(_nearest_to_square(parsed, resolution, multiple))
        for size in parsed:
            if size[0] % multiple or size[1] % multiple:
                raise ArgumentError(
                    NAME, text, f": {format_size(size)}; VAE and UNet need sides that are multiples of {multiple}"
                )
            area = size[0] * size[1] / resolution**2
            if not 1 / _AREA_FACTOR <= area <= _AREA_FACTOR:
                raise ArgumentError(
                    NAME,
                    text,
                    f": {format_size(size)} has {area:.3g} times the area of --resolution {resolution}; expected 1/"
                    f"{_AREA_FACTOR} to {_AREA_FACTOR}, give the resolution of about that area",
                )
        return cls(parsed)

    def __len__(self) -> int:
        return len(self.sizes)

    def __str__(self) -> str:
        """`192x320,256x256,320x192`: as --aspect_buckets takes it."""
        return ",".join(map(format_size, self.sizes))

    @property
    def largest(self) -> tuple[int, int]:
        """(width, height) of the bucket with most pixels, of equal ones the longest: what memory has to hold."""
        return max(self.sizes, key=lambda size: (size[0] * size[1], max(size)))

    def spread(self) -> list[tuple[int, int]]:
        """The tallest, the squarest and the widest size, each once: enough for a look."""
        squarest = min(self.sizes, key=lambda size: max(size) / min(size))
        return list(dict.fromkeys([self.sizes[0], squarest, self.sizes[-1]]))

    def choose(self, widths: np.ndarray, heights: np.ndarray, enlarge: bool = False) -> np.ndarray:
        """The bucket of each row: int16 [n], -1 for none.

        widths, heights: int [n], 0 of a row without a readable image. The bucket of nearest aspect (on a logarithmic
        scale; of two equally near ones the first) among those that the image covers, with `enlarge` among all.
        """
        widths, heights = np.asarray(widths, np.int64), np.asarray(heights, np.int64)
        aspects = np.array([width / height for width, height in self.sizes])
        sizes = np.array(self.sizes, np.int64)
        own = widths / np.maximum(heights, 1)
        # On a logarithmic scale the middle of two aspects is the root of their product.
        chosen = np.searchsorted(np.sqrt(aspects[:-1] * aspects[1:]), own).astype(np.int16)
        if not enlarge:
            small = np.flatnonzero((widths < sizes[chosen, 0]) | (heights < sizes[chosen, 1]))
            chosen[small] = self._nearest_covered(widths[small], heights[small], own[small], aspects)
        chosen[(widths < 1) | (heights < 1)] = -1
        return chosen

    def _nearest_covered(self, widths, heights, own, aspects):
        chosen, best = np.full(len(own), -1, np.int16), np.full(len(own), np.inf)
        own = np.maximum(own, 1e-9)
        for number, (width, height) in enumerate(self.sizes):
            distance = np.maximum(own / aspects[number], aspects[number] / own)
            better = (distance < best) & (widths >= width) & (heights >= height)
            chosen[better], best[better] = number, distance[better]
        return chosen

    def exact(self, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """The bucket whose very size a row has, as those of a latent cache: int16 [n], -1 for none."""
        chosen = np.full(len(widths), -1, np.int16)
        for number, (width, height) in enumerate(self.sizes):
            chosen[(widths == width) & (heights == height)] = number
        return chosen

    def merge(self, rows: Sequence[int], group_size: int) -> np.ndarray:
        """Where the rows of each bucket go: int16 [buckets], its own number for a bucket that stays.

        rows: usable rows of each bucket. The smallest bucket with fewer than `group_size` rows goes to the one of
        nearest aspect that has rows, until none is left or a single one.
        """
        counts, goes_to = [int(count) for count in rows], np.arange(len(rows), dtype=np.int16)
        while True:
            non_empty = [number for number, count in enumerate(counts) if count]
            small = [number for number in non_empty if counts[number] < group_size]
            if not small or len(non_empty) == 1:
                return goes_to
            smallest = min(small, key=lambda number: counts[number])
            target = min(
                (number for number in non_empty if number != smallest), key=lambda n: self._distance(smallest, n)
            )
            counts[target], counts[smallest] = counts[target] + counts[smallest], 0
            goes_to[goes_to == smallest] = target

    def _distance(self, one, other):
        (width, height), (other_width, other_height) = self.sizes[one], self.sizes[other]
        ratio = width * other_height / (height * other_width)
        return max(ratio, 1 / ratio)


def covering_size(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    """(width, height) to which an image of `size` is resized so that it covers a bucket and no more."""
    width, height = size
    if bucket[0] * height >= bucket[1] * width:
        return bucket[0], max(bucket[1], height * bucket[0] // width)
    return max(bucket[0], width * bucket[1] // height), bucket[1]


def possible_sizes(resolution: int, multiple: int) -> list[tuple[int, int]]:
    """Every (width, height) in multiples of `multiple` with at most resolution squared pixels that cannot be longer on
    one side without being shorter on the other, from the square outwards."""
    max_blocks = resolution**2 // multiple**2
    sizes = [
        (side, max_blocks // side) for side in range(1, max_blocks + 1) if max_blocks // (max_blocks // side) == side
    ]
    sizes.sort(key=lambda size: (max(size) / min(size), size[0] < size[1]))
    return [(width * multiple, height * multiple) for width, height in sizes]


def _nearest_to_square(count, resolution, multiple):
    if resolution % multiple:
        raise ArgumentError(
            "resolution",
            resolution,
            f"; with --aspect_buckets {count} use a multiple of {multiple}, as VAE and UNet need",
        )
    sizes = possible_sizes(resolution, multiple)
    if count > len(sizes):
        listed = ", ".join(map(format_size, sizes))
        raise ArgumentError(
            NAME,
            count,
            f"; at --resolution {resolution} with sides in multiples of {multiple} there are {len(sizes)}: {listed}",
        )
    return tuple(sorted(sizes[:count], key=lambda size: size[0] / size[1]))


def check_cached(rows: Sequence[int], sizes: Sequence[tuple[int, int]], group_size: int, name: str) -> None:
    """Raise InputError where a bucket of a latent cache, whose shapes are fixed, has fewer rows than a group."""
    non_empty = [(count, size) for count, size in zip(rows, sizes, strict=True) if count]
    for count, size in non_empty:
        if count < group_size and len(non_empty) > 1:
            raise InputError(
                f"{name}: bucket {format_size(size)} holds {count} rows, fewer than a group of {group_size} samples, "
                f"and the shapes of a cache are fixed; make the cache with --aspect_group_size {group_size}, or train "
                "with a smaller group"
            )
