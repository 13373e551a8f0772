"""Which kernel computes attention: the fastest that works on this device for a dtype, found by trying it.

ppdiffusers decides once at import, for one dtype, and reads and sets the random state of every visible card in each
call; so its choice is off (USE_PPXFORMERS=0, see sd.devices) and the layers get a processor of ours.
"""

import functools
import logging
from collections.abc import Callable, Iterable

import paddle
from paddle import Tensor
from ppdiffusers.models.attention_processor import Attention, AttnProcessor

logger = logging.getLogger(__name__)

# Kernel: query [B,Lq,heads,D], key and value [B,Lk,heads,D] -> [B,Lq,heads,D], with the usual scale 1 / sqrt(D).
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def _flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return paddle.nn.functional.flash_attention.flash_attention(query, key, value)[0]


def _memory_efficient(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from paddle.incubate.nn.memory_efficient_attention import memory_efficient_attention

    return memory_efficient_attention(query, key, value)


KERNELS: dict[str, Kernel] = {"flash": _flash, "memory_efficient": _memory_efficient}  # the faster first


def works(kernel: Kernel, dtype: str, head_size: int) -> bool:
    """Whether a kernel computes attention and its gradients on Paddle's current device, by doing so once."""
    try:
        with paddle.amp.auto_cast(enable=False), paddle.enable_grad():
            query, key, value = (paddle.ones([1, 8, 1, head_size]).astype(dtype) for _ in range(3))
            for tensor in (query, key, value):
                tensor.stop_gradient = False
            kernel(query, key, value).astype("float32").sum().backward()
            return bool(paddle.isfinite(query.grad.astype("float32")).all())
    except Exception as error:  # what a missing kernel raises depends on the layer of Paddle that misses it
        lines = str(error).strip().splitlines()
        logger.debug("attention %s of %s, head size %d: %s", kernel.__name__, dtype, head_size, lines[-1:] or error)
        return False


def find_kernel(dtype: str, head_sizes: Iterable[int]) -> str | None:
    """The fastest kernel that serves a dtype and all head sizes on this device, by name; None for plain operators."""
    if paddle.device.get_device() == "cpu":
        return None
    sizes = sorted(head_sizes)
    return next((name for name, kernel in KERNELS.items() if all(works(kernel, dtype, size) for size in sizes)), None)


class KernelAttnProcessor(AttnProcessor):
    """ppdiffusers' attention with the product of queries, keys and values by one fused kernel.

    kernels: dtype -> kernel. Another dtype, a mask, or scores that are to be in float32 take the plain operators.
    """

    def __init__(self, kernels: dict[paddle.dtype, Kernel]) -> None:
        self._kernels = kernels

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        scale: float = 1.0,
        **kwargs,
    ) -> Tensor:
        """As AttnProcessor's; hidden_states [B,L,C] or [B,C,h,w]."""
        plain = functools.partial(
            super().__call__, attn, hidden_states, encoder_hidden_states, attention_mask, temb, scale, **kwargs
        )
        if attention_mask is not None or attn.upcast_attention or attn.upcast_softmax or attn.spatial_norm is not None:
            return plain()
        tokens = hidden_states.flatten(2).transpose([0, 2, 1]) if hidden_states.ndim == 4 else hidden_states
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens.transpose([0, 2, 1])).transpose([0, 2, 1])
        context = tokens if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = attn.to_q(tokens), attn.to_k(context), attn.to_v(context)
        kernel = self._kernels.get(query.dtype)
        if kernel is None:
            return plain()
        query, key, value = (attn.head_to_batch_dim(states, transpose=False) for states in (query, key, value))
        mixed = attn.batch_to_head_dim(kernel(query, key, value), transpose=False)
        mixed = attn.to_out[1](attn.to_out[0](mixed))
        if hidden_states.ndim == 4:
            mixed = mixed.transpose([0, 2, 1]).reshape(hidden_states.shape)
        if attn.residual_connection:
            mixed = mixed + hidden_states
        return mixed / attn.rescale_output_factor


def head_sizes(layer: paddle.nn.Layer) -> set[int]:
    """Numbers per head of all attention in a layer."""
    attentions = [sub for sub in layer.sublayers(include_self=True) if isinstance(sub, Attention)]
    return {sub.to_q.weight.shape[1] // sub.heads for sub in attentions}


def use_fastest_attention(layer: paddle.nn.Layer, dtypes: Iterable[str], kernel: str | None = None) -> dict[str, str]:
    """Set the attention of a UNet or VAE to the fastest kernels of this device. Returns dtype -> name, for the log.

    dtypes: those it will compute in. kernel: the name of one in KERNELS, or `plain`, instead of trying.
    """
    chosen = {}
    for dtype in dtypes:
        name = find_kernel(dtype, head_sizes(layer)) if kernel is None else kernel
        chosen[dtype] = name or "plain"
    kernels = {getattr(paddle, dtype): KERNELS[name] for dtype, name in chosen.items() if name != "plain"}
    layer.set_attn_processor(KernelAttnProcessor(kernels) if kernels else AttnProcessor())
    return chosen
