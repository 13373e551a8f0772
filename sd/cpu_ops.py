"""Operations with their gradients that take less time on a CPU than Paddle's own: float32, contiguous tensors.

Each gives what Paddle's operation of that name gives, to rounding. Most are primitives of oneDNN; a primitive is made
once for each shape.
"""

import ctypes
import functools
import math

import paddle
from paddle import _C_ops
from paddle.autograd import PyLayer

from sd import onednn as dnn
from sd.onednn import Primitive, any_layout, empty, engine, integers, plain, reorder, strided


def convolution(x, weight, bias, stride, dilation, padding):
    """Cross-correlation. x: [B,C,H,W]; weight: [O,C,h,w]; bias: [O] or None; stride, dilation: pairs.

    padding: ((top, left), (bottom, right)).
    """
    return _Convolution.apply(x, weight, bias, tuple(stride), tuple(dilation), padding)


def linear(x, weight, bias):
    """x: [...,C]; weight: [C,O]; bias: [O]. The bias is added, and its gradient summed, by a matrix product."""
    return _Linear.apply(x, weight, bias)


def layer_norm(x, weight, bias, epsilon):
    """Normalise over the last axis. x: [...,C]; weight, bias: [C]."""
    return _LayerNorm.apply(x, weight, bias, epsilon)


def group_norm(x, weight, bias, groups, epsilon):
    """Normalise over groups of channels. x: [B,C,...]; weight, bias: [C]."""
    return _GroupNorm.apply(x, weight, bias, groups, epsilon)


def gated_gelu(x):
    """GEGLU's gate (https://arxiv.org/abs/2002.05202): x: [...,2C], halves h and g; returns h * gelu(g), [...,C]."""
    return _GatedGELU.apply(x)


def _given(argument, value):
    return {} if value is None else {argument: value}


def _take(ctx):
    """What `forward` left in `ctx.kept`, given up here, so that its memory is free as the backward pass goes on."""
    kept, ctx.kept = ctx.kept, None
    return kept


