"""Looking at an image file without trusting it: format, size and, if asked, every pixel."""

import io
import warnings

from PIL import Image

from sd.data.record import RowError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # 89,478,485; Pillow itself only warns until twice as many
_ORIENTATION = 0x0112


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
    if _is_turned(image):
        return image.height, image.width
    return image.width, image.height


def _is_turned(image):
    if "exif" not in image.info:
        return False
    try:
        return image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    except Exception:  # damaged EXIF does not spoil the picture
        return False
