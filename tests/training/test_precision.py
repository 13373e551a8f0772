"""What half precision changes in training, seen on a CPU: wider types stand for narrower ones, or real bfloat16 weights
move without any product being computed in it."""

import contextlib
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle.amp.auto_cast import amp_initialize
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage2 import GroupShardedStage2
from safetensors.numpy import load_file, save_file

from sd.diffusion.model import StableDiffusionModel
from sd.flags.arguments import SDModelArguments
from sd.flags.command_line import parse_arguments
from sd.runs.checkpoint import read_json
from sd.training import saving
from sd.training.optimizer import FusedAdamW, named_state, paddle_state
from sd.training.step import StepRunner
from sd.training.trainer import StableDiffusionTrainer
from tests.training.gpu_only import SCALE, turn_on
from tests.training_harness import EMA, ROOT, UNET, checksums, weights


def tiny_model(workshop, **options):
    models = workshop.folder / "models"
    arguments = SDModelArguments(
        pretrained_model_name_or_path=str(models), unet_name_or_path=str(models / "unet"), **options
    )
    return StableDiffusionModel.from_arguments(arguments, 32)


# The UNet in another dtype than the rest (O2), and validation in training's precision.


def test_states_of_another_dtype_than_the_unet_are_taken(workshop):
    """float64 stands for float32, and float32 for bfloat16: Paddle's rules for mixed operands are the same, and a CPU
    has kernels for both. Outside autocast a linear layer refuses mixed operands."""
    model = tiny_model(workshop)
    model.unet.to(dtype="float64")
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, *model.latent_shape(32)), dtype=np.float32)
    states = rng.standard_normal((2, 77, model.text_config.hidden_size), dtype=np.float32)
    tensors = [paddle.to_tensor(array) for array in (latents, states, latents[::-1].copy())]
    outputs = model.denoise(*tensors, paddle.to_tensor([3, 500]))
    assert outputs["sample_loss"].dtype == paddle.float32 and bool(paddle.isfinite(outputs["loss"]))


def test_validation_computes_in_the_precision_of_training(workshop, monkeypatch):
    inside, seen = [], []

    @contextlib.contextmanager
    def autocast(self):
        inside.append(True)
        yield
        inside.pop()

    forward = StableDiffusionModel.forward

    def noted(self, *arguments, **options):
        seen.append((self.unet.training, bool(inside)))
        return forward(self, *arguments, **options)

    monkeypatch.setattr(StableDiffusionTrainer, "autocast_smart_context_manager", autocast)
    monkeypatch.setattr(StableDiffusionModel, "forward", noted)
    workshop.train("validated", "--eval_file_list", workshop.file_list, "--eval_steps", 1, "--max_steps", 1)
    assert {training for training, _ in seen} == {True, False} and all(casts for _, casts in seen)


def test_frozen_components_keep_their_float32_weights_under_o2(workshop):
    for trains_text in (False, True):
        model = tiny_model(workshop, train_text_encoder=trains_text)
        stored = {name: tensor.numpy() for name, tensor in model.vae.state_dict().items()}
        stored |= {name: tensor.numpy() for name, tensor in model.text_encoder.state_dict().items()}
        amp_initialize(models=[model], dtype="bfloat16", excluded_layers=[])  # what paddle.amp.decorate does on a GPU
        assert {weight.dtype for weight in model.unet.parameters()} == {paddle.bfloat16}
        assert {weight.dtype for weight in model.vae.parameters()} == {paddle.float32}
        expected = paddle.bfloat16 if trains_text else paddle.float32
        assert {weight.dtype for weight in model.text_encoder.parameters()} == {expected}
        frozen = [model.vae] if trains_text else [model.vae, model.text_encoder]
        for layer in frozen:
            for name, array in saving._float32_weights(layer, {}).items():
                assert np.array_equal(array.numpy(), stored[name]), name


# Gradients in float32.


@pytest.mark.parametrize(("level", "expected"), [("O1", False), ("O2", True)])
def test_o2_sums_gradients_in_float32(monkeypatch, tmp_path, level, expected):
    monkeypatch.setattr("sd.devices.check_precision", lambda device, precision: None)
    for more in ([], ["--amp_master_grad", "True"]):
        flags = ["--do_train", "--output_dir", str(tmp_path), "--device", "cpu", "--bf16", "True"]
        arguments = parse_arguments([*flags, "--fp16_opt_level", level, *more], environ={})
        assert arguments[2].amp_master_grad is expected


