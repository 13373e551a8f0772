"""Atomic writes: bytes before the name, the name before the end, and nothing left by an error."""

import os
from pathlib import Path

import pytest

from sd import files
from sd.data.parts import storage


@pytest.fixture
def disk_calls(monkeypatch):
    """("fsync", path) and ("rename", target) in their order."""
    calls = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor):
        calls.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def recorded_rename(path, target):
        calls.append(("rename", Path(target).name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    return calls


def through_path(path):
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(b"new")


def through_file(path):
    storage.write_atomic(path, b"new")


@pytest.mark.parametrize("write", [through_path, through_file])
def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, disk_calls, write):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    write(path)
    assert [what for what, _ in disk_calls] == ["fsync", "rename", "fsync"]
    (_, written), renamed, folder = disk_calls
    assert files.is_unfinished(written) and renamed == ("rename", "a.json") and folder == ("fsync", tmp_path.name)
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_error_leaves_the_file_that_was_there(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(type(error) if isinstance(error, OSError) else error), files.atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_record_lock_of_one_byte_leaves_the_others_free(tmp_path):
    (tmp_path / "claims").touch()
    with (tmp_path / "claims").open("r+b") as file:
        assert files.try_lock(file, 3)
        if (child := os.fork()) == 0:  # record locks are of a process
            with (tmp_path / "claims").open("r+b") as other:
                os._exit(10 * files.try_lock(other, 3) + files.try_lock(other, 4))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_flock_excludes_a_second_open_file_of_the_same_process(tmp_path):
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open("wb") as one, (tmp_path / "lock").open("wb") as other:
        assert files.try_flock(one) and not files.try_flock(other)