def _wanted(gradients, tensors):
    """What a backward returns: None for each tensor that takes no gradient."""
    return tuple(None if tensor.stop_gradient else grad for grad, tensor in zip(gradients, tensors, strict=True))


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
        Primitive(forward, {dnn.SRC: x, dnn.WEIGHTS: weight, dnn.DST: y} | _given(dnn.BIAS, bias), {dnn.DST}),
        Primitive(to_data, {dnn.DIFF_SRC: x, dnn.WEIGHTS: weight, dnn.DIFF_DST: y}, {dnn.DIFF_SRC}),
        Primitive(
            to_weights,
            {dnn.SRC: x, dnn.DIFF_WEIGHTS: weight, dnn.DIFF_DST: y} | _given(dnn.DIFF_BIAS, bias),
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
        forward({dnn.SRC: x, dnn.WEIGHTS: weight, dnn.DST: y} | _given(dnn.BIAS, bias))
        ctx.kept = (x, weight) if bias is None else (x, weight, bias)
        return y

    @staticmethod
    def backward(ctx, y_grad):
        x, weight, *biases = inputs = _take(ctx)
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
        return _wanted((x_grad, weight_grad, *bias_grads), inputs)


@functools.cache
def _ones(length):
    return paddle.ones([length])


class _Linear(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.kept = (x, weight, bias)
        ctx.rows = math.prod(x.shape[:-1])
        columns = _C_ops.reshape(_ones(ctx.rows), [ctx.rows, 1])
        biases = _C_ops.matmul(columns, _C_ops.reshape(bias, [1, -1]), False, False)
        y = _C_ops.matmul(x, weight, False, False)
        return _C_ops.add(y, _C_ops.reshape(biases, y.shape))

    @staticmethod
    def backward(ctx, y_grad):
        x, weight, bias = _take(ctx)
        x_grad = weight_grad = bias_grad = None
        if not x.stop_gradient:
            x_grad = _C_ops.matmul(y_grad, weight, False, True)
        y_grad = _C_ops.reshape(y_grad, [ctx.rows, weight.shape[1]])
        if not weight.stop_gradient:
            weight_grad = _C_ops.matmul(_C_ops.reshape(x, [ctx.rows, weight.shape[0]]), y_grad, True, False)
        if not bias.stop_gradient:
            sums = _C_ops.matmul(_C_ops.reshape(_ones(ctx.rows), [1, ctx.rows]), y_grad, False, False)
            bias_grad = _C_ops.reshape(sums, bias.shape)
        return x_grad, weight_grad, bias_grad


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
        ctx.kept = (x, weight, bias), read
        return y

    @staticmethod
    def backward(ctx, y_grad):
        inputs, read = _take(ctx)
        found = [empty(tensor.shape) for tensor in inputs]
        written = dict(zip((dnn.DIFF_SRC, dnn.DIFF_SCALE, dnn.DIFF_SHIFT), found, strict=True))
        ctx.call(read | {dnn.DIFF_DST: y_grad.contiguous()} | written)
        return _wanted(found, inputs)


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


class _GroupNorm(PyLayer):
    """Groups normalised as the rows of a layer norm, then scaled by channel; oneDNN's own is twenty times slower."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, epsilon):
        x = x.contiguous()
        rows = x.shape[0] * groups
        normalise, ctx.denormalise = _layer_norm_calls(rows, math.prod(x.shape) // rows, epsilon, False)
        scale, ctx.unscale = _scale_calls(tuple(x.shape))
        normal, y, mean, variance = empty(x.shape), empty(x.shape), empty([rows]), empty([rows])
        to_normal = {dnn.SRC: x, dnn.MEAN: mean, dnn.VARIANCE: variance}
        normalise(to_normal | {dnn.DST: normal})
        zeros, ones = _zeros(weight.shape[0]), _ones(weight.shape[0])
        to_scaled = {dnn.SRC: normal, dnn.MEAN: zeros, dnn.VARIANCE: ones, dnn.SCALE: weight}
        scale(to_scaled | {dnn.SHIFT: bias, dnn.DST: y})
        ctx.kept = (x, weight, bias), to_normal, to_scaled
        return y

    @staticmethod
    def backward(ctx, y_grad):
        inputs, to_normal, to_scaled = _take(ctx)
        grad, *parameter_grads = found = [empty(tensor.shape) for tensor in inputs]
        written = {dnn.DIFF_SRC: grad} | dict(zip((dnn.DIFF_SCALE, dnn.DIFF_SHIFT), parameter_grads, strict=True))
        ctx.unscale(to_scaled | {dnn.DIFF_DST: y_grad.contiguous()} | written)
        ctx.denormalise(to_normal | {dnn.DIFF_DST: grad, dnn.DIFF_SRC: grad})
        return _wanted(found, inputs)


@functools.cache
def _zeros(length):
    return paddle.zeros([length])


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
        take, _, gelu, _, multiply = ctx.calls = _gate_calls(*shape)
        ctx.kept = straight, gate = empty(shape), empty(shape)
        take({dnn.SRC: x, dnn.DST: straight})
        take({dnn.SRC: x.data_ptr() + 4 * shape[1], dnn.DST: gate})
        y = empty([*outer, shape[1]])
        gelu({dnn.SRC: gate, dnn.DST: y})
        multiply({dnn.SRC: y, dnn.SRC_1: straight, dnn.DST: y})
        return y

    @staticmethod
    def backward(ctx, y_grad):
        y_grad = y_grad.contiguous()
        straight, gate = _take(ctx)
        _, put, gelu, gelu_backward, multiply = ctx.calls
        x_grad, grad = empty(ctx.shape), empty(gate.shape)
        gelu({dnn.SRC: gate, dnn.DST: grad})
        multiply({dnn.SRC: grad, dnn.SRC_1: y_grad, dnn.DST: grad})
        put({dnn.SRC: grad, dnn.DST: x_grad})
        multiply({dnn.SRC: straight, dnn.SRC_1: y_grad, dnn.DST: grad})
        gelu_backward({dnn.SRC: gate, dnn.DIFF_DST: grad, dnn.DIFF_SRC: grad})
        put({dnn.SRC: grad, dnn.DST: x_grad.data_ptr() + 4 * gate.shape[1]})
        return x_grad
