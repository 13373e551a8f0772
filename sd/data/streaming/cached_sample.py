"""Cached record -> sample: a variant of the picture's moments, a caption or its text states. NumPy, no Paddle."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sd.data.parts.moments import Manifest, decode_payload
from sd.data.parts.record import Record, RowError
from sd.data.streaming.caption_draw import CaptionDraw
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.order import CROP, DRAW, rng
from sd.data.streaming.sample import Framing, SampleMaker, drawn, token_ids
from sd.errors import InputError


class CachedSampleMaker:
    """What SampleMaker is for images, with the same draws for the same sample: the order of a run, its captions, noise
    and timesteps do not depend on whether it reads images or a cache of them.

    manifest: the cache's. A sample holds `moments` float16 [2C,h,w] where one from images holds `pixel_values`, and
    with cached text `text_states` float16 [L,D] where one from images holds `input_ids`.
    """

    def __init__(
        self,
        tokenize: Callable[[str], Any],
        manifest: Manifest,
        *,
        caption_dropout: float,
        seed: int,
        draw: Callable[..., dict[str, np.ndarray]] | None = None,
        captions: Any = None,
    ):
        self.tokenize, self.draw, self.seed = tokenize, draw, seed
        self.manifest, self.captions = manifest, CaptionDraw(seed, caption_dropout, captions)
        self.latent_shapes = manifest.latent_shapes
        self.empty_state = manifest.empty_text_state() if manifest.has_text else None

    def train(self, record: Record, sample: int, bucket: int | None = None) -> dict[str, Any]:
        """A variant and a caption drawn (or dropped), and the draws of the diffusion, all keyed by `sample`."""
        moments, states = self._decode(record, bucket)
        variant = int(rng(self.seed, CROP, sample).integers(len(moments)))
        if states is None:
            text = self._ids(self.captions.text(record, sample))
        else:
            text = {"text_states": self.captions.state(record, states, sample, self.empty_state)}
        return self._arrays(moments[variant], text, rng(self.seed, DRAW, sample), sample, bucket)

    def evaluate(
        self, record: Record, number: int, draw_rng: np.random.Generator, bucket: int | None = None
    ) -> dict[str, Any]:
        """The first variant, the first caption, and the given generator's draws."""
        moments, states = self._decode(record, bucket)
        text = self._ids(record.captions[0]) if states is None else {"text_states": states[0]}
        return self._arrays(moments[0], text, draw_rng, number, bucket)

    def _decode(self, record, bucket):
        """(moments, text states or None) of a row. Raises RowError where they are not what the manifest says."""
        moments, states = decode_payload(record.image)
        channels, height, width = self.latent_shapes[bucket or 0]
        expected: dict[str, tuple[int, ...]] = {"moments": (self.manifest.num_variants, 2 * channels, height, width)}
        shapes: dict[str, tuple[int, ...] | None] = {"moments": moments.shape}
        if self.empty_state is not None:
            expected["text_states"] = (len(record.captions), *self.empty_state.shape)
            shapes["text_states"] = None if states is None else states.shape
        if expected != shapes:
            raise RowError(f"it holds {shapes}, the cache's manifest says {expected}")
        return moments, states if self.manifest.has_text else None

    def _ids(self, caption):
        return {"input_ids": token_ids(self.tokenize, caption)}

    def _arrays(self, moments, text, draw_rng, sample, bucket):
        arrays = {"moments": moments, **text, "sample": np.int64(sample)}
        return arrays | drawn(self.draw, draw_rng, bucket)


def sample_maker(
    catalog: Catalog, tokenize: Callable[[str], Any], *, interpolation: str, resizer: str, **options: Any
) -> SampleMaker | CachedSampleMaker:
    """The SampleMaker of a catalog of images, the CachedSampleMaker of one of cached parts."""
    manifest, rows = catalog.manifest, catalog.bucket_rows
    if manifest is None:
        return SampleMaker(tokenize, Framing.of(catalog, interpolation, resizer), **options)
    table = None if rows is None else str(rows.bucketing.table)
    if lines := manifest.differences(resolution=catalog.resolution, aspect_buckets=table):
        raise InputError(f"{catalog.file_list}: the cache does not fit: {'; '.join(lines)}")
    return CachedSampleMaker(tokenize, manifest, **options)
