"""Convolutions that keep packed weights, of oneDNN or Winograd: right in float64 for each shape, and after a change."""

import numpy as np
import paddle
import pytest
from paddle import nn
from ppdiffusers.models.activations import GEGLU

from sd.cpu.layers import speed_up
from tests.numeric import assert_close

KERNEL, OUTPUTS = 3, 136


def exact(layer, x):
    """Paddle's own convolution in float64."""
    own = nn.Conv2D(x.shape[1], OUTPUTS, KERNEL, padding=1)
    own.set_state_dict(layer.state_dict())
    return own.to(dtype="float64")(x.astype("float64")).numpy()


@pytest.fixture(autouse=True)
def faster_layers(monkeypatch):
    monkeypatch.delenv("SD_RUNTIME", raising=False)
    before = paddle.get_flags(["FLAGS_use_stride_kernel"])
    yield
    paddle.set_flags(before)


@pytest.fixture(params=[24, 128])
def frozen(request):
    """A layer of so many channels in; with 128 Winograd's way is faster for many tiles, by two kinds of them."""
    layer = nn.Conv2D(request.param, OUTPUTS, KERNEL, padding=1)
    speed_up(layer, frozen=True)
    return layer


def test_results_are_right_for_each_shape_in_turn_and_after_the_weights_change(frozen):
    channels = frozen._in_channels
    terms = 2 * channels * KERNEL**2  # of the two factors of each product
    with paddle.no_grad():
        for round_ in range(3):
            for shape in (
                [2, channels, 8, 6],
                [64, channels, 4, 4],
                [8, channels, 4, 4],
                [1, channels, 5, 5],
                [2, channels, 8, 6],
            ):
                x = paddle.randn(shape)
                assert_close(frozen(x).numpy(), exact(frozen, x), terms)
            if round_ == 0:
                frozen.weight.set_value(paddle.randn(frozen.weight.shape))
            else:
                frozen.set_state_dict({name: -2 * value for name, value in frozen.state_dict().items()})


def test_gradients_are_those_of_the_weights_as_they_are(frozen):
    x = paddle.randn([64, frozen._in_channels, 4, 4])
    with paddle.no_grad():
        frozen(x)
    frozen(x).sum().backward()
    own = nn.Conv2D(x.shape[1], OUTPUTS, KERNEL, padding=1)
    own.set_state_dict(frozen.state_dict())
    own = own.to(dtype="float64")
    own(x.astype("float64")).sum().backward()
    assert_close(frozen.weight.grad.numpy(), own.weight.grad.numpy(), 2 * 64 * 16)
    assert np.isfinite(frozen.bias.grad.numpy()).all()


def test_a_gate_is_right_for_each_shape_in_turn_and_after_the_weights_change():
    layer = GEGLU(24, 40)
    speed_up(layer, frozen=True)
    for _ in range(2):
        own = GEGLU(24, 40)
        own.set_state_dict(layer.state_dict())
        own = own.to(dtype="float64")
        for shape in ([2, 6, 24], [1, 5, 24], [2, 6, 24]):
            x = paddle.randn(shape)
            with paddle.no_grad():
                assert_close(layer(x).numpy(), own(x.astype("float64")).numpy(), 24 + 16)  # channels, and the gate
        assert layer._packed["weight"]
        for parameter in layer.parameters():
            parameter.set_value(paddle.randn(parameter.shape))
