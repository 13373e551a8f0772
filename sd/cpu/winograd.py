"""3 x 3 convolutions of stride 1 with fewer products than their definition has.

Winograd's way, F(m x m, 3 x 3) (https://arxiv.org/abs/1509.09308), as matrix products of Paddle's MKL: the tiles of a
picture and the weights at some points, their products over the channels at each point, and the way back. With m = 2 and
the points 0, 1, -1, infinity 16 products make 4 numbers of the result, which have 36 by definition; with m = 4 and the
pair i, -i beside them (https://arxiv.org/abs/1901.01965) 49 make 16, which have 144. The second takes less time where
pictures have many tiles, since weights have more points. The matrices hold 0, 1, -1 and, for the weights, halves and
quarters, so that no factor is rounded and results are about as close as those of the definition.

Legend: B batch, C channels in, O channels out, P points of a tile, T tiles of a picture.
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


def faster_tiles(
    x: Sequence[int], weight: Sequence[int], stride: Sequence[int], dilation: Sequence[int], padding: Any, packed: bool
) -> "Tiles | None":
    """The tiles by which this module computes it in less time than oneDNN, if any: there must be so many that a matrix
    product is quick, and so many channels that the way to the points costs little, the more the longer the sides.

    packed: with weights of `pack`.
    """
    (batch, _, height, width), (outputs, inputs, *kernel) = x, weight
    if (*kernel, *stride, *dilation, *padding[0], *padding[1]) != (3, 3, *[1] * 8):
        return None
    if min(outputs, inputs) < 4 * max(32, height, width):
        return None
    for tiles in (_LARGE, _SMALL):
        if batch * -(-height // tiles.side) * -(-width // tiles.side) >= (64 if packed else 128):
            return tiles
    return None


def convolution(tiles: "Tiles", x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Cross-correlation with a border of zeros. x: [B,C,H,W]; weight: [O,C,3,3]; bias: [O] or None."""
    return apply(_Winograd, tiles, x, weight, bias)


def convolution_packed(tiles: "Tiles", x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """As `convolution`, without gradients. packed: weights, of `pack`."""
    return _result(tiles, _C_ops.matmul(tiles.points(x, "picture"), packed, False, False), x, bias)


def pack(tiles: "Tiles", weight: Tensor) -> Tensor:
    """Weights [O,C,3,3] at the points, [P,C,O]."""
    return _C_ops.transpose(tiles.weight_points(weight), [0, 2, 1])


class Tiles:
    """F(side x side, 3 x 3), of three matrices with a row for each point along a side.

    result = result.T @ ((weight @ weights) * (picture @ pictures)), for side + 2 numbers of a picture with its border.
    """

    def __init__(self, picture: list, weight: list, result: list):
        self._matrices = {"picture": np.array(picture), "result": np.array(result)}
        self._count, self.side = self._matrices["result"].shape
        self.sum = self._count + 1  # of the points, (1, 1), whose number is added to all of a tile
        self._weight = np.array(weight)

    def points(self, x: Tensor, kind: str) -> Tensor:
        """[B,C,H,W] -> [P, T*B, C]. kind: `picture`, or `result` for the gradient of one."""
        points, channels = x, x.shape[1]
        for matrix in self._steps(kind, *x.shape[2:]):
            rows = _C_ops.reshape(points, [*matrix.shape[:-2], -1, matrix.shape[-1]])
            points = _C_ops.matmul(matrix, rows, False, True)
        return _C_ops.reshape(points, [self._count**2, -1, channels])

    def pictures(self, points: Tensor, kind: str, shape: Sequence[int]) -> Tensor:
        """[P, T*B, C] -> [B,C,H,W] of that shape. kind: `result`, or `picture` for the gradient of one."""
        for matrix in reversed(self._steps(kind, *shape[2:])):
            points = _C_ops.matmul(_C_ops.reshape(points, [*matrix.shape[:-1], -1]), matrix, True, False)
        return _C_ops.reshape(points, shape)

    def weight_points(self, weight: Tensor) -> Tensor:
        """[O,C,3,3] -> [P,O,C]."""
        outputs, inputs = weight.shape[:2]
        points = _C_ops.matmul(self._weight_matrix, _C_ops.reshape(weight, [outputs * inputs, 9]), False, True)
        return _C_ops.reshape(points, [self._count**2, outputs, inputs])

    def weights(self, points: Tensor, shape: Sequence[int]) -> Tensor:
        """Gradients [P,O,C] -> [O,C,3,3]."""
        flat = _C_ops.reshape(points, [self._count**2, -1])
        return _C_ops.reshape(_C_ops.matmul(flat, self._weight_matrix, True, False), shape)

    @functools.cached_property
    def _weight_matrix(self):
        return _constant(np.einsum("jx,iy->jiyx", self._weight, self._weight).reshape(-1, 9))

    @functools.cache  # noqa: B019 - there are two, for good
    def _steps(self, kind, height, width):
        """Matrices from pictures to points, one after another: along rows, then columns; small pictures at once."""
        rows, columns = (self._tiled(kind, length) for length in (width, height))
        if height * width <= 16:
            steps = [np.einsum("jtw,ish->jisthw", rows, columns).reshape(-1, height * width)]
        else:
            steps = [rows.reshape(-1, width), np.tile(columns.reshape(-1, height), [self._count, 1, 1])]
        return [_constant(step) for step in steps]

    def _tiled(self, kind, length):
        """[points, tiles, length] of float64: the points of each tile along a side."""
        matrix, border = self._matrices[kind], kind == "picture"
        tiles = -(-length // self.side)
        padded = np.zeros([self._count, tiles, self.side * tiles + 2])
        for tile in range(tiles):
            padded[:, tile, self.side * tile :][:, : matrix.shape[1]] = matrix
        return padded[:, :, border : border + length]


def _constant(array):
    with paddle.no_grad():
        return paddle.to_tensor(np.ascontiguousarray(array, "float32"), place=paddle.CPUPlace())


_SMALL = Tiles(
    [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]],
    [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]],
    [[1, 0], [1, 1], [1, -1], [0, 1]],
)
_LARGE = Tiles(
    [
        *([1, 0, 0, 0, -1, 0], [0, 1, 1, 1, 1, 0], [0, -1, 1, -1, 1, 0]),
        *([0, -1, -1, 1, 1, 0], [0, -1, 1, 1, -1, 0], [0, 1, 0, -1, 0, 0], [0, -1, 0, 0, 0, 1]),
    ],
    [
        *([1, 0, 0], [0.25, 0.25, 0.25], [0.25, -0.25, 0.25]),
        *([0.5, 0, -0.5], [0, 0.5, 0], [0.5, 0.5, -0.5], [0, 0, 1]),
    ],
    [[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 0, -1, 0], [0, 1, 0, -1], [1, 1, -1, -1], [0, 0, 0, 1]],
)


