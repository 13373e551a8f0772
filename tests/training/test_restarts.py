"""A run without a watcher: two ranks under train_multi.sh --restarts, stopped, killed and filled up again and again."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.training.test_training_processes import FLAGS, STEPS
from tests.training_harness import ROOT, Workshop, checksums, wait_until_gone

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("restarts"))


@pytest.fixture(scope="module")
def undisturbed(workshop):
    """Checksums of the last checkpoint of two ranks that nothing disturbs."""
    assert workshop.start("undisturbed", *FLAGS, ranks=2).wait(600) == 0
    return checksums(workshop.folder / "undisturbed" / f"checkpoint-{STEPS}")


def start(workshop, name, *more, hold=None):
    """train_multi.sh with --restarts on two processes, its output in <name>.log."""
    settings = {"NPROC": "2", "RESTARTS": "200", "RESTART_PAUSE": "0.1", "PYTHON": sys.executable}
    with (workshop.folder / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            ["sh", str(ROOT / "train_multi.sh"), *workshop.flags(name, *FLAGS, *more)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=workshop.folder,
            env=os.environ | settings | (hold.variables() if hold else {}),
            start_new_session=True,
        )


def ranks(run):
    """Processes of the ranks below a supervisor, their data workers left out; those that end meanwhile, too."""
    found, below = [], []
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(run.pid).children(recursive=True)
    for process in below:
        with contextlib.suppress(psutil.Error):
            above = psutil.Process(process.ppid())
            if "PADDLE_TRAINER_ID" in process.environ() and "PADDLE_TRAINER_ID" not in above.environ():
                found.append(process)
    return found


@pytest.mark.ci
def test_a_rank_that_stands_still_is_found_and_the_run_ends_as_if_undisturbed(workshop, undisturbed):
    hold = workshop.hold("still", step=6, PADDLE_TRAINER_ID="1")
    run = start(workshop, "still", "--hang_timeout", 10, hold=hold)
    [rank] = hold.wait(run, lambda: workshop.log("still"))
    os.kill(rank, signal.SIGSTOP)
    hold.release()  # of the lives to come
    assert run.wait() == 0, workshop.log("still")[-3000:]
    # Gloo gives up by itself after 30 s; the watch comes first where a step takes less than 1.5 s.
    stacks = list((workshop.folder / "still").glob("hang-*/rank-*.txt"))
    assert stacks or "gloo/transport" in workshop.log("still")
    assert "supervisor: training ended after step" in workshop.log("still")
    wait_until_gone(workshop, "still")
    assert checksums(workshop.folder / "still" / f"checkpoint-{STEPS}") == undisturbed


def fill_up(process):
    """From now on the disk takes no file of more than 100 kB of this process, as a full one takes none."""
    process.rlimit(psutil.RLIMIT_FSIZE, (100_000, psutil.RLIM_INFINITY))


def test_fifty_disturbances_change_nothing(workshop, undisturbed):
    """SIGKILL, SIGSTOP and a full disk, for ranks at random moments."""
    rng, name = random.Random(5), "disturbed"
    run = start(workshop, name, "--hang_timeout", 20, "--max_steps", STEPS)
    ways = [psutil.Process.kill] * 6 + [psutil.Process.suspend] * 2 + [fill_up] * 2
    full, done = [], []
    while len(done) < 50 and run.poll() is None:
        time.sleep(rng.uniform(1, 12))
        with contextlib.suppress(psutil.NoSuchProcess):
            while full:
                full.pop().rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        victims = ranks(run)
        if victims:
            way, victim = rng.choice(ways), rng.choice(victims)
            with contextlib.suppress(psutil.NoSuchProcess):
                way(victim)
                done.append(way.__name__)
                full += [victim] if way is fill_up else []
    while full:
        with contextlib.suppress(psutil.NoSuchProcess):
            full.pop().rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    assert run.wait() == 0, workshop.log(name)[-3000:]
    wait_until_gone(workshop, name)
    print({way: done.count(way) for way in sorted(set(done))}, f"{workshop.log(name).count('supervisor: ')} restarts")
    assert checksums(workshop.folder / name / f"checkpoint-{STEPS}") == undisturbed
