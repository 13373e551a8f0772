"""--save_in_background: the same bytes, written while training continues; what fails there is heard."""

import threading

import numpy as np
import pytest

from sd.errors import RunError
from sd.runs import checkpoint as ck
from sd.runs.checkpoint import CheckpointWriter
from sd.training import saving
from sd.training.background import BackgroundSaver
from sd.training.step import StepRunner
from tests.training_harness import checksums

FLAGS = ["--max_steps", 5, "--save_steps", 2, "--use_ema"]
BEHIND = [*FLAGS, "--save_in_background"]


@pytest.fixture(scope="module")
def usual(workshop):
    output_dir = workshop.train("usual", *FLAGS)
    return {step: checksums(output_dir / f"checkpoint-{step}") for step in (2, 4, 5)}


def test_the_files_are_those_of_training_that_waits_though_the_weights_have_moved(workshop, usual, monkeypatch):
    """The writer is held until the next step was taken, so a copy that shares memory with a weight would show."""
    stepped, threads = threading.Event(), []
    take, write = StepRunner.run, CheckpointWriter.write_tensors

    def held(self, name, tensors, metadata=None):
        if self.step == 2:
            assert stepped.wait(120)
            threads.append(threading.current_thread().name)
        write(self, name, tensors, metadata)

    def taken(self, *given):
        outcome = take(self, *given)
        if self.trainer.state.global_step == 2:  # that was the third step
            stepped.set()
        return outcome

    monkeypatch.setattr(CheckpointWriter, "write_tensors", held)
    monkeypatch.setattr(StepRunner, "run", taken)
    output_dir = workshop.train("behind", *BEHIND)
    assert set(threads) == {"save checkpoint"}
    assert {step: checksums(output_dir / f"checkpoint-{step}") for step in (2, 4, 5)} == usual


def test_a_full_disk_is_logged_and_any_other_failure_ends_the_run(workshop, usual, monkeypatch, caplog):
    write = CheckpointWriter.write_json

    def full(self, name, value):
        if self.step == 2 and name == "settings.json":
            raise OSError(28, "No space left on device")
        write(self, name, value)

    monkeypatch.setattr(CheckpointWriter, "write_json", full)
    output_dir = workshop.train("full", *BEHIND)
    assert [ck.checkpoint_step(folder) for folder in ck.list_checkpoints(output_dir)] == [4, 5]
    assert checksums(output_dir / "checkpoint-5") == usual[5] and "training continues" in caplog.text
    assert not list(output_dir.glob("*.tmp"))

    def broken(self, name, value):
        raise RunError(f"{name} broke")

    monkeypatch.setattr(CheckpointWriter, "write_json", broken)
    with pytest.raises(RunError, match="broke"):
        workshop.train("broken", *BEHIND)


def test_without_memory_for_the_copy_training_waits(workshop, usual, monkeypatch, caplog):
    monkeypatch.setattr(saving, "fits_in_host_memory", lambda num_bytes: False)
    started = []
    monkeypatch.setattr(BackgroundSaver, "start", lambda *given: started.append(given))
    output_dir = workshop.train("no_room", *BEHIND, "--max_steps", 2)
    assert started == [] and ck.find_problem(output_dir / "checkpoint-2") is None
    output_dir = workshop.train("no_room", *BEHIND)
    assert started == [] and "memory does not take a copy" in caplog.text
    assert np.all([checksums(output_dir / f"checkpoint-{step}") == usual[step] for step in (4, 5)])
