"""The launcher of several ranks: how it ends after a signal, and with a rank's exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sd.errors import StopError
from sd.processes.launch import WHEN_STOPPED
from tests.holding import wait_for

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import os, signal, sys, time
from pathlib import Path
if sys.argv[2] == "default":  # as until a rank has imported anything
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
elif sys.argv[2] == "reports":
    from sd.processes.signals import report_early_stop
    report_early_stop()
else:
    sys.exit(int(sys.argv[2]))
Path(sys.argv[1], os.environ["PADDLE_TRAINER_ID"]).touch()
time.sleep(600)
"""


def launch(folder, ends):
    """The launcher of two ranks that end so, its output a pipe."""
    (folder / "rank.py").write_text(RANK)
    (folder / "ready").mkdir()
    command = [sys.executable, "-m", "sd.processes.launch", "--nproc_per_node", "2", "--log_dir", str(folder / "log")]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PADDLE_DISTRI_BACKEND": "gloo", "PORT_RANGE": "20000:32767"}
    return subprocess.Popen(
        [*command, str(folder / "rank.py"), str(folder / "ready"), ends],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell without job control ignores SIGINT for all below it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("ends", "reported"), [("default", None), ("reports", "stopped before the first step; ")])
def test_a_stopped_launch_has_one_line_and_the_exit_code_of_shells(tmp_path, number, ends, reported):
    run = launch(tmp_path, ends)
    wait_for(lambda: len(list((tmp_path / "ready").iterdir())) == 2, "two ranks run", run)
    run.send_signal(number)
    lines = [line for line in run.communicate()[0].splitlines() if line.startswith("stopped ")]
    assert run.returncode == 128 + number
    assert len(lines) == 1 and lines[0].startswith(reported or str(StopError(number, WHEN_STOPPED)))


def test_the_exit_code_of_a_rank_is_that_of_the_launch(tmp_path):
    run = launch(tmp_path, "2")  # wrong input, which is the number of SIGINT too
    printed = run.communicate()[0]
    assert run.returncode == 2 and "stopped by" not in printed
