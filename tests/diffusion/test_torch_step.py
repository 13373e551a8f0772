"""Paddle against numbers that PyTorch and diffusers computed: bench/torch_step.py recorded them."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from bench import torch_step
from sd.diffusion.model import StableDiffusionModel
from sd.flags.arguments import SDModelArguments
from sd.models.loading import load_component
from tests.numeric import EPS, assert_close, most_of_way
from tests.tiny import make_tiny_repository

RECORDED = json.loads((Path(__file__).resolve().parents[1] / "fixtures" / "torch_step.json").read_text())
TERMS = 1000  # of the sums that a gradient goes through: of the two layers of each block about 100, in float32 twice


@pytest.fixture(scope="module")
def frozen_parts(tmp_path_factory):
    folder = str(make_tiny_repository(tmp_path_factory.mktemp("tiny")))
    return {part: load_component(part, folder, part) for part in ("vae", "text_encoder", "tokenizer")}


def make_model(frozen_parts, flags):
    """Our model around the UNet with weights made by name; linear layers keep them transposed here."""
    from ppdiffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**torch_step.UNET_CONFIG)
    for name, parameter in unet.named_parameters():
        shape = parameter.shape[::-1] if parameter.ndim == 2 else parameter.shape
        weight = torch_step.make_weight(name, tuple(shape))
        parameter.set_value(weight.T if parameter.ndim == 2 else weight)
    return StableDiffusionModel(unet=unet, **frozen_parts, model_args=SDModelArguments(**flags))


def loss_of(model, step):
    batch = {name: paddle.to_tensor(value) for name, value in torch_step.make_batch(step).items()}
    if not model.model_args.noise_offset:
        del batch["offset_noise"], batch["perturbation_noise"]
    return model.denoise(**batch)["loss"]


def fingerprint(name, tensor):
    value = tensor.numpy()
    return torch_step.fingerprint(name, np.ascontiguousarray(value.T) if value.ndim == 2 else value)


def largest_error(recorded, tensors):
    """Over all tensors, the error of the recorded sums relative to the tensor's norm."""
    assert set(recorded) == set(tensors)
    errors = {}
    for name, tensor in tensors.items():
        norm, *sums = recorded[name]
        our_norm, *our_sums = fingerprint(name, tensor)
        errors[name] = max(abs(our_norm - norm), *(abs(a - b) for a, b in zip(sums, our_sums, strict=True))) / norm
    return max(errors.values()), max(errors, key=errors.get)


@pytest.mark.parametrize("case", torch_step.CASES)
def test_loss_and_gradients_are_those_of_pytorch(frozen_parts, case):
    model = make_model(frozen_parts, torch_step.CASES[case])
    loss = loss_of(model, 0)
    loss.backward()
    recorded = RECORDED["cases"][case]
    assert_close(loss.numpy(), np.float64(recorded["loss"]), TERMS)
    error, worst = largest_error(recorded["gradients"], {n: p.grad for n, p in model.unet.named_parameters()})
    assert error < TERMS * EPS, worst


def test_ten_adamw_steps_end_at_pytorchs_weights(frozen_parts):
    model = make_model(frozen_parts, {})
    optimizer = paddle.optimizer.AdamW(
        torch_step.ADAMW["lr"],
        *torch_step.ADAMW["betas"],
        epsilon=torch_step.ADAMW["eps"],
        weight_decay=torch_step.ADAMW["weight_decay"],
        parameters=model.unet.parameters(),
    )
    losses = []
    for step in range(torch_step.NUM_STEPS):
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert_close(losses, np.array(RECORDED["after_steps"]["losses"]), TERMS)
    weights = dict(model.unet.named_parameters())
    error, worst = largest_error(RECORDED["after_steps"]["weights"], weights)
    start = {name: p.clone() for name, p in make_model(frozen_parts, {}).unet.named_parameters()}
    moved, _ = largest_error(RECORDED["after_steps"]["weights"], start)
    assert error < most_of_way(TERMS) * moved, worst
