"""What the operations share. Each gives what Paddle's operation of that name gives, to rounding, in less time on a CPU:
float32, contiguous tensors. Most are primitives of oneDNN; a primitive is made once for each shape.
"""

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import paddle
from paddle import Tensor


class _NoContext:
    """Takes what a forward keeps for a backward pass that will not come."""


def apply(operation: Any, *arguments: Any) -> Tensor:
    """Call a PyLayer; without gradients its forward alone, which saves making a node of the graph."""
    if paddle.is_grad_enabled():
        return operation.apply(*arguments)
    return operation.forward(_NoContext(), *arguments)


def pop_saved(ctx: Any) -> Any:
    """What `forward` saved in `ctx.saved`, released here, so that its memory is free during the backward pass."""
    saved, ctx.saved = ctx.saved, None
    return saved


def needed_gradients(gradients: Sequence, tensors: Sequence) -> tuple:
    """What a backward returns: None for each tensor that takes no gradient."""
    return tuple(None if tensor.stop_gradient else grad for grad, tensor in zip(gradients, tensors, strict=True))


def pack_once(packed: dict, key: Any, weight: Tensor, pack: Callable[[], Any]) -> Any:
    """What `pack` makes of a weight that seldom changes: kept in `packed`, for the last key.

    Paddle does not count the changes of a weight, so it is packed again once some of its numbers are others.
    """
    size, address = math.prod(weight.shape), weight.data_ptr()  # Tensor.size takes as long as a small operation
    numbers = (ctypes.c_float * size).from_address(address)
    state = key, numbers[:: max(1, size // 16)][:16], numbers[-1], address
    if packed.get("state") != state:
        packed.update(state=state, weight=pack())
    return packed["weight"]


@functools.cache
def ones(length: int) -> Tensor:
    """float32 [length], for all to read."""
    return paddle.ones([length])


@functools.cache
def zeros(length: int) -> Tensor:
    """float32 [length], for all to read."""
    return paddle.zeros([length])
