"""What a training step asks of the device: one value back, no copy from the host that waits, few operator calls."""

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from sd.training.step import StepRunner
from tests.numeric import assert_same_training
from tests.training_harness import EMA, UNET, weights


@pytest.fixture
def in_step(monkeypatch):
    """A list that is not empty while a step is taken."""
    inside = []
    take = StepRunner.run

    def watched(self, *arguments):
        inside.append(True)
        try:
            return take(self, *arguments)
        finally:
            inside.clear()

    monkeypatch.setattr(StepRunner, "run", watched)
    return inside


@pytest.mark.parametrize("workers", [0, 1])
def test_a_step_copies_nothing_between_host_and_device(workshop, monkeypatch, in_step, workers):
    """`to_tensor` waits for the device; batches come as tensors, copied ahead by Paddle's reader on its own stream."""
    copies = []
    for owner, name in ((paddle, "to_tensor"), *((paddle.Tensor, name) for name in ("cpu", "cuda", "_copy_to"))):
        original = getattr(owner, name)

        def counted(*args, original=original, name=name, **kwargs):
            if in_step:
                copies.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
    flags = ["--use_ema", "--gradient_accumulation_steps", 2, "--dataloader_num_workers", workers]
    workshop.train(f"no_copy_{workers}", *flags, "--snr_gamma", 5, "--noise_offset", 0.1)
    assert copies == []


def test_a_step_reads_one_value_from_the_device(workshop, monkeypatch, in_step):
    """Loss, gradients and signals of all ranks come back together; reading waits for the device."""
    read = []
    for name in ("numpy", "item", "tolist", "__bool__", "__float__", "__int__", "__array__"):
        original = getattr(paddle.Tensor, name)

        def counted(self, *arguments, original=original, name=name):
            if in_step and (self.dtype != paddle.int64 or self.ndim):  # ppdiffusers reads shapes, which the host has
                read.append((name, list(self.shape)))
            return original(self, *arguments)

        monkeypatch.setattr(paddle.Tensor, name, counted)
    flags = ["--use_ema", "--max_steps", 3, "--gradient_accumulation_steps", 2, "--max_grad_norm", 1]
    workshop.train("one_read", *flags)
    assert read == [("numpy", [4])] * 3


@pytest.mark.parametrize("layers", ["Paddle's", "a CPU's"])
def test_a_step_calls_few_operators(workshop, monkeypatch, in_step, layers):
    """Calls from Python beside memory taken, one a weight for the check of its gradient and one for the average on a
    CPU: 1,355 with Paddle's own layers, as on a GPU, where the backward pass is not among them; 1,330 with those for a
    CPU, whose backward pass is called from Python too.
    """
    calls = []
    for name, operator in list(vars(paddle._C_ops).items()):
        if callable(operator) and not name.startswith("_"):

            def counted(*args, operator=operator, name=name, **kwargs):
                if in_step:
                    calls.append(name)
                return operator(*args, **kwargs)

            monkeypatch.setattr(paddle._C_ops, name, counted)
    if layers == "Paddle's":
        monkeypatch.setattr("sd.training.trainer.speed_up", lambda layer: None)
    folder = f"calls_{layers}"
    workshop.train(folder, "--use_ema", "--max_steps", 1)
    first = len(calls)
    workshop.train(folder, "--use_ema", "--max_steps", 2)
    second = [name for name in calls[first:] if name != "empty"]
    num_weights = len(load_file(workshop.folder / folder / "checkpoint-2" / UNET))
    assert second.count("fused_adam_") == 1 and second.count("adamw_") == 0
    assert second.count("lerp_") == second.count("squared_l2_norm") == num_weights
    assert 400 < len(second) - 2 * num_weights <= 1400, (
        len(second) - 2 * num_weights,
        {name: second.count(name) for name in sorted(set(second))},
    )


@pytest.mark.slow
def test_to_static_trains_and_resumes_as_without(workshop):
    flags = ["--use_ema", "--max_steps", 4, "--save_steps", 2, "--snr_gamma", 5]
    dynamic = workshop.train("dynamic", *flags)
    static = workshop.train("static", *flags, "--to_static", True)
    start = workshop.train("start", *flags, "--learning_rate", 0, "--max_steps", 1) / "checkpoint-1"
    for name in (UNET, EMA):
        ends = (weights(folder / "checkpoint-4", name) for folder in (static, dynamic))
        assert_same_training(*ends, weights(start, name), name=name)
    half = ["--resume_from_checkpoint", static / "checkpoint-2"]
    resumed = workshop.train("static_resumed", *flags, "--to_static", True, *half)
    assert np.array_equal(weights(resumed / "checkpoint-4"), weights(static / "checkpoint-4"))
    back = workshop.train("dynamic_resumed", *flags, *half, "--allow_changed_resume")
    assert_same_training(weights(back / "checkpoint-4"), weights(dynamic / "checkpoint-4"), weights(start))
