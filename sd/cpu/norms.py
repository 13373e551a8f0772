"""Layer norm and group norm with their gradients by oneDNN."""

import ctypes
import functools
import math

import paddle
from paddle import Tensor, _C_ops
from paddle.autograd import PyLayer

from sd.cpu import onednn as dnn
from sd.cpu.onednn import Primitive, empty, engine, plain
from sd.cpu.operation import apply, needed_gradients, ones, pop_saved, zeros

_FEW_POSITIONS = 64


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """Normalise over the last axis. x: [...,C]; weight, bias: [C]."""
    return apply(_LayerNorm, x, weight, bias, epsilon)


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, epsilon: float, silu: bool = False
) -> Tensor:
    """Normalise over groups of channels, and with `silu` apply SiLU. x: [B,C,...]; weight, bias: [C]."""
    if paddle.is_grad_enabled():
        return _GroupNorm.apply(x, weight, bias, groups, epsilon, silu)
    x, (batch, channels, *sides) = x.contiguous(), x.shape
    rows, positions = batch * groups, math.prod(sides)
    y, mean, variance = empty(x.shape), empty([rows]), empty([rows])
    normalise, _ = _layer_norm_calls(rows, channels // groups * positions, epsilon, False)
    normalise({dnn.SRC: x, dnn.DST: y, dnn.MEAN: mean, dnn.VARIANCE: variance})
    scale, shape = _scale_in_place(batch, channels, positions, silu)
    weight, bias = (_C_ops.expand(_C_ops.reshape(tensor, shape[0]), shape[1]) for tensor in (weight, bias))
    scale({dnn.SRC: y, dnn.SRC_1: weight, dnn.FIRST_STEP | dnn.SRC_1: bias, dnn.DST: y})
    return y


@functools.cache
def _layer_norm_calls(rows, width, epsilon, affine):
    """(forward, backward) over rows; `affine`: with a scale and a shift for each column."""
    x, statistics, weight = plain(rows, width), plain(rows), plain(width)
    flags = dnn.USE_SCALE | dnn.USE_SHIFT if affine else 0
    options = (ctypes.c_float(epsilon), ctypes.c_uint(flags))
    kind, back = "layer_normalization_{}_primitive_desc", dnn.BACKWARD if affine else dnn.BACKWARD_DATA
    forward = dnn.new(kind.format("forward"), engine(), dnn.FORWARD, x, x, statistics, *options, None)
    backward = dnn.new(kind.format("backward"), engine(), back, x, x, x, statistics, *options, forward, None)
    read, written = {dnn.SRC: x, dnn.MEAN: statistics, dnn.VARIANCE: statistics}, {dnn.DIFF_SRC: x}
    if affine:
        read |= {dnn.SCALE: weight, dnn.SHIFT: weight}
        written |= {dnn.DIFF_SCALE: weight, dnn.DIFF_SHIFT: weight}
    return (
        Primitive(forward, read | {dnn.DST: x}, {dnn.DST, dnn.MEAN, dnn.VARIANCE}),
        Primitive(backward, read | written | {dnn.DIFF_DST: x}, set(written)),
    )


class _LayerNorm(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, epsilon):
        x = x.contiguous()
        rows, width = math.prod(x.shape[:-1]), x.shape[-1]
        forward, ctx.call = _layer_norm_calls(rows, width, epsilon, True)
        y, mean, variance = empty(x.shape), empty([rows]), empty([rows])
        read = {dnn.SRC: x, dnn.SCALE: weight, dnn.SHIFT: bias, dnn.MEAN: mean, dnn.VARIANCE: variance}
        forward(read | {dnn.DST: y})
        ctx.saved = (x, weight, bias), read
        return y

    @staticmethod
    def backward(ctx, y_grad):
        inputs, read = pop_saved(ctx)
        gradients = [empty(tensor.shape) for tensor in inputs]
        written = dict(zip((dnn.DIFF_SRC, dnn.DIFF_SCALE, dnn.DIFF_SHIFT), gradients, strict=True))
        ctx.call(read | {dnn.DIFF_DST: y_grad.contiguous()} | written)
        return needed_gradients(gradients, inputs)


@functools.cache
def _scale_calls(shape):
    """(forward, backward) of x * scale + shift for each channel: oneDNN's batch norm with given mean and variance."""
    x, channel = plain(*shape), plain(shape[1])
    flags = dnn.USE_GLOBAL_STATISTICS | dnn.USE_SCALE | dnn.USE_SHIFT
    kind, options = "batch_normalization_{}_primitive_desc", (ctypes.c_float(0.0), ctypes.c_uint(flags))
    forward = dnn.new(kind.format("forward"), engine(), dnn.FORWARD, x, x, *options, None)
    backward = dnn.new(kind.format("backward"), engine(), dnn.BACKWARD, x, x, x, *options, forward, None)
    read = {dnn.SRC: x, dnn.MEAN: channel, dnn.VARIANCE: channel, dnn.SCALE: channel}
    written = {dnn.DIFF_SRC: x, dnn.DIFF_SCALE: channel, dnn.DIFF_SHIFT: channel}
    return (
        Primitive(forward, read | {dnn.SHIFT: channel, dnn.DST: x}, {dnn.DST}),
        Primitive(backward, read | written | {dnn.DIFF_DST: x}, set(written)),
    )


@functools.cache
def _scale_in_place(batch, channels, positions, silu):
    """(x * scale + shift, with SiLU if wanted, in one pass, (shape of the channels' numbers, that they are spread to)).

    Where a channel has few numbers, each number of a picture has its scale, since short runs of one take twice as long.
    """
    if positions < _FEW_POSITIONS:
        x, scale = plain(batch, channels * positions), plain(1, channels * positions)
        shapes = [channels, 1], [channels, positions]
    else:
        x, scale = plain(1, batch * channels, positions), plain(1, batch * channels, 1)
        shapes = [1, channels], [batch, channels]
    attributes = dnn.steps((dnn.ADD, scale), *([(dnn.SWISH,)] if silu else []))
    call = dnn.new("binary_primitive_desc", engine(), dnn.MULTIPLY, x, scale, x, attributes)
    read = {dnn.SRC: x, dnn.SRC_1: scale, dnn.FIRST_STEP | dnn.SRC_1: scale}
    return Primitive(call, read | {dnn.DST: x}, {dnn.DST}), shapes


@functools.cache
def _silu_calls(shape):
    """(forward, backward), in place if wanted."""
    x, options = plain(*shape), (ctypes.c_float(1.0), ctypes.c_float(0.0))
    forward = dnn.new("eltwise_forward_primitive_desc", engine(), dnn.FORWARD, dnn.SWISH, x, x, *options, None)
    backward = dnn.new("eltwise_backward_primitive_desc", engine(), dnn.SWISH, x, x, x, *options, forward, None)
    return (
        Primitive(forward, {dnn.SRC: x, dnn.DST: x}, {dnn.DST}),
        Primitive(backward, {dnn.SRC: x, dnn.DIFF_DST: x, dnn.DIFF_SRC: x}, {dnn.DIFF_SRC}),
    )


class _GroupNorm(PyLayer):
    """Groups normalised as the rows of a layer norm, then scaled by channel; oneDNN's own is twenty times slower."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, epsilon, silu):
        x = x.contiguous()
        rows, shape = x.shape[0] * groups, tuple(x.shape)
        normalise, ctx.denormalise = _layer_norm_calls(rows, math.prod(shape) // rows, epsilon, False)
        scale, ctx.unscale = _scale_calls(shape)
        normal, scaled, mean, variance = empty(shape), empty(shape), empty([rows]), empty([rows])
        to_normal = {dnn.SRC: x, dnn.MEAN: mean, dnn.VARIANCE: variance}
        normalise(to_normal | {dnn.DST: normal})
        channels = weight.shape[0]
        to_scaled = {dnn.SRC: normal, dnn.MEAN: zeros(channels), dnn.VARIANCE: ones(channels), dnn.SCALE: weight}
        scale(to_scaled | {dnn.SHIFT: bias, dnn.DST: scaled})
        ctx.saved = (x, weight, bias), to_normal, to_scaled, scaled if silu else None
        if not silu:
            return scaled
        y = empty(shape)
        _silu_calls(shape)[0]({dnn.SRC: scaled, dnn.DST: y})
        return y

    @staticmethod
    def backward(ctx, y_grad):
        inputs, to_normal, to_scaled, scaled = pop_saved(ctx)
        grad, *parameter_grads = gradients = [empty(tensor.shape) for tensor in inputs]
        y_grad = y_grad.contiguous()
        if scaled is not None:
            _silu_calls(tuple(scaled.shape))[1]({dnn.SRC: scaled, dnn.DIFF_DST: y_grad, dnn.DIFF_SRC: grad})
            y_grad = grad
        written = {dnn.DIFF_SRC: grad} | dict(zip((dnn.DIFF_SCALE, dnn.DIFF_SHIFT), parameter_grads, strict=True))
        ctx.unscale(to_scaled | {dnn.DIFF_DST: y_grad} | written)
        ctx.denormalise(to_normal | {dnn.DIFF_DST: grad, dnn.DIFF_SRC: grad})
        return needed_gradients(gradients, inputs)
