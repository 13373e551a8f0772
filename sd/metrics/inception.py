"""The Inception-v3 of FID (arXiv 1512.00567 as TensorFlow's 2015 release has it), up to its 2048 pooled features.

Names of weights are those of the PyTorch port that published FID figures are computed with. What differs there from
the ImageNet network of the same name: average pools leave the padding out, and the last block pools by maximum.
"""

from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional as F

from sd.errors import InputError
from sd.models.torch_file import read_torch_file
from sd.models.weight_file import read_safetensors

FEATURES = 2048
SIDE = 299
_IGNORED = ("fc.", "AuxLogits.", "num_batches_tracked")
_STATISTICS = {"running_mean": "_mean", "running_var": "_variance"}


class _Conv(nn.Layer):
    def __init__(self, in_channels, out_channels, kernel, stride=1, padding=None):
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        if padding is None:  # convolutions keep the size unless they halve it
            padding = tuple(side // 2 for side in kernel) if stride == 1 else 0
        self.conv = nn.Conv2D(in_channels, out_channels, kernel, stride, padding, bias_attr=False)
        self.bn = nn.BatchNorm2D(out_channels, epsilon=1e-3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def _average(x):
    return F.avg_pool2d(x, 3, 1, 1, exclusive=True)


def _maximum(x):
    return F.max_pool2d(x, 3, 1, 1)


def _halve(x):
    return F.max_pool2d(x, 3, 2)


class _Block(nn.Layer):
    """Branches side by side, their outputs joined. A branch is a list of pools, convolutions (name, channels, kernel,
    stride) and, as its end, a tuple of convolutions that all take what came before."""

    def __init__(self, in_channels, *branches):
        super().__init__()
        self.branches = [self._make(in_channels, branch) for branch in branches]

    def _make(self, channels, branch):
        steps = []
        for step in branch:
            if callable(step):
                steps.append([step])
                continue
            fork = step if isinstance(step[0], tuple) else (step,)
            for name, out_channels, *shape in fork:
                setattr(self, name, _Conv(channels, out_channels, *shape))
            steps.append([getattr(self, name) for name, *_ in fork])
            channels = fork[-1][1]
        return steps

    def forward(self, x):
        outputs = []
        for branch in self.branches:
            tensors = [x]
            for step in branch:
                tensors = [layer(tensors[0]) for layer in step]
            outputs += tensors
        return paddle.concat(outputs, axis=1)


def _block_a(in_channels, pooled):
    return _Block(
        in_channels,
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        [_average, ("branch_pool", pooled, 1)],
    )


def _block_b(in_channels):
    return _Block(
        in_channels,
        [("branch3x3", 384, 3, 2)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)],
        [_halve],
    )


def _block_c(c):
    row, column = (1, 7), (7, 1)
    double = [(c, column), (c, row), (c, column), (192, row)]
    return _Block(
        768,
        [("branch1x1", 192, 1)],
        [("branch7x7_1", c, 1), ("branch7x7_2", c, row), ("branch7x7_3", 192, column)],
        [("branch7x7dbl_1", c, 1), *((f"branch7x7dbl_{i}", *step) for i, step in enumerate(double, start=2))],
        [_average, ("branch_pool", 192, 1)],
    )


def _block_d():
    return _Block(
        768,
        [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
        [
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, 2),
        ],
        [_halve],
    )


def _block_e(in_channels, pool):
    row, column = (1, 3), (3, 1)
    return _Block(
        in_channels,
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), (("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column))],
        [
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            (("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)),
        ],
        [pool, ("branch_pool", 192, 1)],
    )


class Inception(nn.Layer):
    """Pictures float32 [B,3,H,W] in [-1,1], of any size -> features [B,2048]."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, padding=0)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_block_c, (128, 160, 160, 192))
        self.Mixed_7a = _block_d()
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, _average), _block_e(2048, _maximum)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, [SIDE, SIDE], mode="bilinear", align_corners=False)
        x = _halve(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = _halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for block in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{block}")(x)
        return x.mean([2, 3])


def load_inception(path: str | Path) -> Inception:
    """Inception with the weights of a file that has the PyTorch port's names: its own .pth, or .safetensors.

    Raises InputError if it is no such file.
    """
    model = Inception()
    missing = model.state_dict()
    for name, value in _read_weights(path):
        if any(part in name for part in _IGNORED):
            continue
        stem, _, last = name.rpartition(".")
        target = missing.pop(f"{stem}.{_STATISTICS.get(last, last)}", None)
        if target is None or list(target.shape) != list(value.shape):
            raise InputError(f"{path}: {name} {list(value.shape)} is no weight of FID's Inception-v3")
        target.set_value(value.astype(np.float32))
    if missing:
        raise InputError(f"{path}: lacks {len(missing)} weights of FID's Inception-v3 (first: {min(missing)})")
    model.eval()
    return model


def _read_weights(path):
    """(name, array) of every weight in a file."""
    if Path(path).suffix != ".safetensors":
        yield from read_torch_file(path).items()
        return
    yield from read_safetensors(path)
