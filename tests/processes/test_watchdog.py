"""The watchdog of the data workers: it names what stalls, and ends what never moves again."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from sd.processes import watchdog as watchdog_module
from sd.processes.watchdog import Watchdog
from tests.data.streaming.test_damage import dataset
from tests.data_maker import make_data
from tests.holding import wait_for

ROOT = Path(__file__).resolve().parents[2]


def test_a_watchdog_names_the_step_of_a_stalled_worker(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(watchdog_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    watchdog = Watchdog(report_seconds=0.02)  # its thread looks every 5 ms
    with caplog.at_level(logging.WARNING), watchdog.doing("reading part-000007.gz row 3"):
        for count in (1, 2):
            now[0] += 0.021
            wait_for(lambda count=count: caplog.text.count("part-000007.gz row 3") == count, "a warning")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            with watchdog.doing("reading quickly"):
                now[0] += 0.019
                time.sleep(0.01)
    watchdog.close()
    assert caplog.text == ""


def test_a_worker_that_never_moves_again_exits_and_names_its_step(tmp_path):
    program = (
        "import logging, time; logging.basicConfig(); from sd.processes.watchdog import Watchdog\n"
        "with Watchdog(may_exit=True, report_seconds=0.1, give_up_seconds=0.3).doing('reading part-000007.gz'):\n"
        "    time.sleep(600)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
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
        wait_for(lambda: "part-000000.gz for" in caplog.text, "a warning")
        with part.open("wb"):  # lets the reader go on
            pass
        thread.join()
    assert f"has been opening {part} for" in caplog.text


FAST = {"may_exit": False, "report_seconds": 0.2, "give_up_seconds": 900.0}
