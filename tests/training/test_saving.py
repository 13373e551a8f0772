"""Saving: full disks at any file, what is never written, how many stay."""

import builtins
import errno
import io
import os
import pathlib
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest

from sd.errors import InputError
from sd.runs import checkpoint as ck
from tests.training_harness import UNET, checksums, weights


def test_a_disk_that_is_full_at_any_file_of_a_checkpoint_keeps_training(workshop, monkeypatch, caplog):
    flags = ["--only_save_updated_model", False, "--use_ema", "--save_steps", 1]
    whole = workshop.train("whole", *flags, "--max_steps", 1) / "checkpoint-1"
    victims = sorted([*checksums(whole), ck.MANIFEST])
    assert len(victims) > 15
    refused = []
    real = io.open

    def full(file, mode="r", *arguments, **options):
        parts = Path(os.fspath(file)).parts if isinstance(file, str | os.PathLike) else ()
        for step, victim in enumerate(victims, 2):
            if "w" in mode and f"checkpoint-{step}.tmp" in parts and "/".join(parts).endswith(f".tmp/{victim}"):
                refused.append(victim)
                raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return real(file, mode, *arguments, **options)

    monkeypatch.setattr(io, "open", full)
    monkeypatch.setattr(builtins, "open", full)
    if hasattr(pathlib, "_NormalAccessor"):  # CPython 3.10, whose paths open files by a reference of their own
        monkeypatch.setattr(pathlib._NormalAccessor, "open", staticmethod(full))
    last = len(victims) + 2
    output_dir = workshop.train("any_file", *flags, "--max_steps", last)
    assert refused == victims
    assert [folder.name for folder in ck.list_checkpoints(output_dir)] == ["checkpoint-1", f"checkpoint-{last}"]
    assert not list(output_dir.glob("*.tmp"))
    for step in range(2, last):
        assert f"checkpoint-{step} not saved: " in caplog.text
    monkeypatch.undo()
    assert ck.find_problem(output_dir / "checkpoint-1") is None


def test_too_few_inodes_at_any_file_keep_training(workshop, tmp_path, caplog, monkeypatch):
    """A real file system that takes one file more from save to save."""
    from sd.training.trainer import StableDiffusionTrainer

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", disk], capture_output=True)
    if mount.returncode:
        pytest.skip("no right to mount a small file system")
    save = StableDiffusionTrainer._save_checkpoint

    def leave(room):
        taken = os.statvfs(disk).f_files - os.statvfs(disk).f_ffree
        subprocess.run(["mount", "-o", f"remount,nr_inodes={taken + room}", disk], check=True)

    def save_in_little_room(self, model, metrics=None):
        leave(room=self.state.global_step - 2)
        saved = save(self, model, metrics)
        leave(room=100)  # for all the rest
        return saved

    try:
        workshop.train(disk / "out", "--max_steps", 1)
        entries = len(list((disk / "out/checkpoint-1").rglob("*"))) + 1
        leave(room=0)
        with pytest.raises(InputError, match=r"run\.json cannot be written: No space left"):
            workshop.train(disk / "out", "--max_steps", 2)
        leave(room=100)
        monkeypatch.setattr(StableDiffusionTrainer, "_save_checkpoint", save_in_little_room)
        workshop.train(disk / "out", "--max_steps", entries + 2, "--save_steps", 1)
        assert entries > 8
        for step in range(2, entries + 2):
            assert f"checkpoint-{step} not saved: " in caplog.text
        assert sorted(path.name for path in (disk / "out").glob("checkpoint-*")) == sorted(
            ["checkpoint-1", f"checkpoint-{entries + 2}"]
        )
        assert ck.find_problem(disk / "out" / f"checkpoint-{entries + 2}") is None
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("where", ["weights", "average", "moments"])
def test_nan_and_infinite_values_are_never_saved(workshop, monkeypatch, where):
    from sd.training.trainer import StableDiffusionTrainer

    save = StableDiffusionTrainer._save_checkpoint

    def poisoned(self, model, metrics=None):
        if self.state.global_step == 2:
            tensor = {
                "weights": lambda: model.unet.conv_out.bias,
                "average": lambda: self.ema.average["conv_out.bias"],
                "moments": lambda: next(iter(self.optimizer._accumulators["moment1"].values())),
            }[where]()
            tensor.set_value(paddle.full_like(tensor, float("inf")))
        return save(self, model, metrics)

    monkeypatch.setattr(StableDiffusionTrainer, "_save_checkpoint", poisoned)
    with pytest.raises(ck.NonFiniteError, match=r"checkpoint-2 not saved: .* has NaN or infinite values"):
        workshop.train(f"poisoned_{where}", "--save_steps", 1, "--use_ema")
    output_dir = workshop.folder / f"poisoned_{where}"
    assert [path.name for path in output_dir.iterdir() if "checkpoint" in path.name] == ["checkpoint-1"]
    assert np.isfinite(weights(output_dir / "checkpoint-1", UNET)).all()


