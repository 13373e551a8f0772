"""What does not change between the steps of a drawing is computed once, and what is equal in all rows in one."""

import contextlib
import functools
from collections.abc import Iterator

import paddle
from ppdiffusers.models.attention_processor import Attention

_PLAIN = ("class_embed_type", "num_class_embeds", "addition_embed_type", "time_cond_proj_dim")


@contextlib.contextmanager
def computed_once(unet: paddle.nn.Layer) -> Iterator[None]:
    """Within the block, all calls of the UNet have the same text states, and one timestep for all rows of a batch.

    Keys and values of the text are then computed in the first call alone, and the embedding of the timestep, with its
    projection in each residual block, for one row. A UNet that is compiled stays as it is.
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
