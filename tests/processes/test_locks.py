"""One process at a time in a folder; where a file system has no locks, the work goes on."""

import errno
import fcntl
import logging

import pytest

from sd.errors import InputError
from sd.processes.locks import locked_folder


def test_a_second_user_of_one_process_waits_for_the_end_of_the_first(tmp_path):
    with locked_folder(str(tmp_path)):
        assert "process" in (tmp_path / ".lock").read_text()
        message = "another run is at work there; wait for it or take another"
        with pytest.raises(InputError, match=message), locked_folder(str(tmp_path)):
            pass
    with locked_folder(str(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_ends_with_an_error_too(tmp_path):
    with pytest.raises(KeyError), locked_folder(str(tmp_path)):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "warnings"), [("flock", 0), ("lockf", 1)])
def test_a_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch, caplog, kind, warnings):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, kind, refuse)
    caplog.set_level(logging.WARNING, logger="sd")
    with locked_folder(str(tmp_path)):
        pass
    assert len(caplog.messages) == warnings


def test_a_lock_file_removed_by_its_holder_is_recreated(tmp_path, monkeypatch):
    """Between opening and locking it the holder ends and removes it: the lock of the old file is worth nothing."""
    real, removed = fcntl.lockf, []

    def remove_first(file, flags):
        real(file, flags)
        if not removed:
            removed.append((tmp_path / ".lock").unlink())

    monkeypatch.setattr(fcntl, "lockf", remove_first)
    with locked_folder(str(tmp_path)):
        assert removed and (tmp_path / ".lock").exists()
