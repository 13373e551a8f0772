"""Layers made faster for a CPU against Paddle's own: results, gradients, names of the weights."""

import numpy as np
import paddle
import pytest
from paddle import nn

from sd.cpu_layers import speed_up


@pytest.fixture(autouse=True)
def stride_flag():
    name = "FLAGS_use_stride_kernel"
    before = paddle.get_flags([name])
    yield
    paddle.set_flags(before)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(6, 5), [4, 7, 6]),
        (lambda: nn.Linear(6, 5), [3, 6]),
        (lambda: nn.Conv2D(3, 5, 3, padding=1), [2, 3, 8, 6]),
        (lambda: nn.Conv2D(4, 6, 3, stride=2, dilation=2, groups=2, padding=2), [2, 4, 9, 9]),
        (lambda: nn.Conv2D(3, 5, 1, bias_attr=False), [2, 3, 4, 4]),
        (lambda: nn.Conv2D(3, 5, 3, padding=1, padding_mode="reflect"), [2, 3, 6, 6]),
    ],
)
def test_results_and_gradients_are_paddles(make, shape):
    paddle.seed(0)
    layer, x = make(), paddle.randn(shape)
    for tensor in (x, *layer.parameters()):
        tensor.stop_gradient = False
        if tensor is not x:
            tensor.set_value(paddle.randn(tensor.shape))  # a bias of zeros would show nothing

    def run():
        y = layer(x)
        (y * paddle.arange(y.size, dtype="float32").reshape(y.shape) / y.size).sum().backward()
        found = [y.numpy(), *(tensor.grad.numpy() for tensor in (x, *layer.parameters()))]
        for tensor in (x, *layer.parameters()):
            tensor.clear_grad()
        return found

    plain, names = run(), list(layer.state_dict())
    speed_up(layer)
    for ours, wanted in zip(run(), plain, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)
    assert list(layer.state_dict()) == names


def test_biases_of_the_unet_cost_no_broadcast_addition(monkeypatch):
    """Paddle's slow path is an addition of two shapes; none is left in linear layers and convolutions."""
    layer = nn.Sequential(nn.Conv2D(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    speed_up(layer)
    shapes = []
    add = paddle.Tensor.__add__
    monkeypatch.setattr(
        paddle.Tensor, "__add__", lambda self, other: shapes.append((self.shape, other.shape)) or add(self, other)
    )
    layer(paddle.randn([2, 3, 4, 4]))
    assert shapes == [([2, 4, 2, 2], [2, 4, 2, 2]), ([2, 5], [2, 5])]
