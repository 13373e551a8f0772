"""An image file held in bytes, opened without trusting it: format, kind of pixels, orientation and size as shown."""

import io
import struct
import warnings
from contextlib import suppress
from dataclasses import dataclass

from PIL import ExifTags, Image, UnidentifiedImageError

from sd.data.parts.record import RowError
from sd.errors import first_line

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 1024**3 // 4 // 3  # 89,478,485, as in Pillow, which only warns until twice as many
_UNBOUNDED_MODES = ("I", "F")  # 32 bits, of which nobody knows which value is white
_PNG_HEADER_BYTES, _PNG_CHUNK_BYTES = 8, 12


@dataclass(frozen=True)
class OpenedImage:
    """An image file whose header has been read.

    image: Pillow's, not decoded yet. orientation: the EXIF value 1 to 8 that is still to be applied to the decoded
    pixels. size: (width, height) as shown, that is after it. data: the file.
    """

    image: Image.Image
    orientation: int
    size: tuple[int, int]
    data: bytes


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> OpenedImage:
    """Open an image file held in bytes. Pixels are decoded only where metadata stands behind them.

    Raises RowError for what is no image, has more than `max_pixels`, or has pixels of no known range.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise RowError(f"too many pixels: {error}") from error
    except MemoryError:  # says nothing of the image
        raise
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged headers
        raise RowError(f"not an image of {', '.join(FORMATS)}: {_why(error, data)}") from error
    if image.width * image.height > max_pixels:
        raise RowError(f"too many pixels: {image.width}x{image.height}, limit {max_pixels}")
    if image.mode in _UNBOUNDED_MODES:
        raise RowError(f"pixels of no known range: mode {image.mode} of 32 bits; convert them to 8 or 16 bits")
    if image.format == "PNG" and _has_metadata_behind_pixels(data):
        load(image)
    orientation = _orientation(image)
    size = _size_as_shown(image, orientation)
    return OpenedImage(image, 1 if image.format == "TIFF" else orientation, size, data)


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) as shown, from the header alone. Raises RowError as `open_image`."""
    return open_image(data, max_pixels).size


def load(image: Image.Image) -> None:
    """Decode every pixel of Pillow's opened image. Raises RowError if the file is cut or damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # again nearly anything
        raise RowError(f"the image cannot be decoded: {first_line(error)}") from error


def _why(error, data):
    """What Pillow has against a file: of one that no parser takes, the first one's warning."""
    if not isinstance(error, UnidentifiedImageError):
        return first_line(error)
    with warnings.catch_warnings(record=True) as reasons, suppress(Exception):
        warnings.simplefilter("always")
        Image.WARN_POSSIBLE_FORMATS = True
        try:
            Image.open(io.BytesIO(data), formats=FORMATS)
        finally:
            Image.WARN_POSSIBLE_FORMATS = False
    told = [str(reason.message) for reason in reasons if "opening failed" in str(reason.message)]
    return told[0] if told else f"it begins with {data[:16]!r}"


def _orientation(image):
    """EXIF orientation, or XMP's where there is none, 1 to 8, as Pillow's `exif_transpose` finds it."""
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # PNG's own would decode the pixels
    except Exception:  # damaged EXIF does not spoil the picture
        return 1
    return value if value in range(1, 9) else 1


def _size_as_shown(image, orientation):
    """Pillow turns a TIFF while decoding, and swaps its size at once if the orientation is a TIFF tag, not XMP's."""
    swapped_already = image.format == "TIFF" and ExifTags.Base.Orientation in image.tag_v2
    return image.size[::-1] if orientation >= 5 and not swapped_already else image.size


def _has_metadata_behind_pixels(png):
    """Whether a PNG has text or EXIF behind its first chunk of pixels, which Pillow reads once it has decoded them."""
    at, seen_pixels = _PNG_HEADER_BYTES, False
    while at + 8 <= len(png):
        num_bytes, kind = struct.unpack_from(">I4s", png, at)
        seen_pixels |= kind == b"IDAT"
        if seen_pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            return True
        at += num_bytes + _PNG_CHUNK_BYTES
    return False
