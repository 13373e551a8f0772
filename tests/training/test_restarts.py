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

from sd.runs import checkpoint as ck
from tests.holding import Gate, Hold, wait_for
from tests.training_harness import ROOT, checksums, wait_until_gone

pytestmark = pytest.mark.slow

STEPS, SAVE_STEPS = 30, 4
FLAGS = ["--max_steps", STEPS, "--save_steps", SAVE_STEPS, "--save_total_limit", 3, "--use_ema", "--logging_steps", 1]
HELD_COMMIT = 2 * SAVE_STEPS
FULL_DISK_BYTES = 100_000  # more than a rank logs in a life, less than the weights


@pytest.fixture(scope="module")
def undisturbed(workshop):
    """The output folder of two ranks that nothing disturbs."""
    assert workshop.start("undisturbed", *FLAGS, ranks=2).wait(600) == 0
    return workshop.folder / "undisturbed"


def start(workshop, name, *flags, hold):
    """train_multi.sh with --restarts on two processes, its output in <name>.log, that of the ranks in <name>.ranks."""
    settings = {"NPROC": "2", "RESTARTS": "200", "RESTART_PAUSE": "0.1", "PYTHON": sys.executable}
    settings["LAUNCH"] = f"--log_dir {workshop.folder / name}.ranks --log_overwrite True"
    with (workshop.folder / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            ["sh", str(ROOT / "train_multi.sh"), *workshop.flags(name, "--dataloader_num_workers", 1, *flags)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=workshop.folder,
            env=os.environ | settings | hold.variables(),
            start_new_session=True,
        )


@pytest.mark.ci
def test_a_hanging_rank_is_detected_and_the_restarted_run_ends_as_undisturbed(workshop, undisturbed):
    hold = workshop.hold("still", step=6, PADDLE_TRAINER_ID="1")
    run = start(workshop, "still", *FLAGS, "--hang_timeout", 10, hold=hold)
    [rank] = hold.wait(run, lambda: workshop.log("still"))
    os.kill(rank, signal.SIGSTOP)
    hold.release()  # of the lives to come
    assert run.wait() == 0, workshop.log("still")[-3000:]
    # Gloo gives up by itself after 30 s; the watch comes first where a step takes less than 1.5 s.
    stacks = list((workshop.folder / "still").glob("hang-*/rank-*.txt"))
    assert stacks or "gloo/transport" in workshop.log("still")
    assert "supervisor: training ended after step" in workshop.log("still")
    wait_until_gone(workshop, "still")
    last = f"checkpoint-{STEPS}"
    assert checksums(workshop.folder / "still" / last) == checksums(undisturbed / last)


def test_a_kill_while_a_checkpoint_is_written_beside_the_steps_costs_that_checkpoint_alone(workshop, undisturbed):
    name = "behind"
    hold = Hold(workshop.folder / "behind.hold", "commits", 2, PADDLE_TRAINER_ID="0")
    run = start(workshop, name, *FLAGS, "--save_in_background", hold=hold)
    [rank] = hold.wait(run, lambda: workshop.log(name))
    step = f"step {HELD_COMMIT + 3}/{STEPS}"
    wait_for(lambda: step in workshop.log(name), "training goes on meanwhile", run, lambda: workshop.log(name))
    output_dir = workshop.folder / name
    assert ck.checkpoint_step(ck.newest_intact_checkpoint(output_dir)) == HELD_COMMIT - SAVE_STEPS
    assert (output_dir / f"checkpoint-{HELD_COMMIT}.tmp").is_dir()
    os.kill(rank, signal.SIGKILL)
    hold.release()  # of the lives to come
    assert run.wait() == 0, workshop.log(name)[-3000:]
    log = workshop.log(name)
    assert log.count("supervisor: training ended after step") == 1
    assert f"resuming from {output_dir}/checkpoint-{HELD_COMMIT - SAVE_STEPS}" in log
    wait_until_gone(workshop, name)
    for last in (f"checkpoint-{STEPS - STEPS % SAVE_STEPS}", f"checkpoint-{STEPS}"):
        assert checksums(output_dir / last) == checksums(undisturbed / last)


def draw_plan(seed):
    """50 disturbances, and how many steps are allowed with each."""
    rng = random.Random(seed)
    ways = rng.choices(["kill", "stop", "full disk"], [5, 2, 3], k=50)
    return [(way, rng.randint(1, 3)) for way in ways]


def limit_files(pid, size):
    """From now on the disk takes no file of more bytes of this process, as a full one takes none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, (size, psutil.RLIM_INFINITY))


def test_fifty_disturbances_change_nothing(workshop):
    """SIGKILL, SIGSTOP and a full disk, each after a new step of both ranks, at a random moment of saves and steps."""
    rng, plan, name = random.Random(6), draw_plan(seed=5), "disturbed"
    end = 1 + sum(steps for _, steps in plan)
    flags = ["--max_steps", end, "--save_steps", 1, "--save_total_limit", 3, "--use_ema", "--logging_steps", 1]
    assert workshop.start("alone", *flags, ranks=2).wait(600) == 0
    gate = Gate(workshop.folder / "gate")
    begin = time.monotonic()
    run = start(workshop, name, *flags, "--hang_timeout", 20, hold=gate)

    def not_saved():  # by rank 0 of this life
        log = (workshop.folder / f"{name}.ranks/workerlog.0").read_text()
        return log.count("earlier checkpoints are kept, training continues")

    step, gone = 1, set()
    for way, steps in plan:
        ranks = gate.wait_at(step, gone, run, lambda: workshop.log(name))
        before = not_saved()
        if way == "full disk":
            limit_files(ranks[0], FULL_DISK_BYTES)
        step += steps
        gate.allow(step)
        if way == "full disk":
            wait_for(lambda before=before: not_saved() > before, "a save fails", run, lambda: workshop.log(name))
            if rng.random() < 0.5:  # else it stays full until the life ends
                limit_files(ranks[0], psutil.RLIM_INFINITY)
        else:
            time.sleep(rng.uniform(0, 0.5))
            os.kill(rng.choice(sorted(ranks.values())), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[way])
            gone |= set(ranks.values())
    ranks = gate.wait_at(step, gone, run, lambda: workshop.log(name))
    limit_files(ranks[0], psutil.RLIM_INFINITY)
    gate.allow(end + 1)
    assert run.wait() == 0, workshop.log(name)[-3000:]
    wait_until_gone(workshop, name)
    ways, lives = [way for way, _ in plan], 1 + workshop.log(name).count("supervisor: training ended")
    print({way: ways.count(way) for way in sorted(set(ways))}, f"{lives} lives, {time.monotonic() - begin:.0f} s")
    assert lives > ways.count("kill") + ways.count("stop")
    disturbed, alone = (checksums(workshop.folder / each / f"checkpoint-{end}") for each in (name, "alone"))
    assert disturbed == alone
