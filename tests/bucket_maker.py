"""Packed pictures of several shapes for tests: captioned stripes, and their file list."""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from sd.data.parts.part import PartWriter
from sd.data.parts.record import encode_row
from tests.data_maker import caption, write_lists

BUCKETS = "24x40,32x32,40x24"
SIZES = ((24, 40), (32, 32), (40, 24))


@lru_cache(maxsize=1000)
def picture(number, size):
    """PNG bytes of smooth colours, (width, height) = size."""
    draw = np.random.default_rng(number)
    small = Image.fromarray(draw.integers(0, 255, (3, 3, 3), np.uint8))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()


def write_part(path, number, sizes):
    """A part with a row of each of the given (width, height)."""
    with PartWriter(path) as part:
        for row, size in enumerate(sizes):
            part.add(encode_row(caption(number, row), picture(100 * number + row, size)), *size)


def make_pictures(folder, sizes_of_parts, weight=1.0):
    """Parts with rows of the given sizes, and their file list."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"part-{number:06d}.gz" for number in range(len(sizes_of_parts))]
    for number, (part, sizes) in enumerate(zip(parts, sizes_of_parts, strict=True)):
        write_part(part, number, sizes)
    return write_lists(folder, (weight, parts))


def mixed(count, seed=0):
    """`count` sizes: half upright, a third lying, the rest square; each a little larger than its bucket."""
    draw = np.random.default_rng(seed)
    kinds = draw.choice(3, count, p=[0.5, 0.17, 0.33])
    return [tuple(side + int(draw.integers(5)) for side in SIZES[kind]) for kind in kinds]
