"""Layers made faster for a CPU against Paddle's own in float64: results, gradients, names of the weights."""

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn
from ppdiffusers.models.activations import GEGLU
from ppdiffusers.models.attention_processor import Attention, AttnProcessor
from ppdiffusers.models.resnet import Downsample2D, ResnetBlock2D
from ppdiffusers.models.transformer_2d import Transformer2DModel

from sd.cpu import convolution, gates, norms, onednn, products
from sd.cpu.layers import speed_up
from sd.models.loading import random_unet
from tests.numeric import assert_close, roundings


@pytest.fixture(autouse=True)
def faster_layers(monkeypatch):
    """They are on whatever the environment of the tests says, and leave Paddle's own flag as it was."""
    monkeypatch.delenv("SD_RUNTIME", raising=False)
    before = paddle.get_flags(["FLAGS_use_stride_kernel"])
    yield
    paddle.set_flags(before)


def randomise(layer):
    """Random weights as wide as trained ones, so that results stay near 1; a bias of zeros would show nothing."""
    for parameter in layer.parameters():
        inputs = {1: 1, 2: parameter.shape[0], 4: math.prod(parameter.shape[1:])}[parameter.ndim]
        parameter.set_value(paddle.randn(parameter.shape) / inputs**0.5)


def transformer(**options):
    return Transformer2DModel(2, 4, in_channels=8, norm_num_groups=2, **options)


def in_float64(make, layer):
    """Paddle's own layer with the weights of `layer`, computing in float64."""
    exact = make()
    exact.set_state_dict(layer.state_dict())
    return exact.to(dtype="float64")


def call(layer, x, *others):
    if isinstance(layer, Transformer2DModel):
        return layer(x, return_dict=False)[0]
    return layer(x, None) if isinstance(layer, ResnetBlock2D) and not others else layer(x, *others)


def result_and_gradients(layer, x, weight):
    """{name: array}: the result, and what x and each parameter get from a loss that weighs every number of it."""
    tensors = {"x": x, **dict(layer.named_parameters())}
    for tensor in tensors.values():
        tensor.stop_gradient = False
        tensor.clear_gradient(False)
    y = call(layer, x)
    (y * weight.astype(y.dtype)).sum().backward()
    return {"y": y.numpy(), **{name: tensor.grad.numpy() for name, tensor in tensors.items()}}


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(6, 5), [4, 7, 6]),
        (lambda: nn.Linear(6, 5, bias_attr=False), [3, 6]),
        (lambda: nn.Conv2D(3, 5, 3, padding=1), [2, 3, 8, 6]),
        (lambda: nn.Conv2D(3, 5, 3, padding=[1, 2], stride=2, dilation=2), [2, 3, 8, 6]),
        (lambda: nn.Conv2D(4, 6, 3, stride=2, dilation=2, groups=2, padding=2), [2, 4, 9, 9]),
        (lambda: nn.Conv2D(3, 5, 1, bias_attr=False), [2, 3, 4, 4]),
        (lambda: nn.Conv2D(3, 5, 3, padding="same"), [2, 3, 4, 4]),
        (lambda: nn.Conv2D(3, 5, 3, padding=[1, 0, 2, 1]), [2, 3, 6, 6]),
        (lambda: nn.Conv2D(3, 5, 3, padding=1, padding_mode="reflect"), [2, 3, 6, 6]),
        (lambda: nn.Conv2D(3, 5, 3, padding=1, data_format="NHWC"), [2, 6, 6, 3]),
        (lambda: nn.LayerNorm(6), [2, 5, 6]),
        (lambda: nn.LayerNorm([5, 6]), [2, 5, 6]),
        (lambda: nn.LayerNorm(6, bias_attr=False), [2, 5, 6]),
        (lambda: nn.GroupNorm(2, 6), [2, 6, 4, 3]),
        (lambda: nn.GroupNorm(2, 6, data_format="NHWC"), [2, 4, 3, 6]),
        (lambda: GEGLU(6, 5), [2, 3, 6]),
        (lambda: Downsample2D(4, use_conv=True, padding=0), [2, 4, 6, 8]),
        (lambda: Downsample2D(4, use_conv=True, padding=1), [2, 4, 6, 8]),
        (lambda: Downsample2D(4), [2, 4, 6, 8]),
        (lambda: ResnetBlock2D(in_channels=4, out_channels=8, groups=2, temb_channels=None), [2, 4, 6, 8]),
        (lambda: ResnetBlock2D(in_channels=4, groups=2, temb_channels=None, output_scale_factor=2.0), [2, 4, 6, 8]),
        (lambda: ResnetBlock2D(in_channels=4, groups=2, temb_channels=None, down=True), [2, 4, 6, 8]),
        (lambda: ResnetBlock2D(in_channels=4, groups=2, temb_channels=None, non_linearity="gelu"), [2, 4, 6, 8]),
        (transformer, [2, 8, 4, 3]),
        (lambda: transformer(use_linear_projection=True), [2, 8, 4, 3]),
        (lambda: Attention(8, heads=2, dim_head=4), [2, 5, 8]),
        (lambda: Attention(8, heads=2, dim_head=3, scale_qk=False), [2, 5, 8]),
        (lambda: Attention(8, heads=2, dim_head=4, norm_num_groups=2), [2, 5, 8]),
        (lambda: Attention(8, heads=2, dim_head=4, rescale_output_factor=2.0), [2, 5, 8]),
        (lambda: Attention(8, heads=2, dim_head=4, residual_connection=True, norm_num_groups=2), [2, 8, 2, 3]),
    ],
)
def test_results_and_gradients_are_paddles(make, shape):
    """A number goes through no more terms of sums, one layer of a block after another, than x has numbers."""
    paddle.seed(0)
    layer, x = make(), paddle.randn(shape)
    randomise(layer)
    names, weight = list(layer.state_dict()), paddle.randn(call(layer, x).shape)
    reference = result_and_gradients(in_float64(make, layer), x.astype("float64"), weight)
    speed_up(layer)
    actual = result_and_gradients(layer, x, weight)
    assert actual.keys() == reference.keys()
    for name, expected in reference.items():
        assert_close(actual[name], expected, x.size, name)
    assert list(layer.state_dict()) == names


