"""The outcome of a step: applied or skipped, by weights, schedule, average and loss scale alike, on all ranks."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from sd.errors import RunError
from sd.runs import checkpoint as ck
from sd.training.step import StepRunner, sum_of_squares
from sd.training.trainer import StableDiffusionTrainer
from tests.numeric import assert_close
from tests.training_harness import EMA, UNET, checksums, weights


@pytest.fixture
def bad_gradients(monkeypatch):
    """{step: value}: a number of the last weight's gradient becomes `value` in that step; the loss stays as it is."""
    bad = {}
    real = StableDiffusionTrainer.backward

    def backward(self, loss):
        real(self, loss)
        if (value := bad.get(self.state.global_step + 1)) is not None:
            gradient = self.trained_parameters[-1].grad
            array = gradient.numpy()
            array.flat[0] = value
            gradient.set_value(array)

    monkeypatch.setattr(StableDiffusionTrainer, "backward", backward)
    return bad


def test_the_sum_of_squares_is_numpys_and_shows_a_single_bad_number():
    arrays = [np.random.default_rng(seed).standard_normal((3, 5 * seed + 1)).astype(np.float32) for seed in range(4)]
    expected = sum(float((array.astype(np.float64) ** 2).sum()) for array in arrays)
    assert float(sum_of_squares(map(paddle.to_tensor, arrays))) == pytest.approx(expected, rel=1e-6)
    halves = [paddle.full([70_000], 1.0).astype("float16")]  # more than float16 can count to
    assert float(sum_of_squares(halves)) == pytest.approx(70_000, rel=1e-6)
    for bad in (np.nan, np.inf, -np.inf):
        arrays[2][1, 3] = bad
        assert not np.isfinite(float(sum_of_squares(map(paddle.to_tensor, arrays))))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [-1, 1.0])
def test_a_nan_gradient_skips_the_step_and_its_weight_is_named(workshop, bad_gradients, caplog, value, clip):
    bad_gradients[2] = value
    flags = ["--save_steps", 1, "--max_steps", 3, "--use_ema", "--lr_scheduler_type", "linear", "--max_grad_norm", clip]
    output_dir = workshop.train(f"gradient_{value}_{clip}", *flags)
    first, second, third = (output_dir / f"checkpoint-{step}" for step in (1, 2, 3))
    for name in (UNET, EMA, "optimizer.safetensors", "scheduler.json", "ema_state.json"):
        assert checksums(first)[name] == checksums(second)[name] != checksums(third)[name], name
    states = [json.loads((folder / "data_state.json").read_text()) for folder in (first, second, third)]
    assert [state["samples_seen"] for state in states] == [4, 8, 12]  # the skipped samples do not come again
    last = [name for name, _ in _named_weights(workshop)][-1]
    assert f"step 2 skipped: the gradient of unet.{last} is NaN or infinite" in caplog.text


def _named_weights(workshop):
    from ppdiffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(str(workshop.folder / "models/unet")).named_parameters()


def test_consecutive_bad_gradients_end_the_run_at_once(workshop, bad_gradients):
    bad_gradients.update(dict.fromkeys(range(3, 100), float("nan")))
    with pytest.raises(
        RunError, match=r"step 5: 3 consecutive steps were skipped.*--max_bad_steps 2.*the gradient of unet"
    ):
        workshop.train("rows", "--max_bad_steps", 2, "--max_steps", 50, "--logging_steps", 50)


def test_a_good_step_resets_the_count_of_skipped_ones(workshop, bad_gradients):
    bad_gradients.update(dict.fromkeys((1, 2, 4, 5, 7, 8), float("nan")))
    output_dir = workshop.train("reset", "--max_bad_steps", 2, "--max_steps", 9)
    assert np.isfinite(weights(output_dir / "checkpoint-9")).all()


