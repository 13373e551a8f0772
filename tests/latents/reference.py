"""What a training computes, once more in float64 from its pictures, tokens and draws; the loss by its formula."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from tests import exact
from tests.numeric import EPS, float16_rounding

LEARNING_RATE, WEIGHT_DECAY, EMA_DECAY = 1e-3, 0.01, 0.9999  # of tests/training_harness.py; the last is the flag's
TRAINING_TERMS = 4000  # as in tests/numeric.py
FLOAT16_TERMS = int(2.0**-11 / EPS)  # what the rounding of a cache to float16 is worth


@dataclass
class Call:
    """A call of the model: its batch as arrays, the weights of its UNet at that moment, its losses (float32 [B])."""

    model: Any
    batch: dict
    weights: dict
    sample_loss: np.ndarray
    loss: float
    training: bool


class Reference:
    """The models of a folder in float64, and the schedule of arXiv 2112.10752 in NumPy."""

    def __init__(self, folder, prediction_type):
        self.prediction_type = prediction_type
        self.vae, self.text_encoder, self.unet = (
            exact.load_float64(component, folder) for component in ("vae", "text_encoder", "unet")
        )
        self.scale = self.vae.config.scaling_factor
        self.alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
        self._inputs = {}

    def inputs(self, batch):
        """(latents, text states) of pictures and tokens, how far a cache's float16 may move each, terms of their
        sums."""
        key = batch["pixel_values"].tobytes(), batch["input_ids"].tobytes(), batch["posterior_noise"].tobytes()
        if key not in self._inputs:
            with exact.counted_terms(self.vae, self.text_encoder) as terms:
                mean, log_variance = exact.posterior(self.vae, batch["pixel_values"])
                states = exact.text_states(self.text_encoder, batch["input_ids"])
            drawn = np.exp(log_variance / 2) * batch["posterior_noise"]
            moved = float16_rounding(mean) + np.abs(drawn) * float16_rounding(log_variance) / 2
            latents = self.scale * (mean + drawn)
            self._inputs[key] = latents, states, self.scale * moved, float16_rounding(states), terms.count
        return self._inputs[key]

    def losses(self, latents, states, batch):
        """Squared error of each sample, a tensor float64 [B]. latents, states: tensors."""
        alpha_bar = paddle.to_tensor(self.alpha_bar[batch["timestep"]].reshape([-1, 1, 1, 1]))
        noise = paddle.to_tensor(batch["noise"].astype(np.float64))
        signal_rate, noise_rate = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        noisy = signal_rate * latents + noise_rate * noise
        prediction = self.unet(noisy, paddle.to_tensor(batch["timestep"]), states).sample
        expected = noise if self.prediction_type == "epsilon" else signal_rate * noise - noise_rate * latents
        return ((prediction - expected) ** 2).mean([1, 2, 3])

    def check_loss(self, call, batch):
        """Fail unless a Call's losses are those of its weights and of `batch`, the one of pictures and tokens.

        Float32 moves them by twice the terms of all sums, since they are squares, and by those of their mean; float16
        of a cache by its roundings times the gradient of the loss, and for the second order as much again.
        """
        latents, states, *moved, terms = self.inputs(batch)
        self._load(call.weights)
        variables = [paddle.to_tensor(array, stop_gradient=False) for array in (latents, states)]
        with exact.counted_terms(self.unet) as counted:
            losses = self.losses(*variables, batch)
        gradients = paddle.grad(losses.sum(), variables)
        expected = losses.numpy()
        allowed = np.full(len(expected), EPS * np.abs(expected).max() * (2 * (terms + counted.count) + latents[0].size))
        for name, movement, gradient in zip(("moments", "text_states"), moved, gradients, strict=True):
            if name in call.batch:
                of_sample = np.abs(gradient.numpy()) * movement
                allowed += 2 * of_sample.reshape(len(expected), -1).sum(axis=1)
        over = np.abs(call.sample_loss - expected) / allowed
        assert over.max() <= 1, f"a loss is off by {over.max():.3g} times what rounding explains"
        assert abs(call.loss - expected.mean()) <= allowed.mean()

    def train(self, calls):
        """(weights at the start, at the end, their average) as vectors, of AdamW in float64 on the batches of Calls of
        pictures, with the warm-up of the average (arXiv 1509.04106)."""
        self._load(calls[0].weights)
        optimizer = paddle.optimizer.AdamW(LEARNING_RATE, parameters=self.unet.parameters(), weight_decay=WEIGHT_DECAY)
        start = average = self._vector()
        for step, call in enumerate(calls, start=1):
            latents, states, *_ = self.inputs(call.batch)
            self.losses(paddle.to_tensor(latents), paddle.to_tensor(states), call.batch).mean().backward()
            optimizer.step()
            optimizer.clear_grad()
            decay = min(EMA_DECAY, step / (9 + step))
            average = decay * average + (1 - decay) * self._vector()
        return start, self._vector(), average

    def _load(self, weights):
        self.unet.set_state_dict({name: weight.astype(np.float64) for name, weight in weights.items()})

    def _vector(self):
        state = self.unet.state_dict()
        return np.concatenate([state[name].numpy().ravel() for name in sorted(state)])
