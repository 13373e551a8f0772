"""Training as processes: stopped, killed at any moment, on several ranks; nothing is lost and nobody is left."""

import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sd.errors import InputError
from sd.runs import checkpoint as ck
from tests.holding import free_port, wait_for
from tests.numeric import assert_same_training, most_of_way, share_of_way
from tests.training_harness import EMA, ROOT, UNET, checksums, processes_of, wait_until_gone, weights

pytestmark = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="reads /proc")

STEPS = 30
FLAGS = ["--max_steps", STEPS, "--save_steps", 4, "--save_total_limit", 3, "--use_ema", "--logging_steps", 1]


@pytest.fixture(scope="module")
def undisturbed(workshop):
    return checksums(workshop.train("undisturbed", *FLAGS) / f"checkpoint-{STEPS}")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_run_saves_and_resumes_to_the_same_end(workshop, undisturbed, number):
    name = f"stopped_{number.name}"
    hold = workshop.hold(name, step=6)
    run = workshop.start(name, *FLAGS, "--dataloader_num_workers", 1, hold=hold)
    hold.wait(run, lambda: workshop.log(name))
    os.killpg(run.pid, number)  # as a terminal does
    hold.release()
    assert run.wait() == 128 + number
    newest = ck.newest_intact_checkpoint(workshop.folder / name)
    assert 6 <= ck.checkpoint_step(newest) < STEPS
    assert "Traceback" not in workshop.log(name)
    wait_until_gone(workshop, name)
    assert checksums(workshop.train(name, *FLAGS) / f"checkpoint-{STEPS}") == undisturbed


def test_a_killed_run_resumes_to_the_same_end(workshop, undisturbed):
    hold = workshop.hold("killed", step=11)  # two checkpoints are there
    run = workshop.start("killed", *FLAGS, "--dataloader_num_workers", 1, hold=hold)
    hold.wait(run, lambda: workshop.log("killed"))
    run.kill()
    run.wait()
    wait_until_gone(workshop, "killed")
    assert ck.checkpoint_step(ck.newest_intact_checkpoint(workshop.folder / "killed")) == 8
    assert checksums(workshop.train("killed", *FLAGS) / f"checkpoint-{STEPS}") == undisturbed
    assert len(ck.list_checkpoints(workshop.folder / "killed")) <= 3
    assert not list((workshop.folder / "killed").glob("checkpoint-*.*"))


def kill_until_done(workshop, name, kills, seed):
    """Start, kill with SIGKILL at a random moment of the loading, training or saving, again and again."""
    rng = random.Random(seed)
    for _ in range(kills):
        run = workshop.start(name, *FLAGS, "--dataloader_num_workers", 1)
        before = len(workshop.log(name))
        if rng.random() < 0.8:  # most of the time lies in the start, most of the danger after it
            wait_for(
                lambda before=before, run=run: "step" in workshop.log(name)[before:] or run.poll() is not None, "a step"
            )
            time.sleep(rng.uniform(0, 1.5))
        else:
            time.sleep(rng.uniform(0, 5))
        run.kill()
        run.wait()
        wait_until_gone(workshop, name)
    run = workshop.start(name, *FLAGS, "--dataloader_num_workers", 1)
    assert run.wait(180) == 0, workshop.log(name)[-2000:]


@pytest.mark.slow
def test_killed_fifty_times_it_ends_as_undisturbed(workshop, undisturbed):
    for seed in range(10):
        kill_until_done(workshop, f"killed_{seed}", kills=5, seed=seed)
        assert checksums(workshop.folder / f"killed_{seed}/checkpoint-{STEPS}") == undisturbed


def test_an_output_dir_in_use_is_refused_at_once(workshop):
    program = (
        "import sys; from sd.runs.checkpoint import lock_output_dir; lock = lock_output_dir(sys.argv[1]);"
        "print('locked', flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(workshop.folder / "in_use")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(InputError, match=rf"--output_dir .*in_use is in use by process {holder.pid}( on .+)?; "):
        workshop.train("in_use", *FLAGS)
    holder.communicate(b"\n")


END = 8
TWO = ["--data_lanes", 1, "--max_steps", END, "--logging_steps", 2, "--learning_rate", 1e-4]


@pytest.fixture(scope="module")
def assert_as_one_process(workshop):
    """Fails unless a checkpoint holds what one process ends with that takes the batches of all ranks."""
    flags = [*TWO, "--per_device_train_batch_size", 4]
    end = weights(workshop.train("one_process", *flags) / f"checkpoint-{END}")
    start = weights(workshop.train("start", *flags, "--learning_rate", 0, "--max_steps", 1) / "checkpoint-1")
    flags += ["--per_device_train_batch_size", 2]
    half = weights(workshop.train("half_the_batch", *flags) / f"checkpoint-{END}")
    assert share_of_way(half, end, start) > 4 * most_of_way(4000)  # as if one of two ranks were lost
    return lambda folder: assert_same_training(weights(folder), end, start)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--per_device_train_batch_size", 2], id="two ranks"),
        pytest.param(
            ["--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 2, "--recompute", True],
            id="accumulation and recompute",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--per_device_train_batch_size", 2, "--sharding", "stage1"], id="sharding stage 1", marks=pytest.mark.slow
        ),
    ],
)
def test_two_ranks_are_one_process_with_twice_the_batch(workshop, assert_as_one_process, request, flags):
    name = re.sub(r"\W+", "_", request.node.callspec.id)
    run = workshop.start(name, *TWO, *flags, ranks=2)
    assert run.wait(180) == 0, workshop.log(name)[-3000:]
    folder = workshop.folder / name / f"checkpoint-{END}"
    assert_as_one_process(folder)
    wait_until_gone(workshop, name)
    assert ck.find_problem(folder) is None


