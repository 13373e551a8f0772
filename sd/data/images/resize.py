"""Resizing, for every path that makes pictures smaller or larger.

Lanczos, the default, and bilinear by cykooz-resizer (the Rust crate fast_image_resize), five times as fast as Pillow.
Its filters are Pillow's: they widen when shrinking, and values are cut to 0..255 between the passes, of which the
height is the first. Against Pillow's two passes in that order no pixel differs by more than two levels, since
coefficients are rounded to 16 bits. The arithmetic is in integers: the same bits on every processor and in any thread.

The other filters are left to Pillow, in the same order. The library has no Hamming, its box filter leaves pixels black,
and its bicubic one reads past a buffer where a weight at the picture's edge is exactly zero, which ends the process.
"""

import math
import threading

import numpy as np
from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

# Stands in a checkpoint's settings; another name means other pixels. Of the earlier one JPEGs are decoded larger.
RESIZER, EARLIER_RESIZER = "cykooz-resizer 4 jpeg-1.05", "cykooz-resizer 4"
FOUR_BYTES = "CMYK"  # the mode of Pillow's for four plain bytes a pixel: here R, G, B and one without meaning

_METHODS = {
    "lanczos": ResizeAlg.convolution(FilterType.lanczos3),
    "bilinear": ResizeAlg.convolution(FilterType.bilinear),
    "linear": ResizeAlg.convolution(FilterType.bilinear),
    "nearest": ResizeAlg.nearest(),
}
_PILLOW = {
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_local = threading.local()


def resize(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    interpolation: str = "lanczos",
) -> np.ndarray:
    """`box` (left, top, right, bottom; all of the image if None) of an image at `size` (width, height), as Pillow's
    `resize` does it: uint8 [height, width, channels], [height, width] for mode L.

    image: of mode RGB, L or CMYK, whose channels are resized apart. interpolation: one of
    sd.flags.arguments.INTERPOLATIONS.
    """
    box = box or (0, 0, *image.size)
    if interpolation in _PILLOW:
        return np.asarray(_by_pillow(image, size, box, interpolation))
    if image.mode != FOUR_BYTES:
        target = Image.new(image.mode, size)
        _resize_into(target, image, box, interpolation)
        return np.asarray(target)
    pixels = np.empty((size[1], size[0], 4), np.uint8)
    # Pillow's image takes the array for its memory, so what is resized into it need not be copied out.
    target = Image.frombuffer(FOUR_BYTES, size, pixels, "raw", FOUR_BYTES, 0, 1)
    _resize_into(target, image, box, interpolation)
    return pixels


def to_planes(pixels: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3 or 4], of `resize`, -> [3, h, w]. Shifts of 32-bit numbers take a third of the time of a
    transposition."""
    if pixels.shape[2] == 3:
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    words = pixels.view("<u4")[..., 0]
    planes = np.empty((3, *words.shape), np.uint8)
    planes[0] = words  # its lowest byte
    for number in (1, 2):
        np.right_shift(words, 8 * number, out=planes[number], casting="unsafe")
    return planes


def _resize_into(target, image, box, interpolation):
    if not hasattr(_local, "resizer"):  # one a thread: it keeps a buffer
        _local.resizer = Resizer()
    left, top, right, bottom = box
    right, bottom = min(right, image.width), min(bottom, image.height)
    crop_box = CropBox(left, top, _length(left, right, image.width), _length(top, bottom, image.height))
    _local.resizer.resize_pil(image, target, ResizeOptions(_METHODS[interpolation], False, crop_box))


def _by_pillow(image, size, box, interpolation):
    """In two calls, since Pillow takes the width first for some shapes."""
    left, top, right, bottom = box
    right, bottom = min(right, image.width), min(bottom, image.height)
    flat = image.resize((image.width, size[1]), _PILLOW[interpolation], box=(0, top, image.width, bottom))
    return flat.resize(size, _PILLOW[interpolation], box=(left, 0, right, size[1]))


def _length(start, end, limit):
    """end - start, rounded so that start and it together stay within the image."""
    length = end - start
    return length if start + length <= limit else math.nextafter(length, 0)


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height once the short side is `short_side`."""
    if width <= height:
        return short_side, max(short_side, int(short_side * height / width))
    return max(short_side, int(short_side * width / height)), short_side
