"""Restarts of a training command: counted against progress, ended by errors that repeat, stopped by signals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sd.errors import InputError
from sd.processes.progress import RESTARTED, Progress, read_progress, report_end, report_step
from sd.processes.supervisor import FIRST_PAUSE_SECONDS, Budget, Supervisor, first_pause, split_restarts
from tests.holding import wait_for, wait_until_ended

ROOT = Path(__file__).resolve().parents[2]
KILLED = Progress(step=5)

# Each attempt appends to `attempts`, makes its listed steps, and ends as listed. RunError ends come with exit code 1.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from sd.errors import ArgumentError, InputError, RunError
from sd.processes.progress import report_end, report_step
folder, *plan = sys.argv[1:]
attempts = Path(folder) / "attempts"
number = len(attempts.read_text().splitlines()) if attempts.exists() else 0
with attempts.open("a") as file:
    file.write(os.environ.get("SD_RESTARTED", "0") + "\\n")
step, end = plan[min(number, len(plan) - 1)].split(":")
if step:
    report_step(int(step))
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "wait":
    def stop(number, frame):
        report_end(None)
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    (Path(folder) / "ready").write_text(str(os.getpid()))
    time.sleep(600)
errors = {"RunError": RunError("it broke"), "InputError": InputError("it broke"),
          "ArgumentError": ArgumentError("seed", -1, "; it broke")}
if end in errors:
    report_end(errors[end], "it broke")
    sys.exit(1)
"""


def start(tmp_path, *plan, restarts="10"):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "sd.processes.supervisor", tmp_path / "script.py", tmp_path, *plan]
    return subprocess.Popen(
        [*map(str, command), "--restarts", restarts],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RESTART_PAUSE": "0.01"},
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(run):
    """(exit code, lines of standard error)."""
    _, text = run.communicate()
    return run.returncode, text.strip().splitlines()


def attempts(tmp_path):
    return (tmp_path / "attempts").read_text().split()


def test_a_killed_run_is_started_until_it_succeeds(tmp_path):
    code, lines = ended(start(tmp_path, "3:kill", "7:kill", "9:done"))
    assert code == 0 and attempts(tmp_path) == ["0", "1", "1"]
    assert len(lines) == 2 and "ended after step 3" in lines[0] and "(killed by SIGKILL)" in lines[0]
    assert "starting again in 0 s, 9 restarts left" in lines[0] and "8 restarts left" in lines[1]


def test_an_attempt_before_the_first_step_may_start_from_scratch(tmp_path):
    """Only once a step was made is --overwrite_output_dir done with."""
    code, _ = ended(start(tmp_path, ":kill", "2:kill", "4:done"))
    assert code == 0 and attempts(tmp_path) == ["0", "0", "1"]


def test_attempts_without_a_step_use_up_two_restarts_each(tmp_path):
    code, lines = ended(start(tmp_path, ":kill", restarts="4"))
    assert code == 128 + signal.SIGKILL and len(attempts(tmp_path)) == 3
    assert lines[-1].endswith("not started again: no restart is left")


def test_the_same_error_at_the_same_step_twice_ends_the_run_with_it(tmp_path):
    code, lines = ended(start(tmp_path, "3:RunError", "8:RunError", "8:RunError", "9:done"))
    assert code == 1 and len(attempts(tmp_path)) == 3
    assert "(RunError: it broke); not started again: the same error came twice at the same step (8)" in lines[-1]


@pytest.mark.parametrize("end", [":InputError", ":ArgumentError"])
def test_wrong_input_is_not_tried_again(tmp_path, end):
    code, lines = ended(start(tmp_path, end))
    assert code == 1 and len(attempts(tmp_path)) == 1 and "InputError: it broke" in lines[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_once_and_for_all(tmp_path, number):
    run = start(tmp_path, "3:wait", "9:done")
    wait_for((tmp_path / "ready").exists, "the script runs", run, run.stderr.read)
    run.send_signal(number)
    code, lines = ended(run)
    assert code == 128 + number and lines == [] and len(attempts(tmp_path)) == 1


def test_a_killed_supervisor_leaves_no_orphans(tmp_path):
    run = start(tmp_path, "3:wait")
    ready = tmp_path / "ready"
    child = int(wait_for(lambda: ready.exists() and ready.read_text(), "the script runs", run, run.stderr.read))
    run.kill()
    run.wait()
    run.stderr.close()
    wait_until_ended([child])


def test_pauses_double_while_no_step_is_made_and_have_a_limit():
    budget, pauses = Budget(100), []
    for step in (None, None, None, 4):
        assert budget.reason_to_end(Progress(step), started_at=None) is None
        pauses.append(budget.pause(5))
    assert pauses == [10, 20, 40, 5]
    budget.attempts_without_step = 50
    assert budget.pause(5) == 300


def test_kills_at_the_same_step_are_no_repeated_error():
    budget = Budget(10)
    assert [budget.reason_to_end(KILLED, started_at=2) for _ in range(3)] == [None] * 3


@pytest.mark.parametrize(
    ("words", "default", "expected"),
    [
        (["a", "--restarts", "3", "b"], None, (["a", "b"], 3)),
        (["a", "--restarts=4"], "9", (["a"], 4)),
        (["a"], "9", (["a"], 9)),
    ],
)
def test_the_flag_wins_over_the_environment(words, default, expected):
    assert split_restarts(words, default) == expected


@pytest.mark.parametrize("words", [["a", "--restarts"], ["a", "--restarts", "-1"], ["a", "--restarts=many"], ["a"]])
def test_a_number_that_is_none_is_refused(words):
    with pytest.raises(InputError, match=r"--restarts .*expected how often"):
        split_restarts(words, None)


def test_notes_of_a_process_are_read_back_and_the_first_error_counts(tmp_path):
    environ = {"SD_PROGRESS_FILE": str(tmp_path / "step")}
    assert read_progress(tmp_path / "step") == Progress()
    for step in (99, 100):
        report_step(step, environ)
    report_end(InputError("a"), "first", environ)
    report_end(ValueError("b"), "second", environ)
    assert read_progress(tmp_path / "step") == Progress(100, False, ("InputError", "first"))
    (tmp_path / "step.end").write_text('{"err')
    assert read_progress(tmp_path / "step") == Progress(100)
    report_step(1, {})  # without a supervisor nothing is written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step", "step.end"]


def test_a_supervisor_without_a_variable_gives_the_exit_code_of_success():
    assert RESTARTED not in os.environ
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert Supervisor([sys.executable, "-c", "pass"], 0).run() == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_pause_of_the_environment_is_seconds():
    assert first_pause({}) == FIRST_PAUSE_SECONDS and first_pause({"RESTART_PAUSE": "0.5"}) == 0.5
    for text in ("5s", "", "-1", "nan", "inf"):
        with pytest.raises(InputError, match=f"^RESTART_PAUSE={text}; expected seconds, 0 or more$"):
            first_pause({"RESTART_PAUSE": text})
