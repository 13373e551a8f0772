"""Training in one process: resume to the bit, moving average, accumulation, bad losses, signals."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import paddle
import psutil
import pytest

from sd.diffusion.model import StableDiffusionModel
from sd.errors import InputError, RunError
from sd.runs import checkpoint as ck
from tests.numeric import assert_close, assert_same_training
from tests.training_harness import EMA, UNET, checksums, weights


@pytest.mark.defect(2)
def test_defect_02_ten_and_ten_steps_are_twenty(workshop):
    """Both halves begin and end within a pass over the data, which is 8.25 steps."""
    whole = workshop.train("whole", "--max_steps", 20, "--save_steps", 10)
    workshop.train("halves", "--max_steps", 10)
    halves = workshop.train("halves", "--max_steps", 20)
    assert checksums(whole / "checkpoint-20") == checksums(halves / "checkpoint-20")
    assert (
        checksums(whole / "checkpoint-10")["optimizer.safetensors"]
        == checksums(halves / "checkpoint-10")["optimizer.safetensors"]
    )
    assert not np.array_equal(weights(whole / "checkpoint-10"), weights(whole / "checkpoint-20"))
    assert set(checksums(whole / "checkpoint-20")) == {
        "unet/config.json",
        UNET,
        "optimizer.safetensors",
        "scheduler.json",
        "trainer_state.json",
        "data_state.json",
        "settings.json",
    }
    assert json.loads((whole / "checkpoint-20/data_state.json").read_text())["samples_seen"] == 80


def test_everything_on_resumes_to_the_bit(workshop):
    flags = ["--use_ema", "--train_text_encoder", "--text_encoder_learning_rate", 5e-4, "--save_steps", 3]
    flags += ["--gradient_accumulation_steps", 2, "--dataloader_num_workers", 2, "--lr_scheduler_type", "cosine"]
    flags += ["--warmup_steps", 2, "--noise_offset", 0.1, "--snr_gamma", 5, "--input_perturbation", 0.1]
    flags += ["--max_grad_norm", 0.5, "--recompute", True, "--max_steps", 6]
    whole = workshop.train("everything", *flags)
    resumed = workshop.train("everything_resumed", *flags, "--resume_from_checkpoint", whole / "checkpoint-3")
    assert checksums(whole / "checkpoint-6") == checksums(resumed / "checkpoint-6")
    assert {EMA, "text_encoder/model.safetensors"} <= set(checksums(whole / "checkpoint-6"))


@pytest.fixture(scope="module")
def plain(workshop):
    """A run of two steps, for tests that only look at it."""
    return workshop.train("plain", "--max_steps", 2)


@pytest.fixture(scope="module")
def start(workshop):
    """The weights before the first step."""
    return weights(workshop.train("start", "--learning_rate", 0, "--max_steps", 1) / "checkpoint-1")


def test_a_finished_run_does_nothing_when_run_again(workshop, plain, info):
    before = checksums(plain / "checkpoint-2")
    workshop.train("plain", "--max_steps", 2)
    assert "this run of 2 steps is finished" in info.text and "loss" not in info.text
    assert checksums(plain / "checkpoint-2") == before


def test_from_pretrained_reads_weights_and_average(workshop):
    from ppdiffusers import UNet2DConditionModel
    from ppdiffusers.transformers import CLIPTextModel

    folder = workshop.train("pretrained", "--use_ema", "--train_text_encoder", "--max_steps", 1) / "checkpoint-1"
    for variant, name in ((None, UNET), ("ema", EMA)):
        unet = UNet2DConditionModel.from_pretrained(str(folder / "unet"), variant=variant)
        state = unet.state_dict()
        assert np.array_equal(
            np.concatenate([state[key].numpy().ravel() for key in sorted(state)]), weights(folder, name)
        )
    assert not np.array_equal(weights(folder, UNET), weights(folder, EMA))
    text_encoder = CLIPTextModel.from_pretrained(str(folder / "text_encoder"))
    state = text_encoder.state_dict()
    assert np.array_equal(
        np.concatenate([state[key].numpy().ravel() for key in sorted(state)]),
        weights(folder, "text_encoder/model.safetensors"),
    )


def test_a_whole_pipeline_is_saved_on_request(workshop):
    from ppdiffusers import StableDiffusionPipeline

    folder = workshop.train("pipeline", "--only_save_updated_model", False, "--max_steps", 1) / "checkpoint-1"
    pipeline = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None)
    image = pipeline("a red circle", height=32, width=32, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 32, 32, 3) and np.isfinite(image).all()


@pytest.mark.defect(15)
def test_defect_15_the_average_moves_at_every_step_without_visualdl_and_is_saved(workshop, start):
    flags = ["--use_ema", "--ema_decay", 0.3, "--save_steps", 1, "--gradient_accumulation_steps", 2]
    workshop.train("average", *flags, "--max_steps", 2)
    output_dir = workshop.train("average", *flags, "--max_steps", 5)
    average = start.astype(np.float64)
    for step in range(1, 6):
        folder = output_dir / f"checkpoint-{step}"
        decay = min(0.3, step / (9 + step))
        average = decay * average + (1 - decay) * weights(folder)
        assert_close(weights(folder, EMA), average, 4 * step)  # of a step the decay, two products and a sum
        assert json.loads((folder / "ema_state.json").read_text()) == {"updates": step}
    assert np.abs(weights(folder, EMA) - weights(folder)).max() > 1e-4


def test_accumulation_is_a_larger_batch(workshop, start):
    one = workshop.train("batch_8", "--per_device_train_batch_size", 8, "--data_lanes", 1, "--max_steps", 3)
    flags = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4, "--data_lanes", 1]
    four = workshop.train("batch_4x2", *flags, "--max_steps", 3)
    assert_same_training(weights(four / "checkpoint-3"), weights(one / "checkpoint-3"), start)


def test_recompute_changes_no_bit(workshop, plain):
    recomputed = workshop.train("recomputed", "--recompute", True, "--max_steps", 2)
    assert np.array_equal(weights(plain / "checkpoint-2"), weights(recomputed / "checkpoint-2"))


def test_the_learning_rates_reach_their_components(workshop):
    flags = ["--train_text_encoder", "--weight_decay", 0, "--max_steps", 1]
    flags += ["--unet_name_or_path", workshop.folder / "models/unet"]  # a new one hands no gradient on
    text = "text_encoder/model.safetensors"
    start = workshop.train("rates_0", *flags, "--learning_rate", 0) / "checkpoint-1"
    only_text = workshop.train("rates_1", *flags, "--unet_learning_rate", 0, "--learning_rate", 2e-3) / "checkpoint-1"
    both = workshop.train("rates_2", *flags, "--text_encoder_learning_rate", 2e-3) / "checkpoint-1"
    assert np.array_equal(weights(only_text), weights(start))
    # AdamW's first step is the learning rate wherever the gradient is not tiny.
    assert np.abs(weights(only_text, text) - weights(start, text)).max() == pytest.approx(2e-3, rel=1e-2)
    assert np.abs(weights(both, text) - weights(start, text)).max() == pytest.approx(2e-3, rel=1e-2)
    assert np.abs(weights(both) - weights(start)).max() == pytest.approx(1e-3, rel=1e-2)


def test_gradients_are_clipped_only_with_max_grad_norm(workshop):
    one, two = ["--max_steps", 1, "--adam_epsilon", 1.0], ["--max_grad_norm", 1e-4]
    start = weights(workshop.train("clip_0", *one, "--learning_rate", 0, "--weight_decay", 0) / "checkpoint-1")
    free = weights(workshop.train("clip_no", *one, "--weight_decay", 0) / "checkpoint-1")
    clipped = weights(workshop.train("clip_yes", *one, *two, "--weight_decay", 0) / "checkpoint-1")
    assert 0 < np.abs(clipped - start).max() < 0.1 * np.abs(free - start).max()


@pytest.fixture
def bad_samples(monkeypatch):
    """Samples whose loss is made NaN."""
    bad = set()
    forward = StableDiffusionModel.forward

    def broken(self, *arguments, **batch):
        outputs = forward(self, *arguments, **batch)
        poison = paddle.to_tensor([float("nan") if int(number) in bad else 1.0 for number in batch["sample"]])
        return {**outputs, "loss": outputs["loss"] * poison.mean(), "sample_loss": outputs["sample_loss"] * poison}

    monkeypatch.setattr(StableDiffusionModel, "forward", broken)
    return bad


def test_a_nan_loss_skips_the_step_and_its_rows_are_named(workshop, info, bad_samples):
    bad_samples.add(9)  # the second sample of step 3
    output_dir = workshop.train("bad", "--save_steps", 1, "--use_ema")
    second, third, fourth = (output_dir / f"checkpoint-{step}" for step in (2, 3, 4))
    for name in (UNET, EMA, "optimizer.safetensors"):
        assert checksums(second)[name] == checksums(third)[name] != checksums(fourth)[name]
    message = next(record.getMessage() for record in info.records if "skipped" in record.getMessage())
    assert message.startswith("step 3 skipped: the loss is nan") and message.count(" row ") == 1
    assert np.isfinite(weights(fourth)).all()


def test_too_many_bad_steps_end_the_run(workshop, bad_samples):
    bad_samples.update(range(8, 400))
    with pytest.raises(RunError, match=r"step 6: 4 consecutive steps .*--max_bad_steps 3.*checkpoint-4"):
        workshop.train("too_bad", "--max_bad_steps", 3, "--max_steps", 50, "--save_steps", 2)


def test_the_run_can_be_read_from_run_json(workshop):
    output_dir = workshop.train("told", "--max_steps", 1)
    workshop.train("told", "--max_steps", 2)
    run = json.loads((output_dir / "run.json").read_text())
    assert run["arguments"]["SDTrainingArguments"]["max_steps"] == 2
    assert run["arguments"]["SDDataArguments"]["resolution"] == 32
    assert run["arguments"]["SDModelArguments"]["prediction_type"] == "epsilon"
    assert run["versions"]["paddlenlp"] == "3.0.0b4" and len(run["file_list_fingerprint"]) == 32
    assert run["resumed_from"].endswith("checkpoint-1")
    assert [start["arguments"]["SDTrainingArguments"]["max_steps"] for start in run["earlier_starts"]] == [1]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_end_of_a_run_leaves_no_data_worker_and_sleeps_for_no_thread(workshop, monkeypatch, workers):
    from paddle.io.dataloader import dataloader_iter

    sleepless = SimpleNamespace(sleep=lambda seconds: pytest.fail("Paddle sleeps until its thread has ended"))
    monkeypatch.setattr(dataloader_iter, "time", sleepless)
    before = set(psutil.Process().children())
    workshop.train(f"ended_{workers}", "--dataloader_num_workers", workers, "--max_steps", 1)
    assert set(psutil.Process().children()) - before == set()


def test_overwrite_starts_again(workshop):
    output_dir = workshop.train("overwritten", "--max_steps", 3)
    workshop.train("overwritten", "--max_steps", 2, "--overwrite_output_dir")
    assert [folder.name for folder in ck.list_checkpoints(output_dir)] == ["checkpoint-2"]


def test_a_profiled_run_that_ends_is_saved(workshop):
    output_dir = workshop.train("profiled", "--max_steps", 9, "--profiler_options", "batch_range=[1,2]")
    assert [folder.name for folder in ck.list_checkpoints(output_dir)] == ["checkpoint-3"]  # its steps count from 0


def test_overwrite_and_resume_together_remove_nothing(workshop):
    output_dir = workshop.train("both", "--max_steps", 1)
    both = ["--max_steps", 2, "--overwrite_output_dir", "--resume_from_checkpoint", "true"]
    with pytest.raises(InputError, match="--resume_from_checkpoint true with --overwrite_output_dir True"):
        workshop.train("both", *both)
    assert [folder.name for folder in ck.list_checkpoints(output_dir)] == ["checkpoint-1"]


def test_a_polynomial_that_would_rise_is_refused_by_name(workshop):
    with pytest.raises(InputError, match="--lr_scheduler_type polynomial: lr_end"):
        workshop.train("rising", "--lr_scheduler_type", "polynomial", "--lr_end", 1)


def test_epochs_count_the_records(workshop):
    large = ["--per_device_train_batch_size", 16]
    output_dir = workshop.train("epochs", "--max_steps", -1, "--num_train_epochs", 1, *large)
    assert [folder.name for folder in ck.list_checkpoints(output_dir)] == ["checkpoint-3"]  # 33 records
    output_dir = workshop.train("records", "--max_steps", -1, "--num_train_epochs", 2, "--num_records", 8)
    assert [folder.name for folder in ck.list_checkpoints(output_dir)] == ["checkpoint-4"]


@pytest.mark.parametrize(("save", "stored"), [(True, ["checkpoint-2"]), (False, [])])
def test_a_signal_ends_training_after_its_step(workshop, monkeypatch, save, stored):
    from sd.training.step_record import StepRecords

    add = StepRecords.add

    def add_and_signal(self, step, outcome):
        add(self, step, outcome)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # as Paddle's launcher does

    monkeypatch.setattr(StepRecords, "add", add_and_signal)
    handler = signal.getsignal(signal.SIGTERM)
    output_dir = workshop.train(f"signal_{save}", "--max_steps", 50, "--save_on_exit", save)
    assert [folder.name for folder in ck.list_checkpoints(output_dir)] == stored
    assert workshop.stopped_by == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == handler


def test_out_of_memory_is_one_line_with_a_remedy(workshop, monkeypatch):
    def forward(self, **batch):
        raise MemoryError("ResourceExhaustedError: Out of memory error on GPU 0")

    monkeypatch.setattr(StableDiffusionModel, "forward", forward)
    with pytest.raises(RunError, match="out of memory; a smaller --per_device_train_batch_size"):
        workshop.train("memory")
