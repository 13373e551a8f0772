"""Caching in real processes: killed ones, several ranks, a full disk, Ray; always the bytes of one quiet process."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from sd.latents.run import precompute
from tests.holding import Hold, wait_for, wait_until_ended
from tests.latent_maker import ROOT, flags_of, make_shapes, options
from tests.pack_input import contents

PARTS = [8] * 40
LAUNCH = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(file list, folder of the cache that one process makes in one go)."""
    folder = tmp_path_factory.mktemp("data")
    source = make_shapes(folder / "in", PARTS)
    precompute(options(source, folder / "alone"))
    return source, folder / "alone"


def whole(folder):
    """The files of a cache but for the file list, which holds the folder's name."""
    return {
        name: digest
        for name, digest in contents(folder).items()
        if not name.endswith(".filelist") and ".list" not in name
    }


def start(command, hold=None, **environment):
    environment |= hold.variables() if hold else {}
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(command, **environment):
    process = start(command, **environment)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def test_kill_9_loses_no_finished_part_and_the_same_command_ends_with_the_same_bytes(data, tmp_path):
    source, alone = data
    out = tmp_path / "out"
    command = [sys.executable, *flags_of(source, out, "--num_workers", "1")]
    hold = Hold(tmp_path / "hold", "parts", 3)
    process = start(command, hold)
    hold.wait(process, process.stdout.read)
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.kill()
    process.wait()
    wait_until_ended(children)
    stored = {path: path.stat().st_mtime_ns for path in out.glob("latents/part-*.gz")}
    assert len(stored) == 3
    assert list(out.glob("filelist/*.filelist*")) == []
    output = finish(command)
    assert f"{len(stored)} of {len(PARTS)} parts are there already" in output
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert whole(out) == whole(alone)


@pytest.mark.slow
@pytest.mark.ci
def test_sigterm_ends_with_one_line(data, tmp_path):
    hold = Hold(tmp_path / "hold", "parts", 1)
    process = start([sys.executable, *flags_of(data[0], tmp_path / "out")], hold)
    hold.wait(process, process.stdout.read)
    process.terminate()
    hold.release()
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert output.strip().splitlines()[-1] == "stopped by SIGTERM; the same command resumes from the finished parts"
    assert [name for name in contents(tmp_path / "out") if name.endswith(".tmp")] == []


def test_two_ranks_of_the_launcher_make_the_cache_of_one_process(data, tmp_path):
    source, alone = data
    out = tmp_path / "out"
    finish([*LAUNCH, "--log_dir", str(tmp_path / "log"), *flags_of(source, out, "--num_workers", "1")])
    assert whole(out) == whole(alone)
    logs = [(tmp_path / f"log/workerlog.{rank}").read_text() for rank in (0, 1)]
    assert sum("320 rows into 40 parts: 320 cached" in log for log in logs) >= 1


def test_the_rank_that_lives_on_makes_the_parts_of_the_dead_one(data, tmp_path):
    """Two ranks as on two machines, where no launcher ends the one because of the other."""
    source, alone = data
    out = tmp_path / "out"
    command = [sys.executable, *flags_of(source, out, "--num_workers", "0")]
    hold = Hold(tmp_path / "hold", "parts", 2)  # with the claim on the part that it makes
    dying = start(command, hold, PADDLE_TRAINERS_NUM="2", PADDLE_TRAINER_ID="1")
    hold.wait(dying, dying.stdout.read)
    living = start(command, PADDLE_TRAINERS_NUM="2", PADDLE_TRAINER_ID="0")
    wait_for(lambda: len(list(out.glob("latents/part-*.gz"))) > 3, "parts by the living", living, living.stdout.read)
    dying.kill()
    dying.communicate()
    output, _ = living.communicate()
    assert living.returncode == 0, output
    assert "320 rows into 40 parts: 320 cached" in output
    assert whole(out) == whole(alone)


@pytest.mark.slow
def test_a_rank_killed_under_the_launcher_loses_no_finished_part(data, tmp_path):
    source, alone = data
    out = tmp_path / "out"
    command = [*LAUNCH, "--log_dir", str(tmp_path / "log"), *flags_of(source, out, "--num_workers", "1")]
    hold = Hold(tmp_path / "hold", "parts", 3)
    launcher = start(command, hold)
    ranks = hold.wait(launcher, launcher.stdout.read, processes=2)
    os.kill(ranks[1], signal.SIGKILL)
    launcher.communicate()
    assert launcher.returncode != 0
    wait_until_ended(ranks)
    stored = {path: path.stat().st_mtime_ns for path in out.glob("latents/part-*.gz")}
    assert len(stored) == 6 and list(out.glob("filelist/*.filelist*")) == []
    finish(command)
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert whole(out) == whole(alone)


@pytest.mark.slow
@pytest.mark.ci
def test_a_full_disk_ends_with_one_line_and_no_partial_part(data, tmp_path):
    source, alone = data
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        command = [sys.executable, *flags_of(source, disk / "out", "--num_workers", "0")]
        process = start(command)
        output, _ = process.communicate()
        assert process.returncode == 1
        last = output.strip().splitlines()[-1]
        assert "No space left on device; mend that, and the same command resumes" in last
        names = list(contents(disk / "out"))
        assert 1 <= len([name for name in names if name.endswith(".gz")]) < len(PARTS)
        assert [name for name in names if name.endswith(".tmp")] == []
        subprocess.run(["mount", "-o", "remount,size=90m", disk], check=True)
        finish(command)
        assert whole(disk / "out") == whole(alone)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
@pytest.mark.ci
def test_ray_makes_the_same_cache(data, tmp_path):
    pytest.importorskip("ray", reason="requirements-ray.txt is not installed")
    source, alone = data
    output = finish([sys.executable, *flags_of(source, tmp_path / "out", "--engine", "ray", "--check", "4")])
    assert "320 rows into 40 parts: 320 cached" in output
    assert whole(tmp_path / "out") | {"check.png": ""} == whole(alone) | {"check.png": ""}
