"""Record -> sample: decode, resize and crop, choose or drop the caption, tokenise. NumPy and Pillow, no Paddle.

Every random choice comes from a generator of its own, keyed by the sample's number in the run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sd.data.images.decode import Picture, decode
from sd.data.images.open import open_image
from sd.data.images.resize import RESIZER, scaled_size
from sd.data.parts.record import Record, RowError
from sd.data.streaming.buckets import covering_size
from sd.data.streaming.caption_draw import CaptionDraw
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.order import CROP, DRAW, rng
from sd.errors import InputError
from sd.flags.aspect import format_size
from sd.flags.captions import CaptionFlags

SHORT_SIDE_SHARE = 0.9  # the crop is this share of the short side


def short_side(resolution: int) -> int:
    """The length that the short side is resized to."""
    return int(resolution / SHORT_SIDE_SHARE)


def decode_for(data: bytes, resolution: int, min_side: int | None = None, resizer: str = RESIZER) -> Picture:
    """The picture in an image file, decoded as large as crops of `resolution` need it. Raises RowError."""
    opened = open_image(data)
    if min(opened.size) < (min_side or resolution):
        width, height = opened.size
        raise RowError(f"the image is {width}x{height}, the index says {min_side or resolution} or more")
    return decode(opened, short_side(resolution), resizer)


def random_crop(picture: Picture, resolution: int, interpolation: str, draw: np.random.Generator) -> np.ndarray:
    """Short side to int(resolution / 0.9), then a random square. Returns uint8 [3, resolution, resolution]."""
    width, height = size = scaled_size(*picture.size, short_side(resolution))
    left = int(draw.integers(width - resolution + 1))
    top = int(draw.integers(height - resolution + 1))
    return picture.crop(size, left, top, resolution, interpolation)


def centre_crop(picture: Picture, resolution: int, interpolation: str) -> np.ndarray:
    """As `random_crop`, from the middle."""
    width, height = size = scaled_size(*picture.size, short_side(resolution))
    return picture.crop(size, (width - resolution) // 2, (height - resolution) // 2, resolution, interpolation)


def decode_covering(data: bytes, bucket: tuple[int, int], covered: bool = False, resizer: str = RESIZER) -> Picture:
    """The picture in an image file, decoded as large as `bucket_crop` of (width, height) needs it. Raises RowError.

    covered: the index says that the image is as large as its bucket; where it is not, it is another one.
    """
    opened = open_image(data)
    if covered and not all(side >= minimum for side, minimum in zip(opened.size, bucket, strict=True)):
        raise RowError(f"the image is {format_size(opened.size)}, the index says that it covers {format_size(bucket)}")
    return decode(opened, min(covering_size(opened.size, bucket)), resizer)


def bucket_crop(
    picture: Picture, bucket: tuple[int, int], interpolation: str, draw: np.random.Generator | None = None
) -> np.ndarray:
    """What of the picture, resized to cover a bucket (width, height), lies in it: uint8 [3, height, width].

    draw: of the place; the middle without it. What is cut off is the longer side's, so two numbers are drawn of which
    one is always 0.
    """
    size = covering_size(picture.size, bucket)
    spare = [of_picture - of_bucket for of_picture, of_bucket in zip(size, bucket, strict=True)]
    left, top = (int(draw.integers(margin + 1)) if draw is not None else margin // 2 for margin in spare)
    return picture.cut(size, left, top, bucket, interpolation)


def choose_caption(captions: Sequence[str], dropout: float, draw: np.random.Generator, empty: str = "") -> str:
    """One of the captions (texts, or the states of texts), or the empty one with probability `dropout`."""
    dropped = draw.random() < dropout
    chosen = captions[int(draw.integers(len(captions)))]
    return empty if dropped else chosen


def token_ids(tokenize: Callable[[str], Any], caption: str) -> np.ndarray:
    """What `tokenize` makes of a caption: int64 [L]."""
    ids = np.asarray(tokenize(caption), np.int64)
    if ids.ndim != 1:
        raise InputError(f"tokenize returned shape {ids.shape}, expected one row of ids")
    return ids


def drawn(
    draw: Callable[..., dict[str, np.ndarray]] | None, draw_rng: np.random.Generator, bucket: int | None
) -> dict[str, np.ndarray]:
    """The draws of the diffusion for a sample, of its bucket where it has one; none without `draw`."""
    if draw is None:
        return {}
    return draw(draw_rng) if bucket is None else draw(draw_rng, bucket)


@dataclass(frozen=True)
class Framing:
    """The shape in which pictures are cut: that of their bucket, or squares of `resolution` without buckets.

    min_side: of the pictures that are taken, for squares. sizes: (width, height) of each bucket; covered: see
    `decode_covering`. resizer: see `decode`.
    """

    resolution: int
    interpolation: str
    min_side: int
    sizes: Sequence[tuple[int, int]] = ()
    covered: bool = False
    resizer: str = RESIZER

    @classmethod
    def of(cls, catalog: Catalog, interpolation: str, resizer: str = RESIZER) -> "Framing":
        """That of the pictures of a catalog."""
        rows = catalog.bucket_rows
        sizes, covered = ((), False) if rows is None else (rows.bucketing.table.sizes, rows.covered)
        return cls(catalog.resolution, interpolation, catalog.min_side, sizes, covered, resizer)

    def decode(self, image: bytes, bucket: int | None) -> Picture:
        """A picture, large enough to be cut. Raises RowError."""
        if bucket is None:
            return decode_for(image, self.resolution, self.min_side, self.resizer)
        return decode_covering(image, self.sizes[bucket], self.covered, self.resizer)

    def cut(self, picture: Picture, bucket: int | None, draw: np.random.Generator | None = None) -> np.ndarray:
        """uint8 [3, H, W] of a decoded picture: its middle, with `draw` a random place."""
        if bucket is not None:
            return bucket_crop(picture, self.sizes[bucket], self.interpolation, draw)
        if draw is None:
            return centre_crop(picture, self.resolution, self.interpolation)
        return random_crop(picture, self.resolution, self.interpolation, draw)


class SampleMaker:
    """What turns the record at place `sample` of the run into the arrays of one sample.

    draw: takes the bucket too, where there are any.
    """

    def __init__(
        self,
        tokenize: Callable[[str], Any],
        framing: Framing,
        *,
        caption_dropout: float,
        seed: int,
        draw: Callable[..., dict[str, np.ndarray]] | None = None,
        captions: CaptionFlags | None = None,
    ):
        self.framing, self.captions = framing, CaptionDraw(seed, caption_dropout, captions)
        self.tokenize, self.draw, self.seed = tokenize, draw, seed

    def train(self, record: Record, sample: int, bucket: int | None = None) -> dict[str, Any]:
        """Random crop, caption drawn or dropped, and the draws of the diffusion, all keyed by `sample`."""
        picture = self.framing.decode(record.image, bucket)
        pixels = self.framing.cut(picture, bucket, rng(self.seed, CROP, sample))
        caption = self.captions.text(record, sample)
        return self._arrays(pixels, caption, rng(self.seed, DRAW, sample), sample, bucket)

    def evaluate(
        self, record: Record, number: int, draw_rng: np.random.Generator, bucket: int | None = None
    ) -> dict[str, Any]:
        """Centre crop, first caption, and the given generator's draws."""
        pixels = self.framing.cut(self.framing.decode(record.image, bucket), bucket)
        return self._arrays(pixels, record.captions[0], draw_rng, number, bucket)

    def _arrays(self, pixels, caption, draw_rng, sample, bucket):
        input_ids = token_ids(self.tokenize, caption)
        arrays = {"pixel_values": pixels, "input_ids": input_ids, "sample": np.int64(sample)}
        return arrays | drawn(self.draw, draw_rng, bucket)