def _result(tiles, points, x, bias):
    """Products [P, T*B, O] -> [B,O,H,W], with the bias."""
    _, rows, channels = points.shape
    if bias is not None:
        sums = points.data_ptr() + 4 * tiles.sum * rows * channels
        _add(rows, channels)({dnn.SRC: sums, dnn.SRC_1: bias, dnn.DST: sums})
    return tiles.pictures(points, "result", [x.shape[0], channels, *x.shape[2:]])


@functools.cache
def _add(rows, channels):
    """Adds a row to each of `rows`."""
    many, one = plain(rows, channels), plain(1, channels)
    descriptor = dnn.new("binary_primitive_desc", engine(), dnn.ADD, many, one, many, None)
    return Primitive(descriptor, {dnn.SRC: many, dnn.SRC_1: one, dnn.DST: many}, {dnn.DST})


class _Winograd(PyLayer):
    @staticmethod
    def forward(ctx, tiles, x, weight, bias):
        x = x.contiguous()
        weights = tiles.weight_points(weight)
        ctx.saved, ctx.tiles = ((x, weight) if bias is None else (x, weight, bias), weights), tiles
        return _result(tiles, _C_ops.matmul(tiles.points(x, "picture"), weights, False, True), x, bias)

    @staticmethod
    def backward(ctx, y_grad):
        (inputs, weights), tiles = pop_saved(ctx), ctx.tiles
        x, weight, *biases = inputs
        grad = tiles.points(y_grad.contiguous(), "result")
        x_grad = weight_grad = None
        bias_grads: list = [None] * len(biases)
        if not x.stop_gradient:
            x_grad = tiles.pictures(_C_ops.matmul(grad, weights, False, False), "picture", x.shape)
        if not weight.stop_gradient:
            products = _C_ops.matmul(grad, tiles.points(x, "picture"), True, False)
            weight_grad = tiles.weights(products, weight.shape)
        if not all(bias.stop_gradient for bias in biases):
            sums = grad[tiles.sum]
            bias_grads = [_C_ops.matmul(ones(sums.shape[0]), sums, False, False)]
        return needed_gradients((x_grad, weight_grad, *bias_grads), inputs)
