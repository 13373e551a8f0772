"""The pool: results in order, tasks drawn no further ahead than they are worked on, failures passed on."""

import os
import signal
import time

import psutil
import pytest

from sd.errors import RunError
from sd.processes.pool import run_local


def slow_square(number):
    time.sleep(0.02 * (number % 3))
    return number * number


def fail_at_three(number):
    if number == 3:
        raise OSError(28, "No space left on device", "some/part")
    return number


def die_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleep_long(path):
    time.sleep(60)
    path.touch()


def num_children():
    return sum("spawn_main" in " ".join(child.cmdline()) for child in psutil.Process().children())


def test_results_come_in_order_and_tasks_are_drawn_as_needed():
    drawn = []

    def tasks():
        for number in range(30):
            drawn.append(number)
            yield number

    for place, result in enumerate(run_local(slow_square, tasks(), 2)):
        assert result == place * place
        assert len(drawn) <= place + 2 * 2 + 1
    assert place == 29
    assert num_children() == 0


def test_a_failure_is_passed_on_and_no_process_stays():
    with pytest.raises(OSError, match="No space left on device"):
        list(run_local(fail_at_three, range(10), 2))
    assert num_children() == 0


def test_a_killed_worker_is_reported():
    with pytest.raises(RunError, match="a worker was killed"):
        list(run_local(die_at_three, range(10), 2))
    assert num_children() == 0


def test_ctrl_c_does_not_wait_for_the_tasks(tmp_path):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(2)
    with pytest.raises(KeyboardInterrupt):
        next(run_local(sleep_long, (tmp_path / str(number) for number in range(4)), 2))
    signal.signal(signal.SIGALRM, before)
    assert num_children() == 0 and list(tmp_path.iterdir()) == []


def _seen_card(number):
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()


def test_workers_get_an_environment_in_turn():
    """A process each for a card; before the function is imported, so that Paddle sees one card from the start."""
    cards = [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "7"}]
    seen = set(run_local(_seen_card, range(40), 2, cards))
    assert {card for card, _ in seen} <= {"4", "7"} and len({process for _, process in seen}) == len(seen)
