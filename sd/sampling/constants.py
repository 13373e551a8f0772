"""What does not change between the steps of a drawing is computed once, and what is equal in all rows in one."""

import contextlib
import functools
from collections.abc import Iterator

import paddle
from ppdiffusers.models.attention_processor import Attention
from ppdiffusers.models.unet_2d_blocks import CrossAttnDownBlock2D, DownBlock2D

_PLAIN = ("class_embed_type", "num_class_embeds", "addition_embed_type", "time_cond_proj_dim")


@contextlib.contextmanager
def computed_once(unet: paddle.nn.Layer, guided: bool = False) -> Iterator[None]:
    """Within the block, all calls of the UNet have the same text states, and one timestep for all rows of a batch.

    Keys and values of the text are then computed in the first call alone, and the embedding of the timestep, with its
    projection in each residual block, for one row. A UNet that is compiled stays as it is.

    guided: the second half of a batch differs from the first in its texts alone. What the UNet computes before it reads
    them, a residual block and self-attention where pictures are largest, is then done for the first half.
    """
    if "forward" in unet.__dict__:
        yield
        return
    changed = []
    for name, layer in unet.named_sublayers():
        if isinstance(layer, Attention) and name.endswith("attn2"):  # of a transformer block: the one that reads text
            changed += [(part, _remembering(part.forward)) for part in (layer.to_k, layer.to_v)]
    if all(unet.config.get(name) is None for name in _PLAIN):
        changed.append((unet.time_proj, _of_first_row(unet.time_proj.forward)))
    if guided:
        changed += [(layer, _of_first_half(layer.forward)) for layer in _before_the_text(unet.down_blocks[0])]
    try:
        for layer, forward in changed:
            layer.__dict__["forward"] = forward
        yield
    finally:
        for layer, _ in changed:
            layer.__dict__.pop("forward", None)


def _remembering(forward):
    """`forward`, whose first result is given to all later calls."""
    results = []

    @functools.wraps(forward)
    def remembered(*arguments, **options):
        if not results:
            results.append(forward(*arguments, **options))
        return results[0]

    return remembered


def _of_first_row(forward):
    @functools.wraps(forward)
    def of_first_row(timesteps):
        return forward(timesteps[:1])

    return of_first_row


def _before_the_text(block):
    """The layers of a UNet's first block that come before the first one that reads the text."""
    if not isinstance(block, CrossAttnDownBlock2D | DownBlock2D):
        return []
    layers = [block.resnets[0]]
    if isinstance(block, CrossAttnDownBlock2D):
        first = block.attentions[0].transformer_blocks[0]
        layers += [] if first.only_cross_attention else [first.attn1]
    return layers


def _of_first_half(forward):
    @functools.wraps(forward)
    def of_first_half(x, *arguments, **options):
        rows = x.shape[0] // 2
        y = forward(x[:rows], *(_rows(argument, x.shape[0], rows) for argument in arguments), **options)
        return paddle.concat([y, y])

    return of_first_half


def _rows(argument, whole, rows):
    """The first rows of what has one for each of the batch, as the embedding of a timestep may."""
    return argument[:rows] if paddle.is_tensor(argument) and argument.shape[0] == whole else argument
