"""Record -> sample: decode, resize and crop, choose or drop the caption, tokenise. NumPy and Pillow, no Paddle.

Every random choice comes from a generator of its own, keyed by the sample's number in the run.
"""

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from sd.data.check import open_image
from sd.data.order import CAPTION, CROP, DRAW, rng
from sd.data.record import RowError
from sd.data.resize import resize_and_crop, shown_size
from sd.errors import InputError

ORIENTATION = 0x0112
SHORT_SIDE_SHARE = 0.9  # the crop is this share of the short side


def decode_image(data):
    """Bytes of an image file -> RGB or RGBX Pillow image as shown (EXIF rotation done, transparency on white).

    Raises RowError for what is no image, is damaged, or has too many pixels.
    """
    image = open_image(data)
    try:
        turned = image.info.get("exif") and image.getexif().get(ORIENTATION, 1) != 1
        image = _decode_jpeg(data, image) if image.format == "JPEG" else _decode(image)
        return ImageOps.exif_transpose(image) if turned else image
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise RowError(f"damaged image: {error}") from error


def _decode_jpeg(data, image):
    """simplejpeg gives the same pixels as Pillow in three quarters of the time; it leaves doubtful files to Pillow."""
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGBX")
    except ValueError:
        return _decode(image)
    decoded = Image.frombuffer("RGBX", image.size, pixels, "raw", "RGBX", 0, 1)
    decoded.info["exif"] = image.info.get("exif", b"")
    return decoded


def _decode(image):
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def short_side(resolution):
    """The length that the short side is resized to."""
    return int(resolution / SHORT_SIDE_SHARE)


def random_crop(image, resolution, interpolation, draw):
    """Short side to int(resolution / 0.9), then a random square. Returns uint8 [3, resolution, resolution]."""
    width, height = shown_size(image.width, image.height, short_side(resolution))
    left = int(draw.integers(width - resolution + 1))
    top = int(draw.integers(height - resolution + 1))
    return resize_and_crop(image, (width, height), left, top, resolution, interpolation)


def centre_crop(image, resolution, interpolation):
    """As `random_crop`, from the middle."""
    width, height = shown_size(image.width, image.height, short_side(resolution))
    left, top = (width - resolution) // 2, (height - resolution) // 2
    return resize_and_crop(image, (width, height), left, top, resolution, interpolation)


def choose_caption(captions, dropout, draw):
    """One of the captions, or the empty one with probability `dropout`."""
    dropped = draw.random() < dropout
    chosen = captions[int(draw.integers(len(captions)))]
    return "" if dropped else chosen


class SampleMaker:
    """What turns the record at place `sample` of the run into the arrays of one sample."""

    def __init__(self, tokenize, *, resolution, interpolation, caption_dropout, seed, draw=None):
        self.tokenize, self.draw, self.seed = tokenize, draw, seed
        self.resolution, self.interpolation, self.caption_dropout = resolution, interpolation, caption_dropout

    def train(self, record, sample):
        """Random crop, caption drawn or dropped, and the draws of the diffusion, all keyed by `sample`."""
        image = decode_image(record.image)
        self._check_size(image)
        pixels = random_crop(image, self.resolution, self.interpolation, rng(self.seed, CROP, sample))
        caption = choose_caption(record.captions, self.caption_dropout, rng(self.seed, CAPTION, sample))
        return self._arrays(pixels, caption, rng(self.seed, DRAW, sample), sample)

    def evaluate(self, record, number, draw_rng):
        """Centre crop, first caption, and the given generator's draws."""
        image = decode_image(record.image)
        self._check_size(image)
        pixels = centre_crop(image, self.resolution, self.interpolation)
        return self._arrays(pixels, record.captions[0], draw_rng, number)

    def _check_size(self, image):
        if min(image.size) < self.resolution:
            raise RowError(f"the image is {image.width}x{image.height}, the index says {self.resolution} or more")

    def _arrays(self, pixels, caption, draw_rng, sample):
        input_ids = np.asarray(self.tokenize(caption), np.int64)
        if input_ids.ndim != 1:
            raise InputError(f"tokenize returned shape {input_ids.shape}, expected one row of ids")
        arrays = {"pixel_values": pixels, "input_ids": input_ids, "sample": np.int64(sample)}
        return arrays | (self.draw(draw_rng) if self.draw else {})
