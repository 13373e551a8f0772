"""The watchdog of the data workers: it names what stalls, and ends what never moves again."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from sd.processes import watchdog as watchdog_module
from sd.processes.watchdog import Watchdog
from tests.data.streaming.test_damage import dataset
from tests.data_maker import make_data

ROOT = Path(__file__).resolve().parents[2]


def test_a_watchdog_says_what_a_stalled_worker_is_busy_with(caplog):
    watchdog = Watchdog(report_seconds=0.1)
    with caplog.at_level(logging.WARNING), watchdog.doing("reading part-000007.gz row 3"):
        time.sleep(0.5)
    named = [record.getMessage() for record in caplog.records if "part-000007.gz row 3" in record.getMessage()]
    assert 2 <= len(named) <= 5
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            with watchdog.doing("reading quickly"):
                time.sleep(0.01)
        time.sleep(0.2)
    assert caplog.text == ""


def test_a_worker_that_never_moves_again_ends_and_says_where(tmp_path):
    program = (
        "import logging, time; logging.basicConfig(); from sd.processes.watchdog import Watchdog\n"
        "with Watchdog(may_exit=True, report_seconds=0.1, give_up_seconds=0.3).doing('reading part-000007.gz'):\n"
        "    time.sleep(30)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=20)
    assert done.returncode == watchdog_module.STALLED_EXIT_CODE
    assert "gives up reading part-000007.gz" in done.stderr


def test_a_stalled_part_is_named_by_the_stream(tmp_path, caplog, monkeypatch):
    """A part that never answers: a FIFO that nobody writes to."""
    name = make_data(tmp_path, [20])
    part = tmp_path / "part-000000.gz"
    monkeypatch.setattr(watchdog_module.Watchdog.__init__, "__kwdefaults__", FAST)
    data = dataset(name)
    part.unlink()
    os.mkfifo(part)
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=lambda: next(iter(data)), daemon=True)
        thread.start()
        for _ in range(100):
            if "part-000000.gz for" in caplog.text:
                break
            time.sleep(0.05)
        with part.open("wb"):  # lets the reader go on
            pass
        thread.join(10)
    assert f"has been opening {part} for" in caplog.text


FAST = {"may_exit": False, "report_seconds": 0.2, "give_up_seconds": 900.0}
