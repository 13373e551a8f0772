"""How scripts end: one line and an exit code, and no word at all where nobody reads any more."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sd import errors
from sd.errors import RunError
from tests.data_maker import make_data

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
    ("body", "code", "reported"),
    [
        ("pass", 0, ""),
        ("print('x' * 100000)", 141, ""),
        ("raise InputError('a; b')", 2, "error: a; b\n"),
        ("raise RunError('a; b')", 1, "error: a; b\n"),
    ],
)
def test_exit_codes_with_a_closed_stdout(body, code, reported):
    done = run_unread("-c", PROGRAM.format(body))
    assert (done.returncode, done.stderr) == (code, reported)


def test_another_broken_pipe_is_reported():
    program = PROGRAM.format("raise BrokenPipeError('of a worker')")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("BrokenPipeError: of a worker\n")


def test_a_closed_output_is_no_error():
    program = "import os; os.close(1); import sys; sys.stdout = None; from sd.errors import run_script; run_script(int)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk"])
def test_letters_that_the_console_lacks_are_printed_as_codes(encoding):
    program = PROGRAM.format("print('\\u7ea2 \\u0105 \\ud800'); raise InputError('\\u7ea2 \\u0105')")
    environ = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, env=environ)
    assert done.returncode == 2
    assert done.stdout.rstrip() == "\u7ea2 \u0105 \ud800".encode(encoding, "backslashreplace")
    assert done.stderr.decode(encoding).startswith("error: ")


# Ctrl-C and SIGTERM: one line, from the first moment on.

SIGNALS = [(signal.SIGINT, 130, "stopped by Ctrl-C; "), (signal.SIGTERM, 143, "stopped by SIGTERM; ")]


def interrupt(*words, ready, number=signal.SIGINT, **options):
    """(exit code, lines on stderr after `ready` was among them) of a process that a signal reaches at that moment."""
    command = [sys.executable, *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    while ready not in (line := process.stderr.readline()):
        assert line, "it ended first"
    process.send_signal(number)
    reported = process.communicate()[1]
    return process.returncode, reported.splitlines()


SLOW_MODULE = """
import sys, time
print("ready", file=sys.stderr, flush=True)
try:
    time.sleep(600)
except BaseException:
    print("its own noise", file=sys.stderr)
    raise
"""


@pytest.mark.parametrize(
    "body",
    [
        "ready()\n    time.sleep(60)",
        # A library that makes an error of its own of it, as Paddle's import does.
        "ready()\n    try: time.sleep(60)\n    except BaseException: raise ImportError",
        "import slow_module",
    ],
)
@pytest.mark.parametrize(("number", "expected_code", "begin"), SIGNALS)
def test_ctrl_c_gives_one_line_and_the_exit_code_of_shells(body, number, expected_code, begin, tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text(SLOW_MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    program = (
        "import sys, time\nfrom sd.errors import run_script\ndef ready(): print('ready', file=sys.stderr, flush=True)\n"
        f"def main():\n    {body}\nrun_script(main, 'all is kept')"
    )
    code, lines = interrupt("-c", program, ready="ready", number=number)
    assert (code, lines) == (expected_code, [f"{begin}all is kept"])


def test_paddles_import_leaves_the_handler_of_sigterm():
    """In whose place it puts one that prints a stack of its own."""
    program = (
        "import sys, time\nfrom sd.errors import run_script\nfrom sd.logs import import_quietly\ndef main():\n"
        "    import_quietly()\n    print('ready', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
        "run_script(main, 'all is kept')"
    )
    code, lines = interrupt("-c", program, ready="ready", number=signal.SIGTERM)
    assert (code, lines) == (143, ["stopped by SIGTERM; all is kept"])


def test_a_forked_worker_that_is_stopped_says_nothing():
    program = (
        "import os, signal, sys, time\nfrom sd.errors import run_script\ndef main():\n    child = os.fork()\n"
        "    if not child:\n        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(60)\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\nrun_script(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (256 - signal.SIGTERM, "")


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("train_txt2img_laion400m_trainer.py", "--file_list", "LIST"), "the same command starts again"),
        (("-m", "sd.doctor", "--do_train"), "nothing was changed"),
        (("train_txt2img_laion400m_trainer.py", "--doctor", "--do_train"), "nothing was changed"),
        (("precompute_latents.py", "--file_list", "LIST", "--output_path", "b"), "resumes from the finished parts"),
        (("eval.py",), "finished pictures are kept; the same command resumes"),
    ],
)
@pytest.mark.parametrize(("number", "expected_code", "begin"), SIGNALS)
def test_ctrl_c_in_the_first_seconds_of_a_real_script_gives_one_line(
    words, remedy, number, expected_code, begin, tmp_path, monkeypatch
):
    """In the import of Paddle, which is one here that takes as long as the signal does."""
    (tmp_path / "paddle.py").write_text(SLOW_MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    file_list = make_data(tmp_path / "data", [1])
    code, lines = interrupt(*(file_list if word == "LIST" else word for word in words), ready="ready", number=number)
    assert code == expected_code and len(lines) == 1, lines
    assert lines[0].startswith(begin) and remedy in lines[0]


def test_a_script_that_ignores_ctrl_c_still_ignores_it():
    program = (
        "import os, signal; from sd.errors import run_script; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "run_script(lambda: os.kill(os.getpid(), signal.SIGINT))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_a_lost_rank_is_explained_after_the_launcher_had_time_to_name_it(monkeypatch):
    """The text is gloo's, as a rank gets it whose sibling was killed while both save."""
    waited = []
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    broken = RuntimeError(
        "[/paddle/third_party/gloo/gloo/transport/tcp/pair.cc:525] Read error: Connection reset by peer"
    )
    message = r"the connection to another rank broke .*Connection reset.*the same command"
    with pytest.raises(RunError, match=message), errors.explain_paddle_errors():
        raise broken
    assert sum(waited) > 0
    with pytest.raises(RuntimeError, match=r"^something else$"), errors.explain_paddle_errors():
        raise RuntimeError("something else")
