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
) -> Image.Image:
    """`box` (left, top, right, bottom; all of the image if None) of an image at `size`, as Pillow's `resize` does it.

    image: of mode RGB, L or CMYK, whose channels are resized apart. interpolation: one of
    sd.flags.arguments.INTERPOLATIONS.
    """
    if interpolation in _PILLOW:
        return _by_pillow(image, size, box or (0, 0, *image.size), interpolation)
    resized = Image.new(image.mode, size)
    _resize_into(resized, image, box or (0, 0, *image.size), interpolation)
    return resized


def resize_array(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    interpolation: str = "lanczos",
) -> np.ndarray:
    """As `resize`, of an image of mode RGB or CMYK: uint8 [height, width, 3], of CMYK [height, width, 4], which this
    thread's next call overwrites."""
    if interpolation in _PILLOW or image.mode != FOUR_BYTES:
        return np.asarray(resize(image, size, box, interpolation))
    target, pixels = _target(size)
    _resize_into(target, image, box or (0, 0, *image.size), interpolation)
    return pixels


def resize_planes(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    interpolation: str = "lanczos",
) -> np.ndarray:
    """As `resize`, as planes of the first three channels, uint8 [3, height, width]. image: of mode RGB or CMYK."""
    return _planes(resize_array(image, size, box, interpolation))


def _target(size):
    """This thread's image of four bytes a pixel and the array that is its memory, so that what is resized into it need
    not be copied out; the same until the size changes."""
    target, _ = held = getattr(_local, "target", (None, None))
    if target is None or target.size != size:
        pixels = np.empty((size[1], size[0], 4), np.uint8)
        held = Image.frombuffer(FOUR_BYTES, size, pixels, "raw", FOUR_BYTES, 0, 1), pixels
        _local.target = held
    return held


def _planes(pixels):
    """uint8 [h, w, 3 or 4] -> [3, h, w]. Shifts of 32-bit numbers take a third of the time of a transposition."""
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
