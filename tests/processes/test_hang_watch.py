"""The watch over steps: what counts as a hang, and what a hanging process leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sd.processes import hang_watch as module
from sd.processes.hang_watch import HANG_EXIT_CODE, HangWatch
from sd.processes.progress import VARIABLE, read_progress

ROOT = Path(__file__).resolve().parents[2]
HANGS = """
import sys, threading
from sd.processes.hang_watch import HangWatch
def waits_for_ever():
    threading.Event().wait()
with HangWatch(sys.argv[1], rank=3, timeout=100, step=7) as watch:
    watch._timeout = 0.5  # from here on, however long it took to get here
    watch.beat(8)
    waits_for_ever()
"""


def test_a_hanging_process_writes_its_stacks_and_ends(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), VARIABLE: str(tmp_path / "progress")}
    done = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == HANG_EXIT_CODE
    stacks = (tmp_path / "hang-8" / "rank-3.txt").read_text()
    assert stacks.split()[:2] == ["rank", "3,"] and "no step after step            8\n" in stacks
    assert "in waits_for_ever" in stacks and not (tmp_path / ".stacks-rank-3.txt").exists()
    assert f"see {tmp_path / 'hang-8' / 'rank-3.txt'}; this process ends" in done.stderr
    assert read_progress(tmp_path / "progress").error == ("HangError", "no step for too long")


KEEPS_PYTHON = """
import ctypes, sys
from sd.processes import hang_watch
hang_watch._BACKSTOP_SECONDS = 0.5
def holds_the_interpreter():
    ctypes.PyDLL(None).sleep(600)  # PyDLL keeps the lock that Python's threads need
with hang_watch.HangWatch(sys.argv[1], rank=3, timeout=100, step=7) as watch:
    watch._timeout = 0.5
    watch.beat(8)
    holds_the_interpreter()
"""


def test_stacks_are_written_even_where_no_thread_of_python_runs(tmp_path, caplog):
    command = [sys.executable, "-c", KEEPS_PYTHON, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120, check=False)
    assert done.returncode == 1
    with HangWatch(tmp_path, rank=3, timeout=100):
        assert "made no step after step 8" in caplog.text
    assert "in holds_the_interpreter" in (tmp_path / "hang-8" / "rank-3.txt").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["hang-8"]


def test_the_limit_is_the_longer_of_timeout_and_twenty_medians(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    watch = HangWatch(tmp_path, rank=0, timeout=0)
    watch._timeout = 600.0
    assert watch.limit() == 600
    for step, seconds in enumerate([50, 40, 900], start=1):  # one slow step does not move the median
        now[0] += seconds
        watch.beat(step)
    assert watch.limit() == 20 * 50
    with watch.allowing(10):
        assert watch.limit() == 10 * 20 * 50
    assert watch.limit() == 20 * 50


def test_no_watch_thread_and_no_timer_remains(tmp_path):
    import threading

    before = threading.active_count()
    for timeout in (0, 100):
        with HangWatch(tmp_path, rank=0, timeout=timeout) as watch:
            watch.beat(1)
        assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("boom")])
def test_an_error_within_passes_through(tmp_path, error):
    with pytest.raises(ValueError, match="boom"), HangWatch(tmp_path, rank=0, timeout=100):
        raise error


def test_a_run_starts_although_the_stacks_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with HangWatch(tmp_path / "file", rank=0, timeout=100) as watch:
        watch.beat(1)
    assert "cannot be written (Not a directory): a hang may end without stacks" in caplog.text
