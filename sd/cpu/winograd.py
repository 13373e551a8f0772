"""3 x 3 convolutions of stride 1 with 49 products a channel for 4 x 4 numbers of the result, instead of 144.

Winograd's way (https://arxiv.org/abs/1509.09308) with the points 0, 1, -1, infinity and the pair i, -i
(https://arxiv.org/abs/1901.01965): its matrices hold 0, 1, -1 and, for the weights, halves and quarters, so that no
number is rounded by a factor and results are about as close as those of the definition. All of it is matrix products,
of Paddle's MKL: a picture and weights at each point, their products over the channels, and the way back.

Legend: B batch, C channels in, O channels out, T tiles of 4 x 4 in a picture; 49 = 7 * 7 points.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, _C_ops
from paddle.autograd import PyLayer

from sd.cpu import onednn as dnn
from sd.cpu.onednn import Primitive, engine, plain
from sd.cpu.operation import apply, needed_gradients, ones, pop_saved

# [7, length]: result = FROM_POINTS.T @ ((WEIGHTS @ weight) * (TO_POINTS @ picture)), for 6 numbers of a padded picture.
_TO_POINTS = np.array([
    [1, 0, 0, 0, -1, 0], [0, 1, 1, 1, 1, 0], [0, -1, 1, -1, 1, 0], [0, -1, -1, 1, 1, 0], [0, -1, 1, 1, -1, 0],
    [0, 1, 0, -1, 0, 0], [0, -1, 0, 0, 0, 1],
])  # fmt: skip
_WEIGHTS = np.array([
    [1, 0, 0], [0.25, 0.25, 0.25], [0.25, -0.25, 0.25], [0.5, 0, -0.5], [0, 0.5, 0], [0.5, 0.5, -0.5], [0, 0, 1],
])  # fmt: skip
_FROM_POINTS = np.array([
    [1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 0, -1, 0], [0, 1, 0, -1], [1, 1, -1, -1], [0, 0, 0, 1],
])  # fmt: skip
_SUM = 7 + 1  # the point (1, 1), whose number is added to all 16 of a tile
_LEAST_ROWS, _LEAST_CHANNELS, _LONGEST_SIDE = 64, 64, 32


def is_faster(
    x: Sequence[int], weight: Sequence[int], stride: Sequence[int], dilation: Sequence[int], padding: Any
) -> bool:
    """Whether `convolution` computes this one, in less time than oneDNN: the products must be large enough for a
    matrix product to be quick, and sides so short that going to the points costs little."""
    (batch, _, height, width), (outputs, inputs, *kernel) = x, weight
    simple = (*kernel, *stride, *dilation, *padding[0], *padding[1]) == (3, 3, *[1] * 8)
    large = batch * -(-height // 4) * -(-width // 4) >= _LEAST_ROWS and min(outputs, inputs) >= _LEAST_CHANNELS
    return simple and large and max(height, width) <= _LONGEST_SIDE


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Cross-correlation with a border of zeros. x: [B,C,H,W]; weight: [O,C,3,3]; bias: [O] or None."""
    return apply(_Winograd, x, weight, bias)