@pytest.mark.parametrize("flags", [[], ["--gradient_accumulation_steps", 2, "--max_grad_norm", 0.5]])
def test_with_gradients_beside_the_weights_training_is_the_same(workshop, monkeypatch, flags):
    """Of float32 weights the sums in float32 are what is summed anyway, to the last bit."""
    name = f"gradients_{len(flags)}"
    flags = [*flags, "--use_ema", "--max_steps", 3]
    plain = workshop.train(f"{name}_plain", *flags)
    turn_on("master", monkeypatch.setattr)
    beside = workshop.train(f"{name}_beside", *flags)
    for file in (UNET, EMA, "optimizer.safetensors"):
        assert checksums(plain / "checkpoint-3")[file] == checksums(beside / "checkpoint-3")[file]


# Loss scaling.


@pytest.mark.parametrize("clip", [-1, 0.5])
def test_loss_scaling_changes_no_bit_where_nothing_overflows(workshop, monkeypatch, clip):
    """A power of two times a gradient is exact, so dividing by it again gives the gradient."""
    plain = workshop.train(f"unscaled_{clip}", "--use_ema", "--max_grad_norm", clip)
    turn_on("scaler", monkeypatch.setattr)
    scaled = workshop.train(f"scaled_{clip}", "--use_ema", "--max_grad_norm", clip)
    for file in (UNET, EMA, "optimizer.safetensors"):
        assert checksums(plain / "checkpoint-4")[file] == checksums(scaled / "checkpoint-4")[file]


def test_an_overflow_moves_nothing_but_the_scale(workshop, monkeypatch, caplog):
    turn_on("scaler", monkeypatch.setattr)
    backward = StableDiffusionTrainer.backward

    def overflow(self, loss):
        backward(self, loss)
        if self.state.global_step == 1:
            gradient = self.trained_parameters[-1].grad
            gradient.set_value(np.full(gradient.shape, np.inf, np.float32))

    monkeypatch.setattr(StableDiffusionTrainer, "backward", overflow)
    flags = ["--save_steps", 1, "--max_steps", 3, "--use_ema", "--lr_scheduler_type", "linear"]
    folder = workshop.train("overflow", *flags)
    first, second, third = (checksums(folder / f"checkpoint-{step}") for step in (1, 2, 3))
    for file in (UNET, EMA, "optimizer.safetensors", "scheduler.json", "ema_state.json"):
        assert first[file] == second[file] != third[file], file
    scales = [read_json(folder / f"checkpoint-{step}", "scaler.json")["scale"] for step in (1, 2, 3)]
    assert np.ravel(scales).tolist() == [SCALE, SCALE / 2, SCALE / 2]
    assert "step 2 skipped: the gradient of unet." in caplog.text


# Several ranks.


def on_two_ranks(workshop, which, output_dir, *flags):
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", workshop.folder / "ranks"]
    command = [sys.executable, *launcher, ROOT / "tests/training/gpu_only.py", which]
    done = subprocess.run(
        [*map(str, command), *workshop.flags(output_dir, *flags)],
        cwd=workshop.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return workshop.folder / output_dir


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("which", "flags"),
    [
        ("scaler", ["--sharding", "stage1"]),
        ("scaler", []),
        ("master", ["--gradient_accumulation_steps", 2]),
        ("master", ["--sharding", "stage1"]),
    ],
)
def test_two_ranks_give_the_weights_of_one_process(workshop, which, flags):
    """Reduced twice, the owner's gradient of a sharded weight would count half.

    One process takes the same global batches. Its gradients are sums of the same terms in another order, equal to some
    1e-5 of the largest; with so large an epsilon Adam's steps differ by no larger a share.
    """
    names = "_".join([which, *map(str, flags)]).replace("--", "")
    flags = [*flags, "--data_lanes", 1, "--adam_epsilon", 0.01, "--max_steps", 4]
    several = on_two_ranks(workshop, which, f"two_{names}", *flags)
    alone = workshop.train(f"one_{names}", *_without_sharding(flags), "--per_device_train_batch_size", 8)
    still = ["--data_lanes", 1, "--per_device_train_batch_size", 8, "--learning_rate", 0, "--max_steps", 1]
    start = weights(workshop.train(f"start_{names}", *still) / "checkpoint-1")
    one, two = weights(alone / "checkpoint-4"), weights(several / "checkpoint-4")
    assert np.abs(two - one).max() < 1e-3 * np.abs(one - start).max()


