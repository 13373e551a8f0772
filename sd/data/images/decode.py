"""Image files -> RGB pixels as shown: the one way for packing, training, caching, inspecting and scoring."""

import io

import cv2
import numpy as np
from PIL import Image

from sd.data.images.open import OpenedImage, load, open_image
from sd.data.parts.record import RowError
from sd.errors import first_line

_JPEG_END = b"\xff\xd9"


def decode_image(data: bytes) -> np.ndarray:
    """Bytes of an image file -> uint8 [h, w, 3] as shown: upright, transparency on white, the upper 8 of 16 bits.

    Raises RowError for what `open_image` refuses, and for what is damaged.
    """
    opened = open_image(data)
    pixels = _decode_jpeg(data) if _is_plain_jpeg(opened.image, data) else np.asarray(to_rgb(opened.image))
    return upright(pixels, opened.orientation)


def _is_plain_jpeg(image, data):
    """OpenCV fills what is cut off with grey, without a word; Pillow refuses it, and knows every colour space."""
    return image.format == "JPEG" and image.mode in ("RGB", "L") and data.endswith(_JPEG_END)


def _decode_jpeg(data):
    """The same pixels as Pillow's, in three quarters of the time."""
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise RowError(f"the image cannot be decoded: {first_line(error)}") from error
    if pixels is None:
        raise RowError("the image cannot be decoded: JPEG data without a picture")
    return pixels


def to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's image, opened or made, decoded and as RGB: transparency on white, the upper 8 of 16 bits.

    Raises RowError if it is damaged or has colours that Pillow cannot convert.
    """
    load(image)
    try:
        if image.mode.startswith("I;16"):
            return _grey16_to_rgb(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except (ValueError, OSError, TypeError) as error:
        raise RowError(f"the image cannot be decoded: {first_line(error)}") from error


def _grey16_to_rgb(image):
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:  # PNG's tRNS: one value
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [h, w, ...] as stored -> as shown, by the EXIF orientation 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def shrink(opened: OpenedImage, short_side: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """JPEG bytes of an opened image with its short side at `short_side`, upright, and its new (width, height).

    Raises RowError if it is damaged, or too long for a JPEG.
    """
    scale = short_side / min(opened.size)
    width, height = (max(1, round(scale * side)) for side in opened.size)
    stored = (height, width) if opened.orientation >= 5 else (width, height)
    # JPEG is decoded at half its size or less where that leaves twice what is wanted; the rest is Lanczos.
    opened.image.draft("RGB", (2 * stored[0], 2 * stored[1]))
    small = to_rgb(opened.image).resize(stored, Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    try:
        Image.fromarray(upright(np.asarray(small), opened.orientation)).save(buffer, "JPEG", quality=quality)
    except (OSError, ValueError) as error:
        raise RowError(f"the image cannot be made smaller: {first_line(error)}") from error
    return buffer.getvalue(), (width, height)
