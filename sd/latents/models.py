"""The frozen encoders of a caching run: loaded once a process, named by their content, applied to batches."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import paddle

from sd import devices
from sd.cpu.layers import speed_up
from sd.data.images.resize import RESIZER
from sd.data.parts.moments import Manifest
from sd.latents.options import CacheOptions
from sd.latents.plan import check_sides
from sd.models import encoders
from sd.models.attention import use_fastest_attention
from sd.models.hashes import weights_hash
from sd.models.loading import component_source, load_component
from sd.sampling.pipeline import vae_factor

_SETTINGS = ("resolution", "crop", "num_crops", "flip", "interpolation", "enlarge")


class Encoders:
    """VAE and, with --cache_text, text encoder and tokenizer, as the options name them. Raises InputError."""

    def __init__(self, options: CacheOptions):
        self.options = options
        self.vae = load_component("vae", *component_source(options, "vae"))
        if devices.current().kind == "gpu":
            use_fastest_attention(self.vae, ["float32"])
        else:
            speed_up(self.vae, frozen=True)
        factor = vae_factor(self.vae)
        check_sides(options, factor)
        side = options.resolution // factor
        self.latent_shape = (self.vae.config.latent_channels, side, side)
        if options.cache_text:
            self.text_encoder = load_component("text_encoder", *component_source(options, "text_encoder"))
            if devices.current().kind == "cpu":
                speed_up(self.text_encoder, frozen=True)
            self.tokenizer = load_component("tokenizer", *component_source(options, "tokenizer"))
            encoders.check_text(self.tokenizer, self.text_encoder.config, options.model_max_length)
            self._mask = paddle.to_tensor(encoders.causal_mask(options.model_max_length))

    def manifest(self, **source: Any) -> Manifest:
        """The Manifest of what these encoders and options make. source: its fields on where the rows come from."""
        options = self.options
        text: dict[str, Any] = {}
        components = ("vae", "text_encoder", "tokenizer") if options.cache_text else ("vae",)
        hashes = {component: weights_hash(component, *component_source(options, component)) for component in components}
        if options.cache_text:
            text = {
                "text_encoder_hash": hashes["text_encoder"],
                "tokenizer_hash": hashes["tokenizer"],
                "model_max_length": options.model_max_length,
                "empty_state": f"{options.output_name}.empty.safetensors",
            }
        buckets: dict[str, Any] = {}
        if options.aspect_buckets is not None:
            buckets = {name: getattr(options, name) for name in ("aspect_buckets", "aspect_group_size")}
        return Manifest(
            vae_hash=hashes["vae"],
            scaling_factor=self.vae.config.scaling_factor,
            latent_shape=self.latent_shape,
            **{name: getattr(options, name) for name in _SETTINGS},
            seed=options.seed,
            resizer=RESIZER,
            **text,
            **buckets,
            **source,
        )

    @paddle.no_grad()
    def start(self, crops: Sequence[np.ndarray], captions: Sequence[Sequence[str]]) -> Any:
        """Begin a batch's work on the device; `finish` waits for it.

        crops: of each row uint8 [num_crops, 3, h, w]; captions: for each row a tuple of texts.
        """
        moments = []  # of each shape: its rows, and the batches of their crops
        for shape in dict.fromkeys(each.shape for each in crops):
            rows = [row for row, each in enumerate(crops) if each.shape == shape]
            of_shape = np.stack([crops[row] for row in rows])
            if self.options.flip:  # each crop, then its mirror image
                of_shape = np.stack([of_shape, of_shape[..., ::-1]], axis=2)
            pixels = np.ascontiguousarray(of_shape.reshape(-1, *of_shape.shape[-3:]))
            moments.append((rows, [self._moments(pixels[at]) for at in self._batches(len(pixels))]))
        states = []
        if self.options.cache_text:
            ids = self._tokenize([caption for several in captions for caption in several])
            states = [self._states(ids[at]) for at in self._batches(len(ids))]
        return moments, states, [len(several) for several in captions]

    def finish(self, started: Any) -> list:
        """For each row (moments float16 [K,2C,h,w], text states float16 [captions,L,D] or None)."""
        of_shapes, states, num_captions = started
        moments: list = [None] * len(num_captions)
        for rows, batches in of_shapes:
            of_rows = np.concatenate([batch.numpy() for batch in batches])
            for row, each in zip(rows, of_rows.reshape(len(rows), -1, *of_rows.shape[1:]), strict=True):
                moments[row] = each
        if not states:
            return [(row, None) for row in moments]
        states = np.concatenate([batch.numpy() for batch in states])
        return list(zip(moments, np.split(states, np.cumsum(num_captions)[:-1]), strict=True))

    @paddle.no_grad()
    def text_states(self, captions: Sequence[str]) -> np.ndarray:
        """The text states of captions, float16 [captions,L,D]."""
        return self._states(self._tokenize(list(captions))).numpy()

    def _batches(self, count):
        return [slice(at, at + self.options.batch_size) for at in range(0, count, self.options.batch_size)]

    def _moments(self, pixels):
        posterior = encoders.encode_posterior(self.vae, paddle.to_tensor(pixels))
        # The posterior's log-variance is cut to [-30, 20], so it fits float16.
        return paddle.concat([posterior.mean, posterior.logvar], axis=1).astype("float16")

    def _tokenize(self, captions):
        return encoders.tokenize(self.tokenizer, captions, self.options.model_max_length)

    def _states(self, ids):
        return encoders.encode_text(self.text_encoder, paddle.to_tensor(ids), self._mask).astype("float16")


@lru_cache(maxsize=1)
def encoders_for(options: CacheOptions) -> Encoders:
    """The process's one set of encoders; a Ray worker keeps it from part to part."""
    return Encoders(options)