def convolution_packed(weight_points: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """As `convolution`, without gradients. weight_points: [49,C,O], of `pack`."""
    return _result(_C_ops.matmul(_to_points(x, 6), weight_points, False, False), x, bias)


def pack(weight: Tensor) -> Tensor:
    """Weights [O,C,3,3] at the points, [49,C,O]."""
    return _C_ops.transpose(_weights_to_points(weight), [0, 2, 1])


@functools.cache
def _matrices(length, height, width):
    """What takes pictures to the points, one after another: along the rows, then the columns; small ones at once.

    length: 6 of the picture, 4 of the result, whose matrices transposed lead back.
    """
    rows, columns = (_tiled(length, side) for side in (width, height))
    if rows.shape[1] * columns.shape[1] == 1:
        steps = [np.kron(rows[:, 0], columns[:, 0]).reshape(49, width, height).swapaxes(1, 2).reshape(49, -1)]
    else:
        steps = [rows.reshape(-1, width), np.tile(columns.reshape(-1, height), [7, 1, 1])]
    return [_constant(step) for step in steps]


def _tiled(length, side):
    """[7, tiles, side] of float64: the points of each tile along a side."""
    matrix, border = (_TO_POINTS, 1) if length == 6 else (_FROM_POINTS, 0)
    tiles = -(-side // 4)
    padded = np.zeros([7, tiles, 4 * tiles + 2])
    for tile in range(tiles):
        padded[:, tile, 4 * tile : 4 * tile + length] = matrix
    return padded[:, :, border : border + side]


def _constant(array):
    with paddle.no_grad():
        return paddle.to_tensor(np.ascontiguousarray(array, "float32"), place=paddle.CPUPlace())


@functools.cache
def _weight_matrix():
    return _constant(np.einsum("jx,iy->jiyx", _WEIGHTS, _WEIGHTS).reshape(49, 9))


def _to_points(x, length):
    """[B,C,H,W] -> [49, T*B, C]."""
    points, channels = x, x.shape[1]
    for matrix in _matrices(length, *x.shape[2:]):
        points = _C_ops.matmul(matrix, _C_ops.reshape(points, [*matrix.shape[:-2], -1, matrix.shape[-1]]), False, True)
    return _C_ops.reshape(points, [49, -1, channels])


def _from_points(points, length, shape):
    """[49, T*B, C] -> [B,C,H,W] of that shape."""
    for matrix in reversed(_matrices(length, *shape[2:])):
        points = _C_ops.matmul(_C_ops.reshape(points, [*matrix.shape[:-1], -1]), matrix, True, False)
    return _C_ops.reshape(points, shape)


def _weights_to_points(weight):
    """[O,C,3,3] -> [49,O,C]."""
    outputs, inputs = weight.shape[:2]
    flat = _C_ops.reshape(weight, [outputs * inputs, 9])
    return _C_ops.reshape(_C_ops.matmul(_weight_matrix(), flat, False, True), [49, outputs, inputs])


def _result(points, x, bias):
    """Products [49, T*B, O] -> [B,O,H,W], with the bias."""
    _, rows, channels = points.shape
    if bias is not None:
        sums = points.data_ptr() + 4 * _SUM * rows * channels
        _add(rows, channels)({dnn.SRC: sums, dnn.SRC_1: bias, dnn.DST: sums})
    return _from_points(points, 4, [x.shape[0], channels, *x.shape[2:]])


@functools.cache
def _add(rows, channels):
    """Adds a row to each of `rows`."""
    many, one = plain(rows, channels), plain(1, channels)
    descriptor = dnn.new("binary_primitive_desc", engine(), dnn.ADD, many, one, many, None)
    return Primitive(descriptor, {dnn.SRC: many, dnn.SRC_1: one, dnn.DST: many}, {dnn.DST})


class _Winograd(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias):
        x = x.contiguous()
        weights = _weights_to_points(weight)
        ctx.saved = (x, weight) if bias is None else (x, weight, bias), weights
        return _result(_C_ops.matmul(_to_points(x, 6), weights, False, True), x, bias)

    @staticmethod
    def backward(ctx, y_grad):
        inputs, weights = pop_saved(ctx)
        x, weight, *biases = inputs
        y_grad = _to_points(y_grad.contiguous(), 4)
        x_grad = weight_grad = None
        bias_grads: list = [None] * len(biases)
        if not x.stop_gradient:
            x_grad = _from_points(_C_ops.matmul(y_grad, weights, False, False), 6, x.shape)
        if not weight.stop_gradient:
            points = _C_ops.matmul(y_grad, _to_points(x, 6), True, False)
            points = _C_ops.reshape(points, [49, -1])
            weight_grad = _C_ops.reshape(_C_ops.matmul(points, _weight_matrix(), True, False), weight.shape)
        if not all(bias.stop_gradient for bias in biases):
            sums = y_grad[_SUM]
            bias_grads = [_C_ops.matmul(ones(sums.shape[0]), sums, False, False)]
        return needed_gradients((x_grad, weight_grad, *bias_grads), inputs)
