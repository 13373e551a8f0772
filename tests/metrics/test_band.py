"""Bands from runs: mean and deviations by NumPy's definition, and runs that lie inside and outside of them."""

import json
import subprocess
import sys

import numpy as np
import pytest

from sd.errors import InputError
from sd.metrics.band import main, make_band
from sd.metrics.golden import load_golden
from sd.metrics.score_file import append_line
from tests.training_harness import ROOT


def lines_of(seed, bias=0.0, protocol="a", images=(1600, 3200, 4800)):
    rng = np.random.default_rng(seed)
    return [
        {
            "images_seen": seen, "step": seen // 32, "variant": variant, "guidance_scale": 2.0, "protocol": protocol,
            "fid": 20 - 3 * at + bias + 0.5 * rng.standard_normal(), "clip_score": 0.5 + 0.01 * rng.standard_normal(),
        }
        for at, seen in enumerate(images)
        for variant in ("raw", "ema")
    ]  # fmt: skip


def test_the_band_is_made_and_read_and_judges(tmp_path):
    runs = [lines_of(seed) for seed in range(10)]
    runs[3] = runs[3][:4]  # stopped before the last checkpoint
    for number, lines in enumerate(runs):
        (tmp_path / f"run-{number}/scores").mkdir(parents=True)
        for line in lines:
            append_line(tmp_path / f"run-{number}/scores/scores.jsonl", line)
    command = [sys.executable, "-m", "sd.metrics.band", *sorted(map(str, tmp_path.glob("run-*")))]
    command += ["--guidance_scale", "2", "--output", str(tmp_path / "sound.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "fid, clip_score at 1,600, 3,200 images" in done.stdout
    band = json.loads((tmp_path / "sound.json").read_text())
    values = np.array([[line["fid"] for line in lines if line["variant"] == "ema"][:2] for lines in runs])
    deviation = np.sqrt(((values - values.mean(0)) ** 2).sum(0) / 9)
    assert band["bands"]["fid"]["low"] == pytest.approx(values.mean(0) - 4 * deviation, rel=1e-4)
    assert band["bands"]["fid"]["high"] == pytest.approx(values.mean(0) + 4 * deviation, rel=1e-4)
    golden = load_golden(str(tmp_path / "sound.json"))
    assert (golden.name, golden.variant, golden.guidance_scale) == ("sound", "ema", 2.0)
    for seed in range(100, 120):
        ema = [line for line in lines_of(seed) if line["variant"] == "ema"]
        assert all(set(golden.classify(line).values()) <= {"inside"} for line in ema)
        assert golden.classify(ema[0] | {"fid": ema[0]["fid"] + 5})["fid"] == "above"


def test_runs_that_make_no_band_are_refused():
    runs = [lines_of(seed) for seed in range(3)]
    with pytest.raises(InputError, match="2 runs; expected 3 or more"):
        make_band(runs[:2], "ema", 2.0, 4)
    with pytest.raises(InputError, match="scores of 2 protocols"):
        make_band([*runs, lines_of(4, protocol="b")], "ema", 2.0, 4)
    with pytest.raises(InputError, match=r"no checkpoint .* ema at --guidance_scale 3; scored are ema at 2, raw at 2"):
        make_band(runs, "ema", 3.0, 4)
    with pytest.raises(InputError, match="no checkpoint of which all runs have scores of ema"):
        make_band([*runs, lines_of(4, images=(100,))], "ema", 2.0, 4)


def test_a_wrong_command_line_is_one_line(tmp_path):
    def error_of(*words):
        with pytest.raises(InputError) as raised:
            main([*map(str, words)])
        return str(raised.value)

    runs = [tmp_path / f"run-{number}" for number in range(3)]
    for number, run in enumerate(runs):
        (run / "scores").mkdir(parents=True)
        for line in lines_of(number):
            append_line(run / "scores/scores.jsonl", line)
    assert error_of(*runs, tmp_path / "run-9", "--guidance_scale", 2).startswith(f"{tmp_path}/run-9: no scores in ")
    assert "expected one of ('raw', 'ema')" in error_of(*runs, "--guidance_scale", 2, "--variant", "both")
    assert "expected above 0" in error_of(*runs, "--guidance_scale", 2, "--deviations", 0)
    gone = tmp_path / "gone/band.json"
    assert f"{gone}' cannot be written: No such file" in error_of(*runs, "--guidance_scale", 2, "--output", gone)
