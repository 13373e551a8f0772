"""Winograd's convolutions against Paddle's in float64, and a picture's bits wherever it lies in a batch."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from sd.cpu import convolution, onednn, winograd
from tests.cpu.test_cpu_ops import check

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="this Paddle has no oneDNN beside it")
GEOMETRY = (1, 1), (1, 1), ((1, 1), (1, 1))
SHAPES = [  # of a picture batch, and channels of the result; few tiles and many, sides that no tile fits, small ones
    ([33, 128, 4, 4], 130),
    ([128, 128, 4, 4], 128),
    ([1, 130, 15, 32], 128),
    ([17, 128, 9, 14], 132),
    ([65, 128, 3, 2], 128),
]


def terms(x, outputs):
    """A number goes through the sums of a tile (4 x 4), of a window (3 x 3), of channels or tiles of 2 x 2, and of
    points (5 x 5 that are not 0)."""
    tiles = x[0] * -(-x[2] // 2) * -(-x[3] // 2)
    return 16 + 9 + max(x[1], outputs, tiles) + 25


@pytest.mark.parametrize(
    ("has_bias", "frozen"), [(True, ()), (True, (0,)), (True, (1,)), (True, (1, 2)), (True, (2,)), (False, ())]
)
@pytest.mark.parametrize(("x", "outputs"), SHAPES)
def test_convolution_equals_paddles_in_float64(x, outputs, has_bias, frozen, monkeypatch):
    weight = [outputs, x[1], 3, 3]
    monkeypatch.setattr(convolution, "_convolution_calls", None)  # oneDNN's

    def ours(x, weight, bias=None):
        return convolution.convolution(x, weight, bias, *GEOMETRY)

    def theirs(x, weight, bias=None):
        return F.conv2d(x, weight, bias, padding=1)

    check(ours, theirs, [x, weight, [outputs]] if has_bias else [x, weight], terms(x, outputs), frozen)


@pytest.mark.parametrize(
    ("sides", "packed", "expected"),
    [
        ((44, 48), False, 4),
        ((32, 32), False, 2),
        ((15, 32), False, 2),
        ((15, 30), False, None),
        ((32, 32), True, 4),
        ((15, 16), True, 2),
        ((15, 14), True, None),
    ],
)
def test_many_tiles_are_large_ones(sides, packed, expected):
    """Of one picture; the thresholds are measured ones."""
    tiles = winograd.faster_tiles([1, 256, *sides], [256, 256, 3, 3], *GEOMETRY, packed)
    assert (tiles and tiles.side) == expected


@pytest.mark.parametrize(
    ("weight", "geometry"),
    [
        ([256, 256, 3, 3], ((2, 2), (1, 1), ((1, 1), (1, 1)))),
        ([256, 256, 3, 3], ((1, 1), (2, 2), ((1, 1), (1, 1)))),
        ([256, 256, 3, 3], ((1, 1), (1, 1), ((0, 0), (1, 1)))),
        ([256, 256, 1, 1], GEOMETRY),
        ([256, 256, 3, 1], GEOMETRY),
        ([255, 256, 3, 3], GEOMETRY),
        ([256, 255, 3, 3], GEOMETRY),
    ],
)
def test_another_geometry_and_few_channels_are_left_to_onednn(weight, geometry):
    x = [1, weight[1], 64, 64]
    assert winograd.faster_tiles([1, 256, 64, 64], [256, 256, 3, 3], *GEOMETRY, False)
    assert winograd.faster_tiles(x, weight, *geometry, False) is None


@pytest.mark.parametrize(
    ("shape", "outputs"),
    [([72, 128, 4, 4], 128), ([36, 256, 4, 4], 128), ([16, 128, 8, 8], 128), ([2, 128, 32, 32], 128)],
)
def test_bits_of_a_picture_do_not_depend_on_its_place(shape, outputs):
    """Else a drawing would depend on what else is drawn. With odd numbers of channels MKL's own products do."""
    paddle.seed(0)
    x, weight, bias = paddle.randn(shape), paddle.randn([128, shape[1], 3, 3]), paddle.randn([128])
    tiles = winograd.faster_tiles(shape, weight.shape, *GEOMETRY, True)
    packed = winograd.pack(tiles, weight)
    order = np.random.default_rng(0).permutation(shape[0])
    y = winograd.convolution_packed(tiles, x, packed, bias).numpy()
    moved = winograd.convolution_packed(tiles, paddle.to_tensor(x.numpy()[order]), packed, bias).numpy()
    assert np.array_equal(moved, y[order])
