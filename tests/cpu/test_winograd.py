"""Winograd's convolutions against Paddle's in float64, and a picture's bits wherever it lies in a batch."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from sd.cpu import convolution, onednn, winograd
from tests.cpu.test_cpu_ops import check

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="this Paddle has no oneDNN beside it")
GEOMETRY = (1, 1), (1, 1), ((1, 1), (1, 1))
SHAPES = [  # of a picture batch, and channels of the result: one tile, many, sides that no tile fits, one of the latter
    ([64, 64, 4, 4], 68),
    ([1, 64, 32, 32], 64),
    ([17, 70, 9, 6], 64),
    ([70, 64, 3, 2], 64),
]


def terms(x, outputs):
    """A number goes through the sums of a tile (4 x 4), of a window (3 x 3), of channels or all tiles, of points (5 x 5
    that are not 0)."""
    tiles = x[0] * -(-x[2] // 4) * -(-x[3] // 4)
    return 16 + 9 + max(x[1], outputs, tiles) + 25


@pytest.mark.parametrize(
    ("has_bias", "frozen"), [(True, ()), (True, (0,)), (True, (1,)), (True, (1, 2)), (True, (2,)), (False, ())]
)
@pytest.mark.parametrize(("x", "outputs"), SHAPES)
def test_convolution_equals_paddles_in_float64(x, outputs, has_bias, frozen, monkeypatch):
    weight = [outputs, x[1], 3, 3]
    assert winograd.is_faster(x, weight, *GEOMETRY)
    monkeypatch.setattr(convolution, "_convolution_calls", None)

    def ours(x, weight, bias=None):
        return convolution.convolution(x, weight, bias, *GEOMETRY)

    def theirs(x, weight, bias=None):
        return F.conv2d(x, weight, bias, padding=1)

    check(ours, theirs, [x, weight, [outputs]] if has_bias else [x, weight], terms(x, outputs), frozen)


@pytest.mark.parametrize(
    ("x", "weight", "geometry"),
    [
        ([64, 64, 4, 4], [64, 64, 3, 3], ((2, 2), (1, 1), ((1, 1), (1, 1)))),
        ([64, 64, 4, 4], [64, 64, 3, 3], ((1, 1), (2, 2), ((1, 1), (1, 1)))),
        ([64, 64, 4, 4], [64, 64, 3, 3], ((1, 1), (1, 1), ((0, 0), (1, 1)))),
        ([64, 64, 4, 4], [64, 64, 1, 1], ((1, 1), (1, 1), ((1, 1), (1, 1)))),
        ([64, 64, 4, 4], [64, 64, 3, 1], ((1, 1), (1, 1), ((1, 1), (1, 1)))),
    ],
)
def test_other_geometry_is_left_to_onednn(x, weight, geometry):
    """Of 64 rows and channels, which are enough otherwise."""
    assert winograd.is_faster(x, [64, 64, 3, 3], *GEOMETRY)
    assert not winograd.is_faster(x, weight, *geometry)


@pytest.mark.parametrize(
    ("shape", "outputs"), [([72, 128, 4, 4], 128), ([72, 256, 4, 4], 128), ([16, 64, 8, 8], 128), ([2, 64, 32, 32], 64)]
)
def test_bits_of_a_picture_do_not_depend_on_its_place(shape, outputs):
    """Else a drawing would depend on what else is drawn. With odd numbers of channels MKL's own products do."""
    paddle.seed(0)
    x, bias = paddle.randn(shape), paddle.randn([outputs])
    weight = winograd.pack(paddle.randn([outputs, shape[1], 3, 3]))
    order = np.random.default_rng(0).permutation(shape[0])
    y = winograd.convolution_packed(weight, x, bias).numpy()
    moved = winograd.convolution_packed(weight, paddle.to_tensor(x.numpy()[order]), bias).numpy()
    assert np.array_equal(moved, y[order])
