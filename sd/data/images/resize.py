"""Resize and crop in one: only the pixels of the crop are worked out, as banded matrix products.

The result is Pillow's `resize` (filters that widen when shrinking; first the width, then the height, cut to 0..255 in
between) followed by `crop`, to within one level: here nothing is rounded between the passes. Pillow 13 does the height
first where that shrinks more, which moves overshoot at hard edges by many levels; one order for all is kept here.
"""

import functools

import cv2
import numpy as np

_BLOCK = 16  # output pixels a matrix product: more waste work on the zeros of the band, fewer waste calls


def _lanczos(x):
    """sinc(x) sinc(x / 3), with sin(3a) = 3 sin(a) - 4 sin(a)**3 so that one sine is enough."""
    third = np.pi / 3 * x
    sine = np.sin(third)
    centre = np.abs(third) < 1e-6
    return np.where(centre, 1.0, (3 - 4 * sine * sine) * sine * sine / (3 * np.square(np.where(centre, 1.0, third))))


def _bicubic(x):
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)


def _triangle(x):
    return 1 - np.abs(x)


def _box(x):
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def _hamming(x):
    return np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x))


# Name -> (kernel, half of its width in pixels of the coarser grid).
FILTERS = {
    "lanczos": (_lanczos, 3.0),
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_triangle, 1.0),
    "linear": (_triangle, 1.0),
    "hamming": (_hamming, 1.0),
    "box": (_box, 0.5),
    "nearest": (None, 0.0),
}


def shown_size(width, height, short_side):
    """Width and height once the short side is `short_side`."""
    if width <= height:
        return short_side, max(short_side, int(short_side * height / width))
    return max(short_side, int(short_side * width / height)), short_side


def resize_and_crop(pixels, size, left, top, resolution, interpolation="lanczos"):
    """The crop [top:top + resolution, left:left + resolution] of `pixels` resized to `size`.

    pixels: uint8 [h, w, 3]; size: (width, height). Returns uint8 [3, resolution, resolution].
    """
    height, width = pixels.shape[:2]
    x_scale, y_scale = width / size[0], height / size[1]
    if interpolation == "nearest":
        steps = np.arange(resolution) + 0.5
        xs, ys = ((left + steps) * x_scale).astype(int), ((top + steps) * y_scale).astype(int)
        return np.ascontiguousarray(pixels[ys[:, None], xs].transpose(2, 0, 1))
    kernel, support = FILTERS[interpolation]
    columns, x0, x1 = _weights(width, left, x_scale, resolution, kernel, support)
    lines, y0, y1 = _weights(height, top, y_scale, resolution, kernel, support)
    planes = np.empty((3, y1 - y0, x1 - x0), np.float32)
    for plane, channel in zip(planes, cv2.split(pixels[y0:y1, x0:x1]), strict=True):
        plane[:] = channel

    narrow = np.empty((3 * (y1 - y0), resolution), np.float32)
    for at, span, band in columns:
        np.matmul(planes.reshape(-1, x1 - x0)[:, span], band.T, out=narrow[:, at])
    narrow = np.clip(narrow, 0, 255, out=narrow).reshape(3, y1 - y0, resolution)

    crop = np.empty((3, resolution, resolution), np.float32)
    for at, span, band in lines:
        np.matmul(band, narrow[:, span], out=crop[:, at])
    crop += 0.5
    return np.clip(crop, 0, 255, out=crop).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _weights(size, start, scale, resolution, kernel, support):
    """How output pixels are made of source pixels [first, last), in blocks: (output slice, source slice, matrix).

    Source slices count from `first`; each row of a matrix sums to 1. Returns (blocks, first, last).
    """
    widen = max(scale, 1.0)
    centre = (start + np.arange(resolution) + 0.5) * scale
    low = np.maximum((centre - support * widen + 0.5).astype(int), 0)
    high = np.minimum((centre + support * widen + 0.5).astype(int), size)
    at = low[:, None] + np.arange((high - low).max())
    taps = kernel((at - (centre[:, None] - 0.5)) / widen)
    taps[at >= high[:, None]] = 0
    taps /= taps.sum(1, keepdims=True)
    first, last = int(low[0]), int(high[-1])
    dense = np.zeros((resolution, last - first + taps.shape[1]), np.float32)
    dense[np.arange(resolution)[:, None], at - first] = taps
    blocks = []
    for begin in range(0, resolution, _BLOCK):
        block = slice(begin, min(begin + _BLOCK, resolution))
        span = slice(low[begin] - first, high[block.stop - 1] - first)
        blocks.append((block, span, dense[block, span].copy()))  # a view would keep all of `dense` in the cache
    return blocks, first, last
