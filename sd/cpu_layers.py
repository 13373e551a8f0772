"""What makes the same layers faster on a CPU, where Paddle adds a bias and sums its gradient element by element."""

import functools

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
            sublayer.__class__ = _with(_FastLinear, type(sublayer))
        elif isinstance(sublayer, nn.Conv2D) and sublayer._data_format == "NCHW" and sublayer._padding_mode == "zeros":
            sublayer.__class__ = _with(_FastConvolution, type(sublayer))


@functools.cache
def _with(faster, layer_class):
    """layer_class with the forward of `faster`. (A forward put on the layer itself is not what to_static expects.)"""
    return layer_class if issubclass(layer_class, faster) else type(layer_class.__name__, (faster, layer_class), {})


class _FastLinear:
    def forward(self, x, scale=None):
        y = paddle.matmul(x, self.weight)
        width = y.shape[-1]
        rows = paddle.ones([y.size // width, 1], dtype=y.dtype)
        return y + paddle.matmul(rows, self.bias.reshape([1, width])).reshape(y.shape)


class _FastConvolution:
    def forward(self, x, scale=None):
        y = F.conv2d(x, self.weight, None, self._stride, self._padding, self._dilation, self._groups)
        batch_size, channels, height, width = y.shape
        plane = paddle.matmul(self.bias.reshape([channels, 1]), paddle.ones([1, height * width], dtype=y.dtype))
        images = paddle.matmul(paddle.ones([batch_size, 1], dtype=y.dtype), plane.reshape([1, -1]))
        return y + images.reshape(y.shape)
