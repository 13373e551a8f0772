"""How scripts end: one line and an exit code, and no word at all where nobody reads any more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
from sd.errors import InputError, RunError, run_script
def main():
    {}
run_script(main)
"""
SCRIPTS = ["create_pretraining_data.py", "eval.py", "export.py", "app.py", "train_txt2img_laion400m_trainer.py"]


@pytest.fixture(params=["", "1"], autouse=True)
def buffering(request, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


def run_unread(*words):
    """A process whose output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writer)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_into_a_closed_pipe_is_silent(script):
    done = run_unread(script, "--help")
    assert done.returncode in (0, 141) and done.stderr == ""  # argparse does not mind a write that fails


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("pass", 0, ""),
        ("print('x' * 100000)", 141, ""),
        ("raise InputError('a; b')", 2, "error: a; b\n"),
        ("raise RunError('a; b')", 1, "error: a; b\n"),
    ],
)
def test_exit_codes_with_nobody_reading(body, code, told):
    done = run_unread("-c", PROGRAM.format(body))
    assert (done.returncode, done.stderr) == (code, told)


def test_another_broken_pipe_is_told():
    program = PROGRAM.format("raise BrokenPipeError('of a worker')")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("BrokenPipeError: of a worker\n")


def test_a_closed_output_is_no_error():
    program = "import os; os.close(1); import sys; sys.stdout = None; from sd.errors import run_script; run_script(int)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