def test_save_total_limit_holds(workshop):
    output_dir = workshop.train("limit", "--save_steps", 1, "--max_steps", 5, "--save_total_limit", 2)
    assert [folder.name for folder in ck.list_checkpoints(output_dir)] == ["checkpoint-4", "checkpoint-5"]


def test_a_full_disk_keeps_earlier_checkpoints_and_training_continues(workshop, caplog, monkeypatch):
    usage = ck.shutil.disk_usage
    calls = []

    def full_from_the_second_save_on(folder):
        calls.append(folder.name)
        full = folder.name == "checkpoint-2.tmp"
        return type("Usage", (), {"free": 1000})() if full else usage(folder)

    monkeypatch.setattr(ck.shutil, "disk_usage", full_from_the_second_save_on)
    output_dir = workshop.train("full", "--save_steps", 1, "--max_steps", 3)
    assert [folder.name for folder in ck.list_checkpoints(output_dir)] == ["checkpoint-1", "checkpoint-3"]
    assert not list(output_dir.glob("*.tmp")) and "checkpoint-2.tmp" in calls
    assert "checkpoint-2 not saved: it needs" in caplog.text and "training continues" in caplog.text


def test_a_damaged_newest_checkpoint_is_skipped(workshop, caplog):
    output_dir = workshop.train("damaged", "--save_steps", 1, "--max_steps", 3)
    whole = checksums(output_dir / "checkpoint-3")
    path = output_dir / "checkpoint-3" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    workshop.train("damaged", "--save_steps", 1, "--max_steps", 3)
    assert "checkpoint-3 is damaged: optimizer.safetensors has" in caplog.text
    assert checksums(output_dir / "checkpoint-3") == whole
    with pytest.raises(
        InputError, match=r"checkpoint-9'?: no such folder; .* checkpoint-1, checkpoint-2, checkpoint-3"
    ):
        workshop.train("damaged", "--resume_from_checkpoint", output_dir / "checkpoint-9")


def test_a_really_full_disk_keeps_earlier_checkpoints_and_training_continues(workshop, tmp_path, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True)
    if mount.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        with (disk / "ballast").open("wb") as ballast:
            workshop.train(disk / "out", "--max_steps", 1)
            ballast.write(b"." * (ck.shutil.disk_usage(disk).free - 100_000))
        workshop.train(disk / "out", "--max_steps", 3, "--save_steps", 1)
        assert "checkpoint-2 not saved: it needs" in caplog.text
        assert [folder.name for folder in ck.list_checkpoints(disk / "out")] == ["checkpoint-1"]
        assert ck.find_problem(disk / "out/checkpoint-1") is None
        (disk / "ballast").unlink()
        workshop.train(disk / "out", "--max_steps", 3)
        assert ck.newest_intact_checkpoint(disk / "out").name == "checkpoint-3"
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
