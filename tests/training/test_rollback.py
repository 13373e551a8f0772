"""--rollback_on_nonfinite: a run that steps back over bad samples equals one whose order never had them."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from sd.errors import InputError, RunError
from sd.runs import checkpoint as ck
from sd.training.trainer import StableDiffusionTrainer
from tests.training_harness import EMA, UNET, checksums

STEPS, BATCH = 10, 4
FLAGS = ["--max_steps", STEPS, "--save_steps", 2, "--logging_steps", 1, "--max_bad_steps", 1, "--use_ema"]
BACK = [*FLAGS, "--rollback_on_nonfinite", 2]
ALTERED = Path(__file__).with_name("altered_order.py")
LEARNED = (UNET, EMA, "optimizer.safetensors", "scheduler.json", "ema_state.json")


@pytest.fixture
def poison(monkeypatch):
    """{sample of the order: factor of its micro-batch's loss}; `poison.seen` lists the samples of each micro-batch."""

    class Poison(dict):
        def __init__(self):
            self.seen = []

    actual = Poison()
    real = StableDiffusionTrainer.forward

    def forward(self, model, batch):
        samples = batch["sample"].tolist()
        actual.seen.append(samples)
        outputs = real(self, model, batch)
        for sample in samples:
            outputs["loss"] = outputs["loss"] * actual.get(sample, 1.0)
        return outputs

    monkeypatch.setattr(StableDiffusionTrainer, "forward", forward)
    return actual


@pytest.fixture(scope="module")
def without(workshop):
    """Checksums of a run whose workers take, by a list, the samples of the order without 16 to 27."""
    from sd.data.streaming import dataset

    numbers = [number for number in range(200) if not 16 <= number < 28]
    with pytest.MonkeyPatch.context() as patch:
        real = dataset.worker_samples
        patch.setattr(
            dataset, "worker_samples", lambda *given: (numbers[s] for s in itertools.islice(real(*given), 150))
        )
        return checksums(workshop.train("without", *FLAGS) / f"checkpoint-{STEPS}")


def learned(checkpoint):
    return {name: checksums(checkpoint)[name] for name in LEARNED}


def test_it_equals_a_run_whose_order_never_had_the_bad_samples(workshop, poison, without, caplog):
    poison |= {22: float("nan"), 25: float("nan")}  # in steps 6 and 7; checkpoints 2, 4 and 6 are there
    output_dir = workshop.train("poisoned", *BACK)
    assert learned(output_dir / f"checkpoint-{STEPS}") == {name: without[name] for name in LEARNED}
    assert [samples[0] // BATCH for samples in poison.seen] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    entry = {"first_sample": 16, "stop_sample": 28, "step": 7, "back_to": 4}
    for name in ("skipped.json", f"checkpoint-{STEPS}/skipped.json"):
        (reported,) = json.loads((output_dir / name).read_text())
        assert reported | entry == reported and "2 consecutive steps were skipped" in reported["reason"]
    assert json.loads((output_dir / "run.json").read_text())["skipped_samples"] == [reported]
    assert "resuming from" in caplog.text and "without samples 16 to 27 of the order" in caplog.text


def test_a_kill_after_the_decision_and_a_lost_list_cost_nothing(workshop, without, caplog):
    output_dir = workshop.train("stepped_back", *FLAGS, "--max_steps", 6)
    entry = {"first_sample": 16, "stop_sample": 28, "step": 7, "back_to": 4, "reason": "poison"}
    (output_dir / "skipped.json").write_text(json.dumps([entry]))  # no checkpoint is marked yet
    workshop.train("stepped_back", *FLAGS)
    expected = {name: without[name] for name in LEARNED}
    assert learned(output_dir / f"checkpoint-{STEPS}") == expected
    assert "checkpoint-6: rolled back: samples from 16 on" in caplog.text
    shutil.rmtree(output_dir / f"checkpoint-{STEPS}")
    (output_dir / "skipped.json").unlink()
    workshop.train("stepped_back", *FLAGS)  # from checkpoint-8, which has its own
    assert learned(output_dir / f"checkpoint-{STEPS}") == expected


def test_a_loss_far_above_its_median_rolls_back(workshop, poison, monkeypatch):
    monkeypatch.setattr("sd.training.step_record.MIN_STEPS", 3)
    poison |= {21: 1e6}
    output_dir = workshop.train("jump", *BACK, "--max_steps", 7, "--rollback_loss_factor", 50)
    (reported,) = json.loads((output_dir / "skipped.json").read_text())
    assert (reported["first_sample"], reported["stop_sample"], reported["back_to"]) == (8, 24, 2)
    assert "50 times the median of the 5 steps before" in reported["reason"]
    poison.clear()
    assert len(json.loads((output_dir / "checkpoint-7/recent_losses.json").read_text())) == 7


@pytest.mark.slow
def test_a_run_that_does_not_get_past_a_checkpoint_ends(workshop, poison):
    poison |= dict.fromkeys(range(20, 1000), float("nan"))
    with pytest.raises(RunError, match=r"2 consecutive steps.*; the run came back to checkpoint-2 3 times already"):
        workshop.train("lost", *BACK, "--rollback_on_nonfinite", 9)
    reported = json.loads((workshop.folder / "lost/skipped.json").read_text())
    assert [entry["back_to"] for entry in reported] == [2, 2, 2]
    assert [ck.checkpoint_step(folder) for folder in ck.list_checkpoints(workshop.folder / "lost")] == [2, 4, 6]


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(workshop, poison):
    poison |= dict.fromkeys(range(1000), float("nan"))
    with pytest.raises(RunError, match=r"2 consecutive steps.*; no intact checkpoint to go back to"):
        workshop.train("nowhere", *BACK)


@pytest.mark.slow
@pytest.mark.ci
def test_two_ranks_step_back_together(workshop, monkeypatch):
    """Sample 22 is rank 1's in step 6, sample 25 rank 0's in step 7: each rank alone has seen but one bad step."""

    def train(name, altered, *flags):
        monkeypatch.setenv("ALTERED_ORDER", json.dumps(altered))
        run = workshop.start(name, *flags, "--per_device_train_batch_size", BATCH // 2, ranks=2, script=ALTERED)
        assert run.wait(300) == 0, workshop.log(name)[-3000:]
        return workshop.folder / name

    never_had_them = train("two_without", {"without": [16, 28]}, *FLAGS)
    output_dir = train("two_poisoned", {"poisoned": [22, 25]}, *BACK)
    assert learned(output_dir / f"checkpoint-{STEPS}") == learned(never_had_them / f"checkpoint-{STEPS}")
    (entry,) = json.loads((output_dir / "skipped.json").read_text())
    assert entry | {"first_sample": 16, "stop_sample": 28, "step": 7, "back_to": 4} == entry


@pytest.mark.parametrize("text", ["{", '[{"first_sample": 4}]', '[{"first_sample": 4, "stop_sample": 4}]', "[3]"])
def test_a_list_that_cannot_be_read_is_named(workshop, tmp_path, text):
    (tmp_path / "skipped.json").write_text(text)
    with pytest.raises(InputError, match=r"skipped\.json: .*; expected a list"):
        workshop.train(tmp_path, *FLAGS)