def _without_sharding(flags):
    return [] if not flags else flags[2:] if flags[0] == "--sharding" else flags


def test_gradients_are_cleared_as_the_wrappers_take_it():
    """Of sharding stage 2 `clear_grad` is replaced by one without arguments."""

    class Recorder:
        def clear_grad(self, set_to_zero=True):
            self.cleared = set_to_zero

    inner = Recorder()
    GroupShardedStage2._redefine_opt_clear(
        SimpleNamespace(_clear_gradients=lambda: setattr(inner, "cleared", "stage 2"), _sharding_optimizers=[inner])
    )
    for optimizer, sharding, ranks, master, cleared in (
        (inner, ["stage2"], 2, False, "stage 2"),
        (Recorder(), ["stage1"], 2, False, True),
        (Recorder(), [], 2, False, True),
        (Recorder(), [], 2, True, False),
        (Recorder(), [], 1, False, False),
    ):
        args = SimpleNamespace(sharding=sharding, world_size=ranks, amp_master_grad=master)
        runner = StepRunner(SimpleNamespace(optimizer=optimizer, args=args), None)
        runner._clear_gradients()
        actual = inner.cleared if optimizer is inner else optimizer.cleared
        assert actual == cleared, sharding


# Another precision on resume.


def half_layer(dtype):
    paddle.seed(0)
    layer = paddle.nn.Sequential(paddle.nn.Linear(4, 3), paddle.nn.Linear(3, 2))
    layer.to(dtype=dtype)
    return layer


def move(layer, optimizer, steps):
    rng = np.random.default_rng(steps)
    for _ in range(steps):
        pairs = []
        for weight in layer.parameters():
            gradient = paddle.to_tensor(rng.standard_normal(weight.shape, dtype=np.float32))
            pairs.append((weight, gradient))
        optimizer._apply_optimize(None, None, pairs)


@pytest.mark.parametrize(
    ("before", "after"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
)
def test_a_checkpoint_resumes_in_any_precision(tmp_path, before, after):
    """The float32 numbers go on to the last bit: as masters, or as the weights themselves."""
    first = half_layer(before)
    names = {weight.name: f"unet.{name}" for name, weight in first.named_parameters()}
    optimizer = FusedAdamW(1e-2, parameters=first.parameters(), multi_precision=before == "bfloat16")
    move(first, optimizer, 3)
    state = named_state(optimizer, names)
    masters = optimizer._master_weights
    path = tmp_path / saving.UNET_WEIGHTS
    path.parent.mkdir()
    stored = {name: masters.get(weight.name, weight).numpy() for name, weight in first.named_parameters()}
    save_file(stored, path)

    second = half_layer(after)
    for name, weight in second.named_parameters():
        weight.set_value(paddle.to_tensor(load_file(path)[name]).astype(after))
    names = {weight.name: f"unet.{name}" for name, weight in second.named_parameters()}
    goes_on = FusedAdamW(1e-2, parameters=second.parameters(), multi_precision=after == "bfloat16")
    copied = {key: paddle.to_tensor(tensor.numpy()) for key, tensor in state.items()}
    saving._change_precision(SimpleNamespace(optimizer=goes_on), tmp_path, names, copied)
    goes_on.set_state_dict(paddle_state(goes_on, names, copied))
    move(first, optimizer, 2)
    move(second, goes_on, 2)
    for (name, ours), theirs in zip(second.named_parameters(), first.parameters(), strict=True):
        ours, theirs = goes_on._master_weights.get(ours.name, ours), masters.get(theirs.name, theirs)
        assert np.array_equal(ours.numpy(), theirs.numpy()), name
