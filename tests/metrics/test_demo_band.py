"""The demo's band, of ten recorded runs that differ in their seed: a sound run lies inside, broken ones do not.

tests/fixtures/demo_scores.json holds what `sh demo/golden.sh NAME [flags]` scored: run -> the training flags, and of
each checkpoint's average [step, images seen, FID, CMMD, CLIP score, EMA distance].
"""

import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sd.metrics.curve import draw_curves
from sd.metrics.golden import load_golden
from sd.metrics.report import WATCHED
from sd.metrics.score_file import read_lines
from tests.training_harness import ROOT

RECORDED = json.loads((ROOT / "tests/fixtures/demo_scores.json").read_text())
DEVIATIONS = 4
SEEDS = [str(seed) for seed in range(1, 11)]
# What gives a broken run away, and from which step on it does.
BROKEN = {"scaled": ("fid", 100), "shuffled": ("clip_score", 50), "zero": ("ema_distance", 50)}


def lines_of(name):
    """The lines of scores.jsonl that a recorded run had, of its average."""
    return [
        {
            "step": step,
            "images_seen": seen,
            "variant": "ema",
            "guidance_scale": 2.0,
            **dict(zip(WATCHED, scores, strict=True)),
        }
        for step, seen, *scores in RECORDED[name]["scores"]
    ]


def outside(lines):
    """{step: names of the measures that lie outside of the band}"""
    golden = load_golden("demo")
    return {
        line["step"]: {name for name, word in golden.classify(line).items() if word != "inside"}
        for line in lines
        if line["variant"] == "ema"
    }


def test_the_band_is_mean_and_deviations_of_the_ten_runs():
    golden = load_golden("demo")
    assert (golden.variant, golden.guidance_scale) == ("ema", 2.0)
    values = np.array(
        [[scores for _, _, *scores in RECORDED[seed]["scores"]] for seed in SEEDS]
    )  # [10, steps, measures]
    mean = values.mean(0)
    deviation = np.sqrt(((values - mean) ** 2).sum(0) / (len(SEEDS) - 1))
    assert golden.images_seen.tolist() == [seen for _, seen, *_ in RECORDED["1"]["scores"]]
    for number, name in enumerate(WATCHED):
        low, high = golden.bands[name]
        # Five digits are kept of each bound.
        assert low == pytest.approx((mean - DEVIATIONS * deviation)[:, number], rel=5e-5)
        assert high == pytest.approx((mean + DEVIATIONS * deviation)[:, number], rel=5e-5)


def test_an_eleventh_sound_run_lies_inside():
    assert set(outside(lines_of("11"))) == {50, 100, 150, 200}
    assert not any(outside(lines_of("11")).values())


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_lies_outside_within_200_steps(name):
    measure, first = BROKEN[name]
    found = outside(lines_of(name))
    assert [step for step, names in found.items() if measure in names] == [s for s in (50, 100, 150, 200) if s >= first]


def test_the_longest_verdict_fits_into_the_picture(tmp_path):
    draw_curves(lines_of("scaled"), tmp_path / "curves.png", load_golden("demo"))
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    assert pixels[:40].min() < 100 and pixels[:40, :4].min() == pixels[:40, -4:].min() == 255


@pytest.mark.slow
def test_runs_of_this_machine_are_judged_alike(tmp_path):
    """What the fixtures recorded, trained and scored anew."""

    def run(name, *flags):
        command = ["sh", str(ROOT / "demo/golden.sh"), name, *map(str, flags), "--seed", "12", "--report_to", "none"]
        environ = os.environ | {"OUT": str(tmp_path)}
        subprocess.run(command, env=environ, capture_output=True, check=True)
        return outside(read_lines(tmp_path / name / "scores/scores.jsonl"))[200]

    assert not run("sound")
    rows = [json.loads(line) for line in (tmp_path / "shapes/shapes.jsonl").read_text().splitlines()]
    captions = [row["caption"] for row in rows]
    random.Random(0).shuffle(captions)
    shuffled = [json.dumps(row | {"caption": caption}) + "\n" for row, caption in zip(rows, captions, strict=True)]
    (tmp_path / "shapes/shuffled.jsonl").write_text("".join(shuffled))
    pack = [sys.executable, "create_pretraining_data.py", "--input_path", str(tmp_path / "shapes/shuffled.jsonl")]
    subprocess.run([*pack, "--output_path", str(tmp_path / "shuffled_data")], cwd=ROOT, check=True)
    file_list = tmp_path / "shuffled_data/filelist/custom_dataset.filelist.list"
    assert BROKEN["shuffled"][0] in run("shuffled", "--file_list", file_list)
    vae = shutil.copytree(ROOT / "demo/tiny_sd/vae", tmp_path / "vae")
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | {"scaling_factor": config["scaling_factor"] * 0.18215}))
    assert BROKEN["scaled"][0] in run("scaled", "--vae_name_or_path", vae)
    assert BROKEN["zero"][0] in run("zero", "--ema_decay", 0)
