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
_UNBOUNDED_MODES = ("I", "F")  # 32 bits, whose white level is unknown
_PNG_HEADER_BYTES, _PNG_CHUNK_BYTES = 8, 12
_PNG_LEVELS = {"L;2": 4, "L;4": 16}  # of grey, by Pillow's name of how the file has it
_SEGMENTS_PASSED = b"\xc4\xdb\xdd\xe0\xfe"  # JPEG's tables, restart interval, JFIF and comments
_FRAMES, _SCAN = b"\xc0\xc1\xc2", 0xDA  # Huffman coding, baseline, extended or progressive


@dataclass(frozen=True)
class OpenedImage:
    """An image file whose header has been read.

    file_format, mode: as Pillow names them. orientation: the EXIF value 1 to 8 that is still to be applied to the
    decoded pixels. size: (width, height) as shown, that is after it. data: the file.
    """

    data: bytes
    file_format: str | None
    mode: str
    size: tuple[int, int]
    orientation: int = 1
    by_pillow: Image.Image | None = None

    @property
    def image(self) -> Image.Image:
        """Pillow's image, not decoded yet. Raises RowError for a file that Pillow refuses."""
        return self.by_pillow or _open_by_pillow(self.data)


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> OpenedImage:
    """Open an image file held in bytes. Pixels are decoded only where metadata stands behind them.

    Raises RowError for what is no image, has more than `max_pixels`, or has pixels of no known range.
    """
    if plain := _plain_jpeg(data):
        _check_pixels(plain.size, max_pixels)
        return plain
    image = _open_by_pillow(data)
    _check_pixels(image.size, max_pixels)
    if image.mode in _UNBOUNDED_MODES:
        raise RowError(f"pixels of no known range: mode {image.mode} of 32 bits; convert them to 8 or 16 bits")
    if image.format == "PNG":
        _scale_transparent_value(image)
        if _has_metadata_behind_pixels(data):
            load(image)
    orientation = _orientation(image)
    size = _upright_size(image, orientation)
    left = 1 if image.format == "TIFF" else orientation
    return OpenedImage(data, image.format, image.mode, size, left, image)


def _check_pixels(size, max_pixels):
    if size[0] * size[1] > max_pixels:
        raise RowError(f"too many pixels: {size[0]}x{size[1]}, limit {max_pixels}")


def _plain_jpeg(data):
    """The OpenedImage of a JPEG of grey or YCbCr whose header says nothing else of how it is shown; None for others.

    Pillow's reading of the header takes as long as a tenth of decoding a small picture.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, opened, last = 2, None, len(data) - 10
    while at <= last and data[at] == 0xFF:
        marker, num_bytes = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if marker == _SCAN:
            return opened
        if marker in _FRAMES and opened is None:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            if bits != 8 or channels not in (1, 3) or not width * height:
                return None
            opened = OpenedImage(data, "JPEG", "L" if channels == 1 else "RGB", (width, height))
        elif marker not in _SEGMENTS_PASSED and not (marker == 0xE2 and data.startswith(b"ICC_PROFILE", at + 4)):
            return None
        at += 2 + num_bytes
    return None


def _open_by_pillow(data):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise RowError(f"too many pixels: {error}") from error
    except MemoryError:  # says nothing of the image
        raise
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged headers
        raise RowError(f"not an image of {', '.join(FORMATS)}: {_reject_reason(error, data)}") from error


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


def _reject_reason(error, data):
    """Why Pillow rejects a file: for one that no parser accepts, the first parser's warning."""
    if not isinstance(error, UnidentifiedImageError):
        return first_line(error)
    with warnings.catch_warnings(record=True) as reasons, suppress(Exception):
        warnings.simplefilter("always")
        Image.WARN_POSSIBLE_FORMATS = True
        try:
            Image.open(io.BytesIO(data), formats=FORMATS)
        finally:
            Image.WARN_POSSIBLE_FORMATS = False
    messages = [str(reason.message) for reason in reasons if "opening failed" in str(reason.message)]
    return messages[0] if messages else f"it begins with {data[:16]!r}"


def _orientation(image):
    """EXIF orientation, or XMP's where there is none, 1 to 8, as Pillow's `exif_transpose` finds it."""
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # PNG's own would decode the pixels
    except Exception:  # damaged EXIF does not spoil the picture
        return 1
    return value if value in range(1, 9) else 1


def _upright_size(image, orientation):
    """Pillow turns a TIFF while decoding, and swaps its size at once if the orientation is a TIFF tag, not XMP's."""
    swapped_already = image.format == "TIFF" and ExifTags.Base.Orientation in image.tag_v2
    return image.size[::-1] if orientation >= 5 and not swapped_already else image.size


def _scale_transparent_value(image):
    """Bring tRNS of grey or colour to the 8 bits of Pillow's pixels; Pillow has it as it stands in the file."""
    value = image.info.get("transparency")
    rawmode = image.tile[0].args if image.tile else ""
    if value is None:
        return
    if rawmode in _PNG_LEVELS:
        image.info["transparency"] = value % _PNG_LEVELS[rawmode] * 255 // (_PNG_LEVELS[rawmode] - 1)
    elif rawmode == "RGB;16B":
        image.info["transparency"] = tuple(each >> 8 for each in value)


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
