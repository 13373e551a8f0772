"""Resizing, for every path that makes pictures smaller or larger.

Lanczos, the default, and bilinear by cykooz-resizer (the Rust crate fast_image_resize), five times as fast as Pillow.
Its filters are Pillow's: they widen when shrinking, and values are cut to 0..255 between the passes, of which the
height is the first. Against Pillow's two passes in that order no pixel differs by more than two levels, since
coefficients are rounded to 16 bits. The arithmetic is in integers: the same bits on every processor and in any thread.

The other filters are left to Pillow, in the same order. The library has no Hamming, its box filter leaves pixels black,
and its bicubic one reads past a buffer where a weight at the picture's edge is exactly zero, which ends the process.
"""

import math

from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

# Stands in a checkpoint's settings; another name means other pixels.
RESIZER = "cykooz-resizer 4"

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
    left, top, right, bottom = box or (0, 0, *image.size)
    right, bottom = min(right, image.width), min(bottom, image.height)
    if interpolation in _PILLOW:
        # In two calls, since Pillow takes the width first for some shapes.
        flat = image.resize((image.width, size[1]), _PILLOW[interpolation], box=(0, top, image.width, bottom))
        return flat.resize(size, _PILLOW[interpolation], box=(left, 0, right, size[1]))
    crop_box = CropBox(left, top, _length(left, right, image.width), _length(top, bottom, image.height))
    resized = Image.new(image.mode, size)
    # A Resizer of its own for each call: it keeps a buffer, and threads may call this at once.
    Resizer().resize_pil(image, resized, ResizeOptions(_METHODS[interpolation], False, crop_box))
    return resized


def _length(start, end, limit):
    """end - start, rounded so that start and it together stay within the image."""
    length = end - start
    return length if start + length <= limit else math.nextafter(length, 0)


def shown_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height once the short side is `short_side`."""
    if width <= height:
        return short_side, max(short_side, int(short_side * height / width))
    return max(short_side, int(short_side * width / height)), short_side
