"""An exponential moving average of weights, in float32, with warm-up (the form of arXiv 1509.04106 and later usage)."""

import contextlib

import paddle


class EMA:
    """The average of a layer's weights. `average`: name -> float32 tensor; `updates`: how often it has moved.

    decay: the largest one; the n-th update uses min(decay, (1 + n) / (10 + n)), so that the random start is soon
    forgotten. start_step: up to this optimizer step the average is a plain copy.
    """

    def __init__(self, layer, decay, start_step=0):
        self.layer, self.decay, self.start_step, self.updates = layer, decay, start_step, 0
        self.average = {name: _copy(parameter) for name, parameter in layer.named_parameters()}

    def decay_now(self):
        """The decay of the next update after start_step."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @paddle.no_grad()
    def update(self, step, masters=None, cancel=None):
        """Move the average after optimizer step `step` (counted from 1).

        masters: Paddle's parameter name -> float32 master weight, where there are any. cancel: bool tensor; where it is
        true the optimizer did not move and the average stays too.
        """
        if step <= self.start_step:
            share = 1.0
        else:
            share = 1.0 - self.decay_now()
            self.updates += 1
        share = paddle.full([], share, dtype="float32")  # to_tensor would copy it, and wait for the device
        if cancel is not None:
            share = paddle.where(cancel.reshape([]), paddle.zeros_like(share), share)
        for name, parameter in self.layer.named_parameters():
            value = (masters or {}).get(parameter.name, parameter)
            self.average[name].lerp_(value.astype("float32"), share)

    @contextlib.contextmanager
    def swapped_in(self):
        """Within the context the layer computes with the average, and the average is not to be read."""
        halves = self._exchange({})
        try:
            yield
        finally:
            self._exchange(halves)

    @paddle.no_grad()
    def _exchange(self, halves):
        """Exchange weights and average one by one; of weights in half precision (rounded averages) keep a copy."""
        kept = {}
        for name, parameter in self.layer.named_parameters():
            if parameter.dtype == paddle.float32:
                weights = parameter.clone()
                parameter.copy_(self.average[name], False)
                self.average[name] = weights
            else:
                kept[name] = parameter.clone()
                parameter.copy_(halves.get(name, self.average[name].astype(parameter.dtype)), False)
        return kept

    def load(self, arrays, updates):
        """Take an average that was kept. arrays: (name, NumPy array) pairs, each of the layer's weights once."""
        self.updates = updates
        for name, array in arrays:
            self.average[name].set_value(array)


def _copy(parameter):
    return parameter.detach().astype("float32").clone()