def test_a_unet_computes_by_the_faster_operations_alone(monkeypatch):
    """Every convolution, norm and attention, each linear layer with a bias, its gate if it has one; Paddle's own would
    be slow."""
    unet = random_unet("demo/unet_config.json")
    gated = [layer.proj for layer in unet.sublayers() if isinstance(layer, GEGLU)]
    expected = [
        layer
        for layer in unet.sublayers()
        if isinstance(layer, nn.Conv2D | nn.LayerNorm | nn.GroupNorm | Attention | GEGLU)
        or (isinstance(layer, nn.Linear) and layer.bias is not None and layer not in gated)
    ]
    speed_up(unet)
    calls, own_silu = [], []
    for operation in (
        convolution.convolution,
        products.linear,
        products.pointwise,
        products.attention,
        norms.layer_norm,
        norms.group_norm,
        gates.geglu,
    ):
        watched = lambda *a, operation=operation: calls.append(operation) or operation(*a)  # noqa: E731
        monkeypatch.setattr(sys.modules[operation.__module__], operation.__name__, watched)
    blocks = [layer for layer in unet.sublayers() if isinstance(layer, ResnetBlock2D)]
    hook = blocks[0].nonlinearity.register_forward_post_hook(lambda layer, x, y: own_silu.append(y.ndim))
    unet(paddle.randn([2, 4, 4, 4]), paddle.to_tensor([1, 2]), paddle.randn([2, 16, 64]))
    assert len(calls) == len(expected)
    hook.remove()
    assert own_silu.count(4) == 1  # at the UNet's end; those of the blocks go with their norms


def test_a_blocks_time_is_added():
    make = lambda: ResnetBlock2D(in_channels=4, groups=2, temb_channels=6)  # noqa: E731
    block = make()
    randomise(block)
    x, time = paddle.randn([2, 4, 6, 8]), paddle.randn([2, 6])
    exact = in_float64(make, block)
    speed_up(block)
    reference = exact(x.astype("float64"), time.astype("float64")).numpy()
    assert_close(block(x, time).numpy(), reference, x.size)  # as above
    assert roundings(block(x, time + 1.0).numpy(), reference) > 100 * x.size


