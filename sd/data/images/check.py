"""Looking at an image file without trusting it: format, size, every pixel if asked; and making it smaller."""

import io
import warnings

import numpy as np
from PIL import Image

from sd.data.parts.record import RowError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # 89,478,485; Pillow itself only warns until twice as many
_ORIENTATION = 0x0112  # the EXIF tag, and what its values ask for
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(data, max_pixels=MAX_PIXELS):
    """Open an image file held in bytes; nothing is decoded yet. Raises RowError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise RowError(f"too many pixels: {error}") from error
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged headers
        raise RowError(f"not an image of {', '.join(FORMATS)}") from error
    if image.width * image.height > max_pixels:
        raise RowError(f"too many pixels: {image.width}x{image.height}, limit {max_pixels}")
    return image


def image_size(data, max_pixels=MAX_PIXELS):
    """Width and height as shown, that is after EXIF rotation, from the header alone. Raises RowError."""
    return shown_size(open_image(data, max_pixels))


def shown_size(image):
    if _orientation(image) in (5, 6, 7, 8):
        return image.height, image.width
    return image.width, image.height


def _orientation(image):
    if "exif" not in image.info:
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF does not spoil the picture
        return 1


def decode_all(image):
    """Decode every pixel of an opened image. Raises RowError if the file is cut or damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except Exception as error:  # again nearly anything
        raise RowError(f"the image cannot be decoded: {error}") from error


def to_rgb(image):
    """The image as RGB: transparency on white, the upper 8 of 16 bits."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def shrink(image, short_side, quality):
    """JPEG bytes of an opened image with its short side at `short_side`, upright, and its new size. Raises RowError."""
    width, height = image.size
    scale = short_side / min(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    turn = _TURNS.get(_orientation(image))
    image.draft("RGB", (2 * size[0], 2 * size[1]))  # JPEG can be decoded at half size or less; the rest is Lanczos
    decode_all(image)
    buffer = io.BytesIO()
    try:
        small = to_rgb(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        upright = small if turn is None else small.transpose(turn)
        upright.save(buffer, "JPEG", quality=quality)
    except (OSError, ValueError) as error:
        raise RowError(f"the image cannot be made smaller: {error}") from error
    return buffer.getvalue(), upright.size
