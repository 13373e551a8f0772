"""An exponential moving average of weights, in float32, with warm-up (the form of arXiv 1509.04106 and later usage)."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import paddle
from paddle import Tensor, _C_ops


class EMA:
    """The average of a layer's weights. `average`: name -> float32 tensor; `updates`: how often it has moved.

    decay: the largest one; the n-th update uses min(decay, (1 + n) / (10 + n)), so that the random start is soon
    forgotten. start_step: up to this optimizer step the average is a plain copy. merged: move all weights by one
    operator call, the default on a GPU, where a call for each would take longer than the work; on a CPU one by one is
    faster.
    """

    def __init__(self, layer: paddle.nn.Layer, decay: float, start_step: int = 0, merged: bool | None = None) -> None:
        self.layer, self.decay, self.start_step, self.updates = layer, decay, start_step, 0
        self.average = {name: _copy(parameter) for name, parameter in layer.named_parameters()}
        self._merged = paddle.device.get_device() != "cpu" if merged is None else merged
        self._zero = paddle.zeros([1], "float32")

    def decay_now(self) -> float:
        """The decay of the next update after start_step."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @paddle.no_grad()
    def update(self, step: int, masters: Mapping[str, Tensor] | None = None) -> None:
        """Move the average after optimizer step `step` (counted from 1), if that step moved the weights.

        masters: Paddle's parameter name -> float32 master weight, where there are any.
        """
        if step <= self.start_step:
            decay = 0.0
        else:
            decay = self.decay_now()
            self.updates += 1
        names, parameters = zip(*self.layer.named_parameters(), strict=True)
        weights = [(masters or {}).get(parameter.name, parameter) for parameter in parameters]
        weights = [weight if weight.dtype == paddle.float32 else weight.astype("float32") for weight in weights]
        averages = [self.average[name] for name in names]
        if self._merged:
            _merge(averages, weights, decay, self._zero)
            return
        share = paddle.full([], 1.0 - decay, dtype="float32")  # to_tensor would copy it, and wait for the device
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, share)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the context the layer computes with the average, and the average is not to be read."""
        halves = self._exchange({})
        try:
            yield
        finally:
            self._exchange(halves)

    @paddle.no_grad()
    def _exchange(self, halves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exchange weights and average one by one; of weights in half precision (rounded averages) keep a copy."""
        replaced = {}
        for name, parameter in self.layer.named_parameters():
            if parameter.dtype == paddle.float32:
                weights = parameter.clone()
                parameter.copy_(self.average[name], False)
                self.average[name] = weights
            else:
                replaced[name] = parameter.clone()
                parameter.copy_(halves.get(name, self.average[name].astype(parameter.dtype)), False)
        return replaced

    def load(self, arrays: Iterable[tuple[str, np.ndarray]], updates: int) -> None:
        """Take an average that was kept. arrays: (name, NumPy array) pairs, each of the layer's weights once."""
        self.updates = updates
        for name, array in arrays:
            self.average[name].set_value(array)


def _merge(averages: list[Tensor], weights: list[Tensor], decay: float, zero: Tensor) -> None:
    """average = decay * average + (1 - decay) * weight for all tensors in one call.

    That is the velocity of SGD with momentum whose gradient is the weight; its learning rate is zero, so that the
    weights themselves stay. The two factors are float32 numbers whose sum is one, which 0.9999 and 0.0001 are not.
    """
    rounded = np.float32(decay)
    share = float(np.float32(1) - rounded)
    _C_ops.merged_momentum_(weights, weights, averages, [zero], None, float(rounded), False, [], [], False, share)


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().astype("float32").clone()
