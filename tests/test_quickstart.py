"""The two commands of the README, from a fresh clone: quickstart.sh for real, and what it skips the second time."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def clone(folder):
    """A fresh clone of what is committed, with this environment as its .venv."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    environment = folder / ".venv"
    environment.symlink_to(Path(sys.prefix))
    return folder


def quickstart(folder, **variables):
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MKL_", "OMP_"))}
    begin = time.monotonic()
    result = subprocess.run(
        ["sh", "quickstart.sh"], cwd=folder, env={**environ, **variables}, capture_output=True, text=True
    )
    return result, time.monotonic() - begin


def shares(output):
    """The last printed shares of pictures, name -> percent."""
    line = [line for line in output.splitlines() if re.match(r"\d+ pictures: colour ", line)][-1]
    return {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+)%", line)}


@pytest.mark.slow
@pytest.mark.ci
def test_a_short_quickstart_ends_and_skips_finished_stages(tmp_path):
    folder = clone(tmp_path / "clone")
    result, _ = quickstart(folder, STEPS="20")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert {path.name for path in folder.glob("quickstart_out/model/checkpoint-*")} == {
        "checkpoint-10",
        "checkpoint-20",
    }
    assert "resuming from quickstart_out/model/checkpoint-10" in result.stdout + result.stderr
    samples = [path for path in folder.glob("quickstart_out/samples/*.png") if path.name != "grid.png"]
    assert len(samples) == 108
    assert set(shares(result.stdout)) == {"colour", "background", "shape", "all", "shuffled"}
    grid = folder / "quickstart_out/samples/grid.png"
    assert np.asarray(Image.open(grid)).std() > 10
    before = {path: path.stat().st_mtime_ns for path in folder.glob("quickstart_out/**/*.safetensors")}
    again, _ = quickstart(folder, STEPS="20")
    assert again.returncode == 0, again.stderr[-3000:]
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("quickstart_out/**/*.safetensors")}
    assert "installing" not in again.stdout and "108 of 108 pictures are there already" in again.stdout


@pytest.mark.slow
def test_the_quickstart_learns_what_it_promises_within_ten_minutes(tmp_path):
    result, seconds = quickstart(clone(tmp_path / "clone"))
    assert result.returncode == 0, result.stderr[-3000:]
    right = shares(result.stdout)
    assert right["colour"] >= 95 and right["background"] >= 95
    assert right["all"] >= 70
    assert right["shuffled"] < 10
    assert seconds < 600


@pytest.mark.slow
def test_a_longer_quickstart_is_right_nine_times_in_ten(tmp_path):
    result, _ = quickstart(clone(tmp_path / "clone"), STEPS="4000")
    assert result.returncode == 0, result.stderr[-3000:]
    assert shares(result.stdout)["all"] >= 90
