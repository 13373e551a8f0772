"""GEGLU with its gradient: both halves of the linear layer and the gate by oneDNN."""

import ctypes
import functools
import math
from typing import Any

from paddle import Tensor
from paddle.autograd import PyLayer

from sd.cpu import onednn as dnn
from sd.cpu.onednn import Primitive, any_layout, empty, engine, plain, reorder, strided
from sd.cpu.operation import apply, pack_once, pop_saved
from sd.cpu.products import linear_gradients


def geglu(x: Tensor, weight: Tensor, bias: Tensor, packed: Any = None) -> Tensor:
    """h * gelu(g), where h and g are the halves of x @ weight + bias (https://arxiv.org/abs/2002.05202).

    x: [...,C]; weight: [C,2*O]; bias: [2*O]. Returns [...,O]. packed: as of `convolution_packed`.
    """
    return apply(_GEGLU, x, weight, bias, packed)


@functools.cache
def _calls(rows, inputs, width):
    """(product with a half of the weights, gelu, its backward, multiplication, copy into a half of rows)."""
    x, y, row = plain(rows, inputs), plain(rows, width), strided((rows, width), (2 * width, 1))
    weights, bias = strided((inputs, width), (2 * width, 1)), plain(1, width)
    product = dnn.new("matmul_primitive_desc", engine(), x, any_layout(inputs, width), bias, y, None)
    unused = (ctypes.c_float(0.0), ctypes.c_float(0.0))
    forward = dnn.new("eltwise_forward_primitive_desc", engine(), dnn.FORWARD, dnn.GELU_ERF, y, y, *unused, None)
    backward = dnn.new("eltwise_backward_primitive_desc", engine(), dnn.GELU_ERF, y, y, y, *unused, forward, None)
    multiply = dnn.new("binary_primitive_desc", engine(), dnn.MULTIPLY, y, y, y, None)
    return (
        Primitive(product, {dnn.SRC: x, dnn.WEIGHTS: weights, dnn.BIAS: bias, dnn.DST: y}, {dnn.DST}),
        Primitive(forward, {dnn.SRC: y, dnn.DST: y}, {dnn.DST}),
        Primitive(backward, {dnn.SRC: y, dnn.DIFF_DST: y, dnn.DIFF_SRC: y}, {dnn.DIFF_SRC}),
        Primitive(multiply, {dnn.SRC: y, dnn.SRC_1: y, dnn.DST: y}, {dnn.DST}),
        reorder(y, row),
    )


class _GEGLU(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, packed):
        x = x.contiguous()
        inputs, double = weight.shape
        *outer, _ = x.shape
        shape = [math.prod(outer), double // 2]
        product, gelu, _, multiply, _ = ctx.calls = _calls(shape[0], inputs, shape[1])
        straight, gate, y = empty(shape), empty(shape), empty([*outer, shape[1]])
        pointers = [(weight.data_ptr() + 4 * start, bias.data_ptr() + 4 * start) for start in (0, shape[1])]
        ready = [None, None]
        if packed is not None:
            ready = pack_once(packed, product, weight, lambda: [product.pack(half) for half, _ in pointers])
        for half, (weights, shift), ready_weights in zip((straight, gate), pointers, ready, strict=True):
            product({dnn.SRC: x, dnn.WEIGHTS: weights, dnn.BIAS: shift, dnn.DST: half}, ready_weights)
        gelu({dnn.SRC: gate, dnn.DST: y})
        multiply({dnn.SRC: y, dnn.SRC_1: straight, dnn.DST: y})
        ctx.saved = (x, weight, bias), straight, gate
        return y

    @staticmethod
    def backward(ctx, y_grad):
        y_grad = y_grad.contiguous()
        inputs, straight, gate = pop_saved(ctx)
        _, gelu, gelu_backward, multiply, put = ctx.calls
        *outer, width = y_grad.shape
        both, grad = empty([*outer, 2 * width]), empty(gate.shape)
        gelu({dnn.SRC: gate, dnn.DST: grad})
        multiply({dnn.SRC: grad, dnn.SRC_1: y_grad, dnn.DST: grad})
        put({dnn.SRC: grad, dnn.DST: both})
        multiply({dnn.SRC: straight, dnn.SRC_1: y_grad, dnn.DST: grad})
        gelu_backward({dnn.SRC: gate, dnn.DIFF_DST: grad, dnn.DIFF_SRC: grad})
        put({dnn.SRC: grad, dnn.DST: both.data_ptr() + 4 * width})
        return linear_gradients(inputs, both)
