"""Record -> sample: decode, resize and crop, choose or drop the caption, tokenise. NumPy and Pillow, no Paddle.

Every random choice comes from a generator of its own, keyed by the sample's number in the run.
"""

import numpy as np

from sd.data.images.decode import Picture, decode
from sd.data.images.open import open_image
from sd.data.images.resize import shown_size
from sd.data.parts.record import RowError
from sd.data.streaming.caption_draw import CaptionDraw
from sd.data.streaming.order import CROP, DRAW, rng
from sd.errors import InputError

SHORT_SIDE_SHARE = 0.9  # the crop is this share of the short side


def short_side(resolution):
    """The length that the short side is resized to."""
    return int(resolution / SHORT_SIDE_SHARE)


def decode_for(data: bytes, resolution: int, min_side: int | None = None) -> Picture:
    """The picture in an image file, decoded as large as crops of `resolution` need it. Raises RowError."""
    opened = open_image(data)
    if min(opened.size) < (min_side or resolution):
        width, height = opened.size
        raise RowError(f"the image is {width}x{height}, the index says {min_side or resolution} or more")
    return decode(opened, short_side(resolution))


def random_crop(picture, resolution, interpolation, draw):
    """Short side to int(resolution / 0.9), then a random square. Returns uint8 [3, resolution, resolution]."""
    width, height = size = shown_size(*picture.size, short_side(resolution))
    left = int(draw.integers(width - resolution + 1))
    top = int(draw.integers(height - resolution + 1))
    return picture.crop(size, left, top, resolution, interpolation)


def centre_crop(picture, resolution, interpolation):
    """As `random_crop`, from the middle."""
    width, height = size = shown_size(*picture.size, short_side(resolution))
    return picture.crop(size, (width - resolution) // 2, (height - resolution) // 2, resolution, interpolation)


def choose_caption(captions, dropout, draw, empty=""):
    """One of the captions (texts, or the states of texts), or the empty one with probability `dropout`."""
    dropped = draw.random() < dropout
    chosen = captions[int(draw.integers(len(captions)))]
    return empty if dropped else chosen


def token_ids(tokenize, caption):
    """What `tokenize` makes of a caption: int64 [L]."""
    ids = np.asarray(tokenize(caption), np.int64)
    if ids.ndim != 1:
        raise InputError(f"tokenize returned shape {ids.shape}, expected one row of ids")
    return ids


class SampleMaker:
    """What turns the record at place `sample` of the run into the arrays of one sample."""

    def __init__(
        self, tokenize, *, resolution, interpolation, caption_dropout, seed, draw=None, min_side=None, captions=None
    ):
        self.min_side = min_side or resolution
        self.captions = CaptionDraw(seed, caption_dropout, captions)
        self.tokenize, self.draw, self.seed = tokenize, draw, seed
        self.resolution, self.interpolation = resolution, interpolation

    def train(self, record, sample):
        """Random crop, caption drawn or dropped, and the draws of the diffusion, all keyed by `sample`."""
        picture = decode_for(record.image, self.resolution, self.min_side)
        pixels = random_crop(picture, self.resolution, self.interpolation, rng(self.seed, CROP, sample))
        caption = self.captions.text(record, sample)
        return self._arrays(pixels, caption, rng(self.seed, DRAW, sample), sample)

    def evaluate(self, record, number, draw_rng):
        """Centre crop, first caption, and the given generator's draws."""
        pixels = centre_crop(
            decode_for(record.image, self.resolution, self.min_side), self.resolution, self.interpolation
        )
        return self._arrays(pixels, record.captions[0], draw_rng, number)

    def _arrays(self, pixels, caption, draw_rng, sample):
        input_ids = token_ids(self.tokenize, caption)
        arrays = {"pixel_values": pixels, "input_ids": input_ids, "sample": np.int64(sample)}
        return arrays | (self.draw(draw_rng) if self.draw else {})
