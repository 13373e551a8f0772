"""Convolution with its gradients by oneDNN, or by sd.cpu.winograd where that is faster."""

import functools
from collections.abc import Sequence
from typing import Any

from paddle import Tensor
from paddle.autograd import PyLayer

from sd.cpu import onednn as dnn
from sd.cpu import winograd
from sd.cpu.onednn import Primitive, any_layout, empty, engine, integers, plain
from sd.cpu.operation import apply, needed_gradients, pack_once, pop_saved


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[Sequence[int]],
) -> Tensor:
    """Cross-correlation. x: [B,C,H,W]; weight: [O,C,h,w]; bias: [O] or None; stride, dilation: pairs.

    padding: ((top, left), (bottom, right)).
    """
    if tiles := winograd.faster_tiles(x.shape, weight.shape, stride, dilation, padding, packed=False):
        return winograd.convolution(tiles, x, weight, bias)
    return apply(_Convolution, x, weight, bias, tuple(stride), tuple(dilation), padding)


def convolution_packed(packed: Any, x: Any, weight: Any, bias: Any, stride: Any, dilation: Any, padding: Any) -> Any:
    """As `convolution`, without gradients, for weights that seldom change.

    packed: an empty dict at first, which keeps them as the last shape of x takes them.
    """
    x = x.contiguous()
    if tiles := winograd.faster_tiles(x.shape, weight.shape, stride, dilation, padding, packed=True):
        points = pack_once(packed, tiles, weight, lambda: winograd.pack(tiles, weight))
        return winograd.convolution_packed(tiles, x, points, bias)
    y_shape, forward, *_ = _convolution_calls(
        tuple(x.shape), tuple(weight.shape), bias is not None, tuple(stride), tuple(dilation), padding
    )
    y = empty(y_shape)
    tensors = {dnn.SRC: x, dnn.WEIGHTS: weight, dnn.DST: y} | _optional(dnn.BIAS, bias)
    forward(tensors, pack_once(packed, forward, weight, lambda: forward.pack(weight)))
    return y


def _optional(argument, value):
    return {} if value is None else {argument: value}


@functools.cache
def _convolution_calls(x_shape, weight_shape, has_bias, stride, dilation, padding):
    """(shape of the result, forward, backward to the data, backward to the weights)."""
    before, after = padding
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight_shape[2:], strict=True)]
    sides = [(x_shape[i + 2] + before[i] + after[i] - spans[i]) // stride[i] + 1 for i in (0, 1)]
    shapes = (x_shape, weight_shape, (x_shape[0], weight_shape[0], *sides))
    geometry = [integers(*pair) for pair in (stride, [d - 1 for d in dilation], before, after)]
    x, weight, y = (any_layout(*shape) for shape in shapes)
    bias = plain(weight_shape[0]) if has_bias else None
    kind, direct = "convolution_{}_primitive_desc", dnn.CONVOLUTION_DIRECT
    forward = dnn.new(kind.format("forward"), engine(), dnn.FORWARD, direct, x, weight, bias, y, *geometry, None)
    to_data = dnn.new(kind.format("backward_data"), engine(), direct, x, weight, y, *geometry, forward, None)
    to_weights = dnn.new(
        kind.format("backward_weights"), engine(), direct, x, weight, bias, y, *geometry, forward, None
    )
    x, weight, y = (plain(*shape) for shape in shapes)
    return (
        shapes[2],
        Primitive(forward, {dnn.SRC: x, dnn.WEIGHTS: weight, dnn.DST: y} | _optional(dnn.BIAS, bias), {dnn.DST}),
        Primitive(to_data, {dnn.DIFF_SRC: x, dnn.WEIGHTS: weight, dnn.DIFF_DST: y}, {dnn.DIFF_SRC}),
        Primitive(
            to_weights,
            {dnn.SRC: x, dnn.DIFF_WEIGHTS: weight, dnn.DIFF_DST: y} | _optional(dnn.DIFF_BIAS, bias),
            {dnn.DIFF_WEIGHTS, dnn.DIFF_BIAS},
        ),
    )


class _Convolution(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, *geometry):
        x = x.contiguous()
        y_shape, forward, *ctx.calls = _convolution_calls(
            tuple(x.shape), tuple(weight.shape), bias is not None, *geometry
        )
        y = empty(y_shape)
        forward({dnn.SRC: x, dnn.WEIGHTS: weight, dnn.DST: y} | _optional(dnn.BIAS, bias))
        ctx.saved = (x, weight) if bias is None else (x, weight, bias)
        return y

    @staticmethod
    def backward(ctx, y_grad):
        x, weight, *biases = inputs = pop_saved(ctx)
        to_data, to_weights = ctx.calls
        y_grad = y_grad.contiguous()
        x_grad = weight_grad = None
        bias_grads = [empty(bias.shape) for bias in biases]
        if not x.stop_gradient:
            x_grad = empty(x.shape)
            to_data({dnn.DIFF_SRC: x_grad, dnn.WEIGHTS: weight, dnn.DIFF_DST: y_grad})
        if not all(parameter.stop_gradient for parameter in (weight, *biases)):
            weight_grad = empty(weight.shape)
            written = dict(zip((dnn.DIFF_WEIGHTS, dnn.DIFF_BIAS), (weight_grad, *bias_grads), strict=False))
            to_weights({dnn.SRC: x, dnn.DIFF_DST: y_grad} | written)
        return needed_gradients((x_grad, weight_grad, *bias_grads), inputs)