@pytest.mark.slow
def test_sharded_state_resumes_on_one_rank_and_back(workshop, assert_as_one_process):
    steps = ["--save_steps", 2]
    flags = ["--per_device_train_batch_size", 2, "--sharding", "stage1", *steps]
    assert workshop.start("reshard", *TWO, *flags, "--max_steps", 2, ranks=2).wait(180) == 0
    workshop.train("reshard", *TWO, *steps, "--per_device_train_batch_size", 4, "--max_steps", 4)
    assert workshop.start("reshard", *TWO, *flags, "--max_steps", 6, ranks=2).wait(180) == 0
    assert workshop.start("reshard", *TWO, *steps, "--per_device_train_batch_size", 2, ranks=2).wait(180) == 0
    assert_as_one_process(workshop.folder / f"reshard/checkpoint-{END}")


@pytest.mark.slow
def test_two_machines_of_two_ranks_are_one_process(workshop, assert_as_one_process):
    launch = ["--nnodes", 2, "--master", f"127.0.0.1:{free_port()}"]
    flags = [*TWO, "--per_device_train_batch_size", 1]
    machines = [workshop.start("machines", *flags, ranks=2, launch=[*launch, "--rank", number]) for number in range(2)]
    assert [machine.wait(240) for machine in machines] == [0, 0], workshop.log("machines")[-3000:]
    assert_as_one_process(workshop.folder / f"machines/checkpoint-{END}")


def test_a_killed_rank_ends_the_others_and_the_next_start_resumes(workshop, caplog):
    flags = ["--per_device_train_batch_size", 2, "--dataloader_num_workers", 1, "--save_steps", 2, "--logging_steps", 1]
    hold = workshop.hold("rank_killed", step=3, PADDLE_TRAINER_ID="1")
    run = workshop.start("rank_killed", *TWO, *flags, ranks=2, hold=hold)
    [rank] = hold.wait(run, lambda: workshop.log("rank_killed"))
    os.kill(rank, signal.SIGKILL)
    assert run.wait() != 0
    reported = workshop.log("rank_killed")
    # The killed one, or the other, whose gloo aborts if the launcher looks only after its connection broke.
    assert "Container failed" in reported and re.search(r"status failed.*code -(9|6)\b", reported), reported[-3000:]
    wait_until_gone(workshop, "rank_killed")
    done = ck.checkpoint_step(ck.newest_intact_checkpoint(workshop.folder / "rank_killed"))
    caplog.set_level(logging.INFO, logger="sd")
    workshop.train("rank_killed", *TWO, *flags, "--per_device_train_batch_size", 4, "--max_steps", done + 2)
    assert f"resuming from {workshop.folder}/rank_killed/checkpoint-{done}" in caplog.text


@pytest.mark.slow
def test_a_failed_save_of_rank_0_ends_the_other_with_its_message(workshop):
    """A file stands where the half-written checkpoint is to be: no full disk, so training does not go on."""
    (workshop.folder / "obstacle").mkdir()
    (workshop.folder / "obstacle/checkpoint-5.tmp").write_text("")
    flags = ["--per_device_train_batch_size", 2, "--save_steps", 5]
    assert workshop.start("obstacle", *TWO, *flags, ranks=2).wait(180) != 0
    reported = (workshop.folder / "obstacle.ranks/workerlog.1").read_text()
    assert "error: rank 0: FileExistsError" in reported, reported[-2000:]
    wait_until_gone(workshop, "obstacle")


def test_a_killed_launcher_leaves_no_orphans(workshop):
    flags = ["--per_device_train_batch_size", 2, "--dataloader_num_workers", 1]
    hold = workshop.hold("launcher_killed", step=2)
    run = workshop.start("launcher_killed", *TWO, *flags, ranks=2, hold=hold)
    hold.wait(run, lambda: workshop.log("launcher_killed"), processes=2)
    assert len(processes_of(workshop.folder / "launcher_killed")) >= 5  # launcher, two ranks, two workers
    run.kill()
    run.wait()
    wait_until_gone(workshop, "launcher_killed")


@pytest.mark.slow
def test_a_stopped_launcher_saves_the_same_step_on_both_ranks(workshop):
    flags = [*TWO, "--per_device_train_batch_size", 2, "--dataloader_num_workers", 1, "--logging_steps", 1]
    flags += ["--train_text_encoder", "--use_ema", "--max_steps", 20]
    hold = workshop.hold("launcher_stopped", step=5)
    run = workshop.start("launcher_stopped", *flags, ranks=2, hold=hold)
    hold.wait(run, lambda: workshop.log("launcher_stopped"), processes=2)
    os.killpg(run.pid, signal.SIGINT)
    hold.release()
    assert run.wait() != 0
    wait_until_gone(workshop, "launcher_stopped")
    assert ck.checkpoint_step(ck.newest_intact_checkpoint(workshop.folder / "launcher_stopped")) < 20
    assert workshop.start("launcher_stopped", *flags, ranks=2).wait(180) == 0
    flags += ["--per_device_train_batch_size", 4]
    whole = workshop.train("not_stopped", *flags) / "checkpoint-20"
    start = workshop.train("not_begun", *flags, "--learning_rate", 0, "--max_steps", 1) / "checkpoint-1"
    for name in (UNET, EMA, "text_encoder/model.safetensors"):
        resumed = weights(workshop.folder / "launcher_stopped/checkpoint-20", name)
        assert_same_training(resumed, weights(whole, name), weights(start, name), name=name)
