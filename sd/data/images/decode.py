"""Image files -> RGB pixels as shown: the one way for packing, training, caching, inspecting and scoring."""

from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from sd.data.images.open import OpenedImage, load, open_image
from sd.data.images.resize import EARLIER_RESIZER, FOUR_BYTES, RESIZER, resize, to_planes
from sd.data.parts.record import RowError
from sd.errors import first_line

# A JPEG is decoded at a part of its size if that leaves so many times the size it is resized to. Against Lanczos of all
# its pixels, values differ in the mean by less than what saving as a JPEG of quality 90 changes, 1 of 255 at most.
_MIN_SHRINKING = {RESIZER: {8: 3, 4: 1.05, 2: 1.05}, EARLIER_RESIZER: {8: 3, 4: 3, 2: 1.75}}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF


@dataclass(frozen=True)
class Picture:
    """Pixels as shown: upright, transparency on white, the upper 8 of 16 bits.

    pixels: of mode RGB, or CMYK for four plain bytes (R, G, B and one without meaning) a pixel; they are 1/`scale` of
    `size`, the (width, height) of the picture.
    """

    pixels: Image.Image
    size: tuple[int, int]
    scale: int = 1

    def crop(self, size: tuple[int, int], left: int, top: int, side: int, interpolation: str = "lanczos") -> np.ndarray:
        """The square [top:top + side, left:left + side] of the picture resized to `size`: uint8 [3, side, side]."""
        return self.cut(size, left, top, (side, side), interpolation)

    def cut(
        self, size: tuple[int, int], left: int, top: int, area: tuple[int, int], interpolation: str = "lanczos"
    ) -> np.ndarray:
        """What lies `area` (width, height) from `left` and `top` on in the picture resized to `size`: uint8 [3,h,w]."""
        x, y = (before / after / self.scale for before, after in zip(self.size, size, strict=True))
        box = (left * x, top * y, (left + area[0]) * x, (top + area[1]) * y)
        return to_planes(resize(self.pixels, area, box, interpolation))

    def array(self) -> np.ndarray:
        """The pixels as uint8 [h, w, 3]."""
        return np.ascontiguousarray(np.asarray(self.pixels)[..., :3])


def decode(opened: OpenedImage, short_side: int | None = None, resizer: str = RESIZER) -> Picture:
    """The picture of an opened image file; of a JPEG no more than is needed to resize its short side to `short_side`.

    resizer: RESIZER, or the EARLIER_RESIZER of a run that goes on. Raises RowError for what is damaged or has colours
    that cannot be converted.
    """
    scale = 1
    if opened.file_format == "JPEG" and short_side:
        rest = min(opened.size) / short_side
        scale = next((scale for scale, factor in _MIN_SHRINKING[resizer].items() if rest >= scale * factor), 1)
    pixels = _decode_jpeg(opened, scale)
    if pixels is None:
        image = opened.image
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        pixels = to_rgb(image)
    turn = _TURNS.get(opened.orientation)
    return Picture(pixels if turn is None else pixels.transpose(turn), opened.size, scale)


def decode_image(data: bytes) -> np.ndarray:
    """Bytes of an image file -> uint8 [h, w, 3] as shown, at full size.

    Raises RowError for what `open_image` refuses, and for what is damaged.
    """
    return decode(open_image(data)).array()


def _decode_jpeg(opened, scale):
    """The same pixels as Pillow's in less time, ready for `resize`. None leaves it to Pillow, which knows every colour
    space and decides about data that libjpeg complains of.
    """
    if opened.file_format != "JPEG" or opened.mode not in ("RGB", "L"):
        return None
    width, height = (-(-side // scale) for side in (opened.size if opened.orientation < 5 else opened.size[::-1]))
    # Where rows begin at multiples of 32 bytes, libjpeg-turbo writes them past the processor's caches, from which the
    # resizer would read them.
    pixels = np.empty(4 * width * height + 4, np.uint8)[4:]
    try:
        simplejpeg.decode_jpeg(opened.data, "RGBX", min_width=width, min_height=height, buffer=pixels)
    except ValueError:
        return None
    return Image.frombuffer(FOUR_BYTES, (width, height), pixels, "raw", FOUR_BYTES, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's image, opened or made, decoded and as RGB: transparency on white, the upper 8 of 16 or 12 bits.

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
    num_bits, is_inverted = 16, False
    if image.format == "TIFF":  # Pillow has 12 bits as they stand in the file, and WhiteIsZero too
        (num_bits,) = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))
        is_inverted = image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    grey = (values >> num_bits - 8).astype(np.uint8)
    if is_inverted:
        grey = ~grey
    if (transparent := image.info.get("transparency")) is not None:  # PNG's tRNS: one value
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def shrink(opened: OpenedImage, short_side: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """JPEG bytes of an opened image with its short side at `short_side`, upright, and its new (width, height).

    Raises RowError if it is damaged, or too long for a JPEG.
    """
    scale = short_side / min(opened.size)
    width, height = (max(1, round(scale * side)) for side in opened.size)
    picture = decode(opened, short_side)
    right, bottom = (side / picture.scale for side in picture.size)
    small = resize(picture.pixels, (width, height), (0, 0, right, bottom))
    colours = "RGBX" if small.shape[2] == 4 else "RGB"
    try:
        return simplejpeg.encode_jpeg(small, quality, colours, "420"), (width, height)
    except ValueError as error:
        raise RowError(f"the image cannot be made smaller: {first_line(error)}") from error
