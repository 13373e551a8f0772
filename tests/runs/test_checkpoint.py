"""Checkpoints: what is written is what is read, damage is found, and a kill or a full disk leaves nothing half done."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sd.errors import InputError
from sd.models.weight_file import read_safetensors
from sd.runs import checkpoint as ck


def write(output_dir, step, value=1.0):
    writer = ck.CheckpointWriter(output_dir, step)
    writer.write_tensors("unet/w.safetensors", {"b": np.full((3, 4), value, np.float32), "a": np.arange(5)})
    writer.write_json("data_state.json", {"samples": step * 8})
    return writer.commit()


def test_written_tensors_are_read_by_the_library_itself(tmp_path):
    writer = ck.CheckpointWriter(tmp_path, 3)
    tensors = {
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float16),
        "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
        "bytes": np.arange(7, dtype=np.uint8),
    }
    writer.write_tensors("x.safetensors", tensors)
    folder = writer.commit()
    read = load_file(folder / "x.safetensors")
    assert sorted(read) == sorted(tensors)
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype and np.array_equal(read[name], array)
    assert {name: array.tolist() for name, array in read_safetensors(folder / "x.safetensors")}["bytes"] == [*range(7)]


def test_nothing_has_the_name_of_a_checkpoint_before_commit(tmp_path):
    writer = ck.CheckpointWriter(tmp_path, 7)
    writer.write_json("a.json", 1)
    assert ck.list_checkpoints(tmp_path) == []
    ck.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def disk_calls(monkeypatch):
    """(what, path relative to output_dir) of every fsync, rename and removal of a folder, in their order."""
    calls = []
    fsync, rename, rmtree = os.fsync, Path.rename, shutil.rmtree

    def recorded_fsync(descriptor):
        calls.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def recorded_rename(path, target):
        calls.append(("rename", (path, Path(target))))
        return rename(path, target)

    def recorded_rmtree(path, *arguments, **options):
        if Path(path).exists():
            calls.append(("remove", Path(path)))
        rmtree(path, *arguments, **options)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    monkeypatch.setattr(shutil, "rmtree", recorded_rmtree)
    return calls


def test_files_then_folders_are_on_the_disk_before_the_name_and_the_name_after(tmp_path, disk_calls):
    writer = ck.CheckpointWriter(tmp_path, 7)
    (writer.folder / "unet").mkdir(parents=True)
    (writer.folder / "unet/config.json").write_text("{}")
    writer.add("unet/config.json")
    writer.write_tensors("unet/w.safetensors", {"a": np.arange(5)})
    writer.write_json("state.json", 1)
    final, aside = writer.commit(), writer.folder
    files = ["unet/config.json", "unet/w.safetensors", "state.json", ck.MANIFEST]
    assert disk_calls[:4] == [("fsync", aside / name) for name in files]
    assert sorted(disk_calls[4:6]) == [("fsync", aside), ("fsync", aside / "unet")]
    assert disk_calls[6:] == [("rename", (aside, final)), ("fsync", tmp_path)]


@pytest.mark.parametrize("remove", [ck.remove_checkpoint, lambda folder: ck.keep_newest(folder.parent, 1)])
def test_a_checkpoint_loses_its_name_before_its_files(tmp_path, disk_calls, remove):
    old = write(tmp_path, 1)
    write(tmp_path, 2)
    disk_calls.clear()
    remove(old)
    aside = old.with_name("checkpoint-1.old")
    assert disk_calls == [("rename", (old, aside)), ("remove", aside)]


def test_the_replaced_checkpoint_goes_after_the_new_one_is_whole_on_the_disk(tmp_path, disk_calls):
    write(tmp_path, 4)
    disk_calls.clear()
    final = write(tmp_path, 4)
    aside, new = final.with_name("checkpoint-4.old"), final.with_name("checkpoint-4.tmp")
    steps = [("fsync", new / ck.MANIFEST), ("fsync", new), ("rename", (final, aside)), ("rename", (new, final))]
    at = [disk_calls.index(step) for step in steps]
    assert at == sorted(at)


@pytest.mark.parametrize("length", range(8))
def test_tensors_are_aligned_to_eight_bytes_for_all_names(tmp_path, length):
    """As the format asks for, so that programs that map the file read aligned numbers."""
    writer = ck.CheckpointWriter(tmp_path, 1)
    writer.write_tensors("x.safetensors", {"n" * (length + 1): np.arange(3.0)})
    data = (writer.folder / "x.safetensors").read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert header % 8 == 0 and len(data) == 8 + header + 3 * 8
    assert load_file(writer.folder / "x.safetensors")["n" * (length + 1)].tolist() == [0, 1, 2]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest", "no manifest"])
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, damage):
    good, bad = write(tmp_path, 9), write(tmp_path, 10)
    path = bad / "unet/w.safetensors"
    if damage == "flip":
        data = bytearray(path.read_bytes())
        data[-3] ^= 4
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "missing":
        path.unlink()
    elif damage == "manifest":
        (bad / ck.MANIFEST).write_text('{"files": ')
    else:
        (bad / ck.MANIFEST).unlink()
    assert ck.newest_intact_checkpoint(tmp_path) == good
    assert "checkpoint-10" in caplog.text
    assert ("manifest.json" if "manifest" in damage else "unet/w.safetensors") in caplog.text


def test_the_newest_is_the_highest_step_not_the_last_written(tmp_path):
    for step in (100, 9, 20):
        write(tmp_path, step)
    (tmp_path / "checkpoint-old").mkdir()
    assert [ck.checkpoint_step(folder) for folder in ck.list_checkpoints(tmp_path)] == [9, 20, 100]
    assert ck.newest_intact_checkpoint(tmp_path).name == "checkpoint-100"
    ck.keep_newest(tmp_path, 2)
    assert [folder.name for folder in ck.list_checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-100"]


def test_a_second_write_of_a_step_replaces_it(tmp_path):
    write(tmp_path, 4, value=1.0)
    folder = write(tmp_path, 4, value=2.0)
    assert load_file(folder / "unet/w.safetensors")["b"][0, 0] == 2.0
    assert ck.find_problem(folder) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_too_little_disk_space_is_reported_with_the_needed_bytes(tmp_path, monkeypatch):
    write(tmp_path, 1)
    writer = ck.CheckpointWriter(tmp_path, 2)
    monkeypatch.setattr(ck.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5_000_000})())
    with pytest.raises(
        ck.DiskFullError, match=r"checkpoint-2 not saved: it needs 40\.0 MB, 5\.0 MB are free"
    ) as caught:
        writer.write_tensors("x.safetensors", {"x": np.zeros(10_000_000, np.float32)})
    assert caught.value.needed_bytes >= 40_000_000
    writer.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_second_process_does_not_get_the_lock(tmp_path):
    lock = ck.lock_output_dir(tmp_path / "out")
    code = "import sys; from sd.runs.checkpoint import lock_output_dir; lock_output_dir(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=False)
    assert run.returncode != 0 and "is in use by process" in run.stderr
    lock.close()
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_an_output_dir_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        ck.lock_output_dir(tmp_path / "file" / "out")


def test_the_manifest_lists_every_file(tmp_path):
    folder = write(tmp_path, 1)
    listed = set(json.loads((folder / ck.MANIFEST).read_text())["files"])
    assert listed == {"unet/w.safetensors", "data_state.json"}
