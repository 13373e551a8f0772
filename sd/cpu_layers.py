"""What makes the same layers faster on a CPU, where Paddle adds a bias and sums its gradient element by element."""

import types

import paddle
import paddle.nn.functional as F
from paddle import nn


def speed_up(layer):
    """Let the convolutions and linear layers in `layer` add their biases by matrix products, and copy transposed
    tensors at once: Paddle's views of them, made for GPUs, are copied by every operation that follows.

    Weights, their names and, to rounding, the results stay. Measured by bench/training.py.
    """
    paddle.set_flags({"FLAGS_use_stride_kernel": False})
    for sublayer in layer.sublayers(include_self=True):
        if getattr(sublayer, "bias", None) is None or getattr(sublayer, "lora_layer", None) is not None:
            continue
        if isinstance(sublayer, nn.Linear):
            sublayer.forward = types.MethodType(_linear, sublayer)
        elif isinstance(sublayer, nn.Conv2D) and sublayer._data_format == "NCHW" and sublayer._padding_mode == "zeros":
            sublayer.forward = types.MethodType(_convolve, sublayer)


def _linear(layer, x, scale=None):
    y = paddle.matmul(x, layer.weight)
    width = y.shape[-1]
    rows = paddle.ones([y.size // width, 1], dtype=y.dtype)
    return y + paddle.matmul(rows, layer.bias.reshape([1, width])).reshape(y.shape)


def _convolve(layer, x, scale=None):
    y = F.conv2d(x, layer.weight, None, layer._stride, layer._padding, layer._dilation, layer._groups)
    batch_size, channels, height, width = y.shape
    plane = paddle.matmul(layer.bias.reshape([channels, 1]), paddle.ones([1, height * width], dtype=y.dtype))
    images = paddle.matmul(paddle.ones([batch_size, 1], dtype=y.dtype), plane.reshape([1, -1]))
    return y + images.reshape(y.shape)
