"""The gate of GEGLU with its gradient by oneDNN."""

import ctypes
import functools
import math

from paddle import Tensor
from paddle.autograd import PyLayer

from sd.cpu import onednn as dnn
from sd.cpu.onednn import Primitive, empty, engine, plain, reorder, strided
from sd.cpu.operation import apply, pop_saved


def gated_gelu(x: Tensor) -> Tensor:
    """GEGLU's gate (https://arxiv.org/abs/2002.05202): x: [...,2C], halves h and g; returns h * gelu(g), [...,C]."""
    return apply(_GatedGELU, x)


@functools.cache
def _gate_calls(rows, width):
    """(copy of a half out of the rows, copy into them, gelu, its backward, product)."""
    half, row = plain(rows, width), strided((rows, width), (2 * width, 1))
    unused = (ctypes.c_float(0.0), ctypes.c_float(0.0))
    forward = dnn.new("eltwise_forward_primitive_desc", engine(), dnn.FORWARD, dnn.GELU_ERF, half, half, *unused, None)
    backward = dnn.new(
        "eltwise_backward_primitive_desc", engine(), dnn.GELU_ERF, half, half, half, *unused, forward, None
    )
    product = dnn.new("binary_primitive_desc", engine(), dnn.MULTIPLY, half, half, half, None)
    return (
        reorder(row, half),
        reorder(half, row),
        Primitive(forward, {dnn.SRC: half, dnn.DST: half}, {dnn.DST}),
        Primitive(backward, {dnn.SRC: half, dnn.DIFF_DST: half, dnn.DIFF_SRC: half}, {dnn.DIFF_SRC}),
        Primitive(product, {dnn.SRC: half, dnn.SRC_1: half, dnn.DST: half}, {dnn.DST}),
    )


class _GatedGELU(PyLayer):
    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        *outer, double = ctx.shape = x.shape
        shape = [math.prod(outer), double // 2]
        pick, _, gelu, _, multiply = ctx.calls = _gate_calls(*shape)
        ctx.saved = straight, gate = empty(shape), empty(shape)
        pick({dnn.SRC: x, dnn.DST: straight})
        pick({dnn.SRC: x.data_ptr() + 4 * shape[1], dnn.DST: gate})
        y = empty([*outer, shape[1]])
        gelu({dnn.SRC: gate, dnn.DST: y})
        multiply({dnn.SRC: y, dnn.SRC_1: straight, dnn.DST: y})
        return y

    @staticmethod
    def backward(ctx, y_grad):
        y_grad = y_grad.contiguous()
        straight, gate = pop_saved(ctx)
        _, put, gelu, gelu_backward, multiply = ctx.calls
        x_grad, grad = empty(ctx.shape), empty(gate.shape)
        gelu({dnn.SRC: gate, dnn.DST: grad})
        multiply({dnn.SRC: grad, dnn.SRC_1: y_grad, dnn.DST: grad})
        put({dnn.SRC: grad, dnn.DST: x_grad})
        multiply({dnn.SRC: straight, dnn.SRC_1: y_grad, dnn.DST: grad})
        gelu_backward({dnn.SRC: gate, dnn.DIFF_DST: grad, dnn.DIFF_SRC: grad})
        put({dnn.SRC: grad, dnn.DST: x_grad.data_ptr() + 4 * gate.shape[1]})
        return x_grad
