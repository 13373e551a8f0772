"""Training with buckets as processes: killed at a step, on two ranks, and it ends as if nothing had happened."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.bucket_maker import BUCKETS, make_pictures, mixed
from tests.training_harness import Workshop, checksums, weights

pytestmark = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="reads /proc")

END = 8
FLAGS = ["--aspect_buckets", BUCKETS, "--max_steps", END, "--save_steps", 3, "--logging_steps", 1, "--use_ema"]
FLAGS += ["--data_lanes", 1, "--dataloader_num_workers", 1, "--learning_rate", 1e-4]
TWO_RANKS = ["--per_device_train_batch_size", 2]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    workshop = Workshop(tmp_path_factory.mktemp("bucket_processes"))
    workshop.file_list = make_pictures(workshop.folder / "pictures", [mixed(20, 1), mixed(17, 2), mixed(9, 3)])
    return workshop


@pytest.fixture(scope="module")
def undisturbed(workshop):
    return workshop.train("undisturbed", *FLAGS) / f"checkpoint-{END}"


def kill_at(workshop, name, step, *flags, ranks=None):
    """Start, and end with SIGKILL the process (of two ranks the second) that stands before a step."""
    environ = {"PADDLE_TRAINER_ID": "1"} if ranks else {}
    hold = workshop.hold(name, step=step, **environ)
    run = workshop.start(name, *FLAGS, *flags, ranks=ranks, hold=hold)
    [process] = hold.wait(run, lambda: workshop.log(name))
    os.kill(process, signal.SIGKILL)
    assert run.wait(120) != 0


def test_killed_it_ends_as_undisturbed_bit_for_bit(workshop, undisturbed):
    kill_at(workshop, "killed", 5)
    assert (workshop.folder / "killed/checkpoint-3").is_dir()
    assert checksums(workshop.train("killed", *FLAGS) / f"checkpoint-{END}") == checksums(undisturbed)


@pytest.mark.slow
def test_two_ranks_of_which_one_is_killed_end_as_two_undisturbed_and_as_one(workshop, undisturbed):
    for name in ("two", "two_killed"):
        if name == "two_killed":
            kill_at(workshop, name, 5, *TWO_RANKS, ranks=2)
            assert (workshop.folder / name / "checkpoint-3").is_dir()
        run = workshop.start(name, *FLAGS, *TWO_RANKS, ranks=2)
        assert run.wait(300) == 0, workshop.log(name)[-3000:]
    two = workshop.folder / f"two/checkpoint-{END}"
    assert checksums(workshop.folder / f"two_killed/checkpoint-{END}") == checksums(two)
    assert np.abs(weights(two) - weights(undisturbed)).max() < 1e-5