@pytest.mark.parametrize("case", ["other tokens", "mask", "other processor"])
def test_attention_with_what_only_paddles_own_takes(case):
    def make():
        layer = Attention(8, cross_attention_dim=6, heads=2, dim_head=4)
        if case == "other processor":
            layer.set_processor(Doubled())
        return layer

    layer = make()
    randomise(layer)
    x, context, mask = paddle.randn([2, 5, 8]), paddle.randn([2, 3, 6]), None
    if case == "mask":
        mask = paddle.where(paddle.rand([2, 1, 5, 3]) < 0.5, 0.0, -1e4)
    wide = [tensor if tensor is None else tensor.astype("float64") for tensor in (x, context, mask)]
    reference = in_float64(make, layer)(*wide).numpy()
    speed_up(layer)
    assert_close(layer(x, context, mask).numpy(), reference, 8 + 6 + 4 + 3 + 3 + 8)  # to q, k; scores, softmax, v; out


class Doubled(AttnProcessor):
    def __call__(self, *arguments, **options):
        return super().__call__(*arguments, **options) * 2.0


class OtherNorm(nn.LayerNorm):
    def forward(self, x):
        return x


def test_a_norm_with_a_forward_of_its_own_keeps_it():
    layer = OtherNorm(4)
    speed_up(layer)
    assert type(layer) is OtherNorm


def test_without_onednn_the_layers_are_paddles_own(monkeypatch):
    monkeypatch.setattr(onednn, "is_available", lambda: False)
    layer = nn.Sequential(nn.Conv2D(3, 4, 3), nn.GroupNorm(2, 4), nn.LayerNorm(4), GEGLU(4, 4))
    speed_up(layer)
    assert [type(sublayer) for sublayer in layer] == [nn.Conv2D, nn.GroupNorm, nn.LayerNorm, GEGLU]


def test_switched_off_the_layers_are_paddles_own(monkeypatch):
    monkeypatch.setenv("SD_RUNTIME", "off")
    layer = nn.Sequential(nn.Linear(3, 3), nn.Conv2D(3, 4, 3), nn.GroupNorm(2, 4))
    paddle.set_flags({"FLAGS_use_stride_kernel": True})
    speed_up(layer)
    assert [type(sublayer) for sublayer in layer] == [nn.Linear, nn.Conv2D, nn.GroupNorm]
    assert paddle.get_flags(["FLAGS_use_stride_kernel"]) == {"FLAGS_use_stride_kernel": True}


class Elsewhere:
    """A tensor in the memory of another device, as far as a layer looks before it computes."""

    dtype = paddle.float32
    place = SimpleNamespace(is_cpu_place=lambda: False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(4, 4),
        lambda: nn.Conv2D(4, 4, 3),
        lambda: nn.LayerNorm(4),
        lambda: nn.GroupNorm(2, 4),
        lambda: GEGLU(4, 4),
        lambda: Downsample2D(4, use_conv=True, padding=0),
        lambda: ResnetBlock2D(in_channels=4, groups=2, temb_channels=None),
        lambda: Attention(4, heads=2, dim_head=2),
        transformer,
    ],
)
def test_tensors_of_another_device_go_to_paddles_own_layer(make, monkeypatch):
    """The faster layers read a tensor's memory themselves, which for that of a GPU would end the process."""
    layer = make()
    plain, x = type(layer), Elsewhere()
    taken = []
    monkeypatch.setattr(plain, "forward", lambda self, *arguments: taken.append(arguments))
    speed_up(layer)
    assert type(layer) is not plain
    layer.forward(x, "more")
    assert taken == [(x, "more")]


def test_float64_goes_to_paddles_own_layer():
    x = paddle.randn([2, 3, 5, 5], dtype="float64")
    layer = nn.Conv2D(3, 4, 3).to(dtype="float64")
    reference = layer(x).numpy()
    speed_up(layer)
    np.testing.assert_array_equal(layer(x).numpy(), reference)


OPENMP = """
import ctypes, paddle
from sd.cpu.layers import use_threads_of_mkl
use_threads_of_mkl()
print(ctypes.CDLL(paddle.sysconfig.get_lib() + "/libiomp5.so").omp_get_max_threads())
"""


@pytest.mark.parametrize(
    ("environ", "threads"),
    [({"MKL_NUM_THREADS": "3"}, 3), ({}, 1), ({"MKL_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, 2)],
)
def test_paddles_own_loops_have_the_threads_of_mkl(environ, threads):
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    result = subprocess.run(
        [sys.executable, "-c", OPENMP], capture_output=True, text=True, check=True, env=clean | environ
    )
    assert int(result.stdout) == threads
