"""What a rank tells the launcher's terminal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = """
import subprocess, sys
rank = [sys.executable, "-c", "from sd.processes.signals import write_to_launcher; write_to_launcher('saved')"]
subprocess.run(rank, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
"""


@pytest.mark.parametrize(("rank", "reported"), [("0", "saved\n"), (None, "")])
def test_a_rank_writes_to_the_launchers_terminal_alone(rank, reported):
    environ = {name: value for name, value in os.environ.items() if name != "PADDLE_TRAINER_ID"}
    environ |= {"PADDLE_TRAINER_ID": rank} if rank else {}
    run = subprocess.run(
        [sys.executable, "-c", LAUNCHER], cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True, check=True
    )
    assert run.stderr == reported


def test_a_launchers_log_file_is_not_written(tmp_path):
    with (tmp_path / "log").open("w") as file:
        environ = os.environ | {"PADDLE_TRAINER_ID": "0"}
        subprocess.run([sys.executable, "-c", LAUNCHER], cwd=ROOT, env=environ, stderr=file, check=True)
    assert (tmp_path / "log").read_text() == ""


STOPPED = """
import os, signal, subprocess, sys
program = (
    "import os, signal; from sd.processes.signals import report_early_stop; report_early_stop(); "
    "os.fork() or os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM); signal.pause()"
)
print(subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL).returncode, flush=True)
"""


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0), (None, 0)])
def test_a_rank_that_is_stopped_early_says_so_once_and_none_but_rank_0(rank, lines):
    """The rank's own data worker, which is forked and stopped first, does not speak."""
    environ = {name: value for name, value in os.environ.items() if name != "PADDLE_TRAINER_ID"}
    environ |= {"PADDLE_TRAINER_ID": rank} if rank else {}
    run = subprocess.run([sys.executable, "-c", STOPPED], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert run.stdout.strip() == (str(128 + signal.SIGTERM) if rank else str(-signal.SIGTERM))
    assert run.stderr.count("stopped before the first step; the same command") == lines
    assert len(run.stderr.splitlines()) == lines
