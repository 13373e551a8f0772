"""Paddle's own layers in float64 as a reference, and how many terms of sums a number goes through in them."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import paddle
from paddle import nn

from sd.models.loading import load_component


def load_float64(component: str, folder: str, name: str | None = None) -> nn.Layer:
    """A component of a repository ("vae", "text_encoder", "unet"), computing in float64."""
    layer = load_component(component, str(folder), name or component).to(dtype="float64")
    layer.eval()
    return layer


class Terms:
    """The terms of all sums that `counted_terms` has seen, and what tests/numeric.py is to allow for them."""

    total = 0

    @property
    def count(self) -> float:
        """Roundings go either way: sums of n terms in all are off by at most 8 * sqrt(n) units of EPS / 2, but with a
        probability of n * exp(-32) or so (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis,
        2019, theorem 3.1). The worst case, n units, would hide mistakes of a percent."""
        return 4 * self.total**0.5


@contextlib.contextmanager
def counted_terms(*models: nn.Layer) -> Iterator[Terms]:
    """Within the block, count the terms of the sums of each layer that is called, as if they came one after another.

    Of a convolution and a linear layer the products of a number; of an attention as many as its heads are wide, and
    twice the tokens that it reads, for softmax and values; of a norm the numbers that it takes the mean of.
    """
    terms = Terms()

    def count(layer, inputs):
        shape = inputs[0].shape
        if isinstance(layer, nn.Conv2D):
            terms.total += math.prod(layer.weight.shape[1:])
        elif isinstance(layer, nn.Linear):
            terms.total += layer.weight.shape[0]
        elif isinstance(layer, nn.GroupNorm):
            terms.total += math.prod(shape[1:]) // layer._num_groups
        else:
            terms.total += shape[-1]

    def count_attention(layer, inputs):
        terms.total += layer.weight.shape[1] + 2 * inputs[0].shape[1]

    hooks = []
    for model in models:
        for name, layer in model.named_sublayers():
            if isinstance(layer, nn.Conv2D | nn.Linear | nn.GroupNorm | nn.LayerNorm):
                hooks.append(layer.register_forward_pre_hook(count))
            if name.endswith(("to_v", "v_proj")):
                hooks.append(layer.register_forward_pre_hook(count_attention))
    try:
        yield terms
    finally:
        for hook in hooks:
            hook.remove()


@paddle.no_grad()
def posterior(vae: nn.Layer, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log-variance, float64 [B,C,h,w], of pictures uint8 [B,3,H,W] by a VAE in float64."""
    distribution = vae.encode(paddle.to_tensor(pixels.astype(np.float64) / 127.5 - 1)).latent_dist
    return distribution.mean.numpy(), distribution.logvar.numpy()


@paddle.no_grad()
def text_states(text_encoder: nn.Layer, ids: np.ndarray) -> np.ndarray:
    """The last hidden state, float64 [B,L,D], of token ids int64 [B,L] by the text encoder's own forward."""
    return text_encoder(paddle.to_tensor(ids))[0].numpy()


@paddle.no_grad()
def picture(vae: nn.Layer, means: np.ndarray) -> np.ndarray:
    """Levels of 255, float64 [B,H,W,3], neither rounded nor clipped, of latents [B,C,h,w] that are not scaled."""
    pixels = vae.decode(paddle.to_tensor(means.astype(np.float64))).sample.numpy()
    return (pixels.transpose([0, 2, 3, 1]) + 1) * 127.5
