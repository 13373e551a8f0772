"""The value of --aspect_buckets: how many buckets, or which."""

import re

from sd.errors import ArgumentError

NAME = "aspect_buckets"
_EXPECTED = "; expected a number of buckets, or sizes in pixels such as 256x256,320x192,192x320"


def parse_aspect_buckets(text: str) -> int | tuple[tuple[int, int], ...]:
    """The number of buckets, or their (width, height) sorted by width/height. Raises ArgumentError."""
    words = [word.strip() for word in str(text).split(",")]
    if len(words) == 1 and re.fullmatch(r"[+-]?\d+", words[0]):
        if int(words[0]) < 1:
            raise ArgumentError(NAME, text, "; expected at least 1")
        return int(words[0])
    sizes: list[tuple[int, int]] = []
    for word in words:
        match = re.fullmatch(r"(\d+)[xX](\d+)", word)
        if match is None or not all(map(int, match.groups())):
            raise ArgumentError(NAME, text, f": {word!r} is no size{_EXPECTED}" if word else _EXPECTED)
        size = int(match[1]), int(match[2])
        for other in sizes:
            if size[0] * other[1] == size[1] * other[0]:
                problem = "comes twice" if size == other else f"has the aspect ratio of {format_size(other)}"
                raise ArgumentError(NAME, text, f": {format_size(size)} {problem}; leave one out")
        sizes.append(size)
    return tuple(sorted(sizes, key=lambda size: size[0] / size[1]))


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """As `parse_aspect_buckets`, of a list alone."""
    sizes = parse_aspect_buckets(text)
    if isinstance(sizes, int):
        raise ArgumentError(NAME, text, _EXPECTED)
    return sizes


def format_size(size: tuple[int, int]) -> str:
    """`320x192`, width first."""
    return f"{size[0]}x{size[1]}"