@pytest.fixture
def scales(bad_gradients, monkeypatch):
    """The loss scale of each step of the runs that follow.

    A CPU has no float16, so a scaler is put in by hand, which Paddle makes inert unless its place is a card's.
    """
    actual = []

    class Place:
        def __getattr__(self, name):
            return lambda: name == "is_gpu_place"

    tracer = type("Tracer", (), {"_expected_place": Place()})()
    load = StableDiffusionTrainer._load_optimizer_and_scheduler

    def load_with_scaler(self, checkpoint):
        with monkeypatch.context() as patch:
            patch.setattr("paddle.amp.grad_scaler._dygraph_tracer", lambda: tracer, raising=False)
            patch.setattr("paddle.base.framework._dygraph_tracer", lambda: tracer)
            self.scaler = paddle.amp.GradScaler(init_loss_scaling=1024.0)
        assert self.scaler.is_enable()
        self.do_grad_scaling = True
        load(self, checkpoint)

    def backward(self, loss):
        actual.append(float(self.scaler._scale))
        (loss * self.scaler._scale).backward()
        if self.state.global_step + 1 in bad_gradients:
            gradient = self.trained_parameters[-1].grad
            gradient.set_value(paddle.full_like(gradient, float("inf")))

    monkeypatch.setattr(StableDiffusionTrainer, "_load_optimizer_and_scheduler", load_with_scaler)
    monkeypatch.setattr(StableDiffusionTrainer, "backward", backward)
    return actual


def test_a_skipped_step_lowers_the_loss_scale_a_good_one_leaves_it_and_a_resume_takes_it_up(
    workshop, bad_gradients, request
):
    plain = workshop.train("unscaled", "--max_steps", 1)
    scales = request.getfixturevalue("scales")
    bad_gradients[2] = float("inf")
    scaled = workshop.train("scaled", "--max_steps", 3, "--save_steps", 1)
    assert scales == [1024, 1024, 512]
    # A power of two rounds nothing; what it lifts out of the denormal numbers, Adam's epsilon keeps small.
    assert_close(weights(scaled / "checkpoint-1"), weights(plain / "checkpoint-1").astype(np.float64), 4)
    workshop.train("scaled", "--max_steps", 4)
    assert scales == [1024, 1024, 512, 512]
    for step in range(1, 5):
        assert np.isfinite(weights(scaled / f"checkpoint-{step}")).all()
    assert checksums(scaled / "checkpoint-1")[UNET] == checksums(scaled / "checkpoint-2")[UNET]


class OtherFlagsAreOff(SimpleNamespace):
    def __getattr__(self, name):
        return False


def test_dropout_is_drawn_by_seed_step_and_rank():
    """Ranks with the same masks would train on half the noise; a resumed run must draw the masks of the whole one."""

    def first_draw(seed, step, rank):
        drawn = []

        def forward(model, batch):
            drawn.append(paddle.nn.functional.dropout(paddle.ones([256])).numpy().astype(bool))
            return {"loss": paddle.zeros([]), "sample_loss": paddle.zeros([1]), "timestep": paddle.zeros([1])}

        args = OtherFlagsAreOff(seed=seed, process_index=rank, gradient_accumulation_steps=2, world_size=1)
        nothing = SimpleNamespace(step=lambda: None, clear_grad=lambda **options: None, _parameter_list=[])
        trainer = SimpleNamespace(
            args=args, state=SimpleNamespace(global_step=step), forward=forward, backward=lambda loss: None,
            optimizer=nothing, lr_scheduler=nothing, do_grad_scaling=False, ema=None,
        )  # fmt: skip
        assert StepRunner(trainer, None).run(itertools.repeat({"sample": np.zeros(1)})).applied
        assert (drawn[0] != drawn[1]).any()
        return drawn[0]

    one = first_draw(23, 5, 0)
    assert (one == first_draw(23, 5, 0)).all()
    for other in ((24, 5, 0), (23, 6, 0), (23, 5, 1)):
        assert 70 < (one != first_draw(*other)).sum() < 186  # of 256, half in the mean: 9 deviations are near certain


def test_a_signal_between_micro_batches_leaves_the_step_out(workshop, monkeypatch):
    """A step of many micro-batches is not waited for; the samples of its first ones come again after the resume."""
    import os
    import signal

    flags = ["--gradient_accumulation_steps", 4, "--per_device_train_batch_size", 1, "--max_steps", 3]
    whole = workshop.train("accumulated", *flags)
    calls = itertools.count(1)
    real = StableDiffusionTrainer.backward

    def backward(self, loss):
        real(self, loss)
        if next(calls) == 6:  # the second of step 2
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusionTrainer, "backward", backward)
        halves = workshop.train("accumulated_halves", *flags)
    assert workshop.stopped_by == signal.SIGTERM and next(calls) == 7
    assert [folder.name for folder in ck.list_checkpoints(halves)] == ["checkpoint-1"]
    workshop.train("accumulated_halves", *flags)
    assert checksums(halves / "checkpoint-3") == checksums(whole / "checkpoint-3")
