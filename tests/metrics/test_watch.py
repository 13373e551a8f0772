"""`eval.py --watch`: each checkpoint scored once, over kills and restarts, without a touch of the run's own files."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.shapes import example
from sd.errors import ArgumentError, InputError, RunError
from sd.metrics import score_file, watch
from sd.metrics.extractors import load_clip
from sd.metrics.golden import load_golden
from sd.metrics.scores import cmmd
from sd.sampling.files import read_pixels
from tests.holding import Hold
from tests.metrics.flags import scoring_flags
from tests.metrics.test_metrics import CAPTIONS, CLIP
from tests.training_harness import EMA, ROOT, Workshop, weights


def cmmd_by_definition(a, b):
    """Squared MMD by its double sums over pairs, in float64 (arXiv 2401.09603, eq. 4 with the diagonal)."""
    a, b = ([row / np.sqrt((row**2).sum()) for row in np.asarray(side, np.float64)] for side in (a, b))

    def mean_kernel(left, right):
        return np.mean([[np.exp(-((x - y) ** 2).sum() / (2 * 10.0**2)) for y in right] for x in left])

    return 1000 * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))


@pytest.mark.parametrize(("seed", "count", "others", "shift"), [(0, 7, 5, 1.0), (1, 30, 41, 0.1), (2, 1, 1, 3.0)])
def test_cmmd_is_that_of_its_definition(monkeypatch, seed, count, others, shift):
    monkeypatch.setattr("sd.metrics.scores._KERNEL_ROWS", 4)
    rng = np.random.default_rng(seed)
    a = (5 * rng.standard_normal((count, 16))).astype(np.float32)
    b = (5 * rng.standard_normal((others, 16)) + shift).astype(np.float32)
    # The definition subtracts means near 1000: a few units of the 2^-53 * 1000 that are lost there.
    assert cmmd(a, b) == pytest.approx(cmmd_by_definition(a, b), rel=1e-9, abs=1e-11)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="CMMD of no pictures"):
        cmmd(a, b[:0])


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("watch"))


@pytest.fixture(scope="module")
def run(workshop):
    """A run of four steps with checkpoints 2 and 4, and its average; real pictures beside it."""
    output_dir = workshop.train("run", "--save_steps", 2, "--use_ema")
    (workshop.folder / "prompts.txt").write_text("\n".join(CAPTIONS[:4]) + "\n")
    (workshop.folder / "real").mkdir()
    for number in range(6):
        Image.fromarray(example(number, 1, 32)[0]).save(workshop.folder / "real" / f"{number}.png")
    return output_dir


def flags(workshop, output_dir, **given):
    watching = {"watch": str(output_dir), "poll_seconds": 0.01}
    return scoring_flags(CLIP, workshop.folder / "prompts.txt", workshop.folder / "real", **watching | given)


def files(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != "scores"
    }


@pytest.fixture(scope="module")
def watched(workshop, run):
    before = files(run)
    watch.watch(flags(workshop, run))
    assert files(run) == before  # nothing of the run is touched
    return run / "scores"


def test_each_checkpoint_is_scored_raw_and_averaged(workshop, watched):
    lines = score_file.read_lines(watched / "scores.jsonl")
    assert [(line["step"], line["images_seen"], line["variant"]) for line in lines] == [
        (2, 8, "raw"),
        (2, 8, "ema"),
        (4, 16, "raw"),
        (4, 16, "ema"),
    ]
    clip = load_clip(CLIP)
    real = clip.embed_images([read_pixels(path) for path in sorted((workshop.folder / "real").iterdir())])
    for line in lines:
        folder = watched / f"checkpoint-{line['step']}-{line['variant']}" / "guidance-2"
        features = clip.embed_images([read_pixels(path) for path in sorted(folder.iterdir())])
        assert line["cmmd"] == pytest.approx(cmmd_by_definition(features, real), rel=1e-5)
        assert line["fid"] > 0 and 0 <= line["clip_score"] <= 1
    assert Image.open(watched / "curves.png").width > 1000 and list((watched / "visualdl").iterdir())


def test_what_is_scored_is_not_scored_again_and_a_cut_line_is(workshop, watched, tmp_path, monkeypatch):
    run = shutil.copytree(watched.parent, tmp_path / "run")
    path = run / "scores/scores.jsonl"
    whole = path.read_bytes()
    scored = []
    real = watch.measure

    def counted(given, unet, variant, keep):
        scored.append(given.output)
        return real(given, unet, variant, keep)

    monkeypatch.setattr(watch, "measure", counted)
    watch.watch(flags(workshop, run))
    assert scored == [] and path.read_bytes() == whole
    path.write_bytes(whole[:-30])  # a kill in the middle of the last line
    watch.watch(flags(workshop, run))
    assert [Path(name).name for name in scored] == ["checkpoint-4-ema"]
    assert score_file.read_lines(path) == [json.loads(line) for line in whole.splitlines()]
    watch.watch(flags(workshop, run, num_inference_steps=1, every=4))  # another protocol: its own lines
    assert [Path(name).name for name in scored[1:]] == ["checkpoint-4-raw", "checkpoint-4-ema"]


def test_checkpoints_that_are_damaged_or_removed_are_left_out(workshop, watched, tmp_path, monkeypatch, caplog):
    run = shutil.copytree(watched.parent, tmp_path / "run", ignore=shutil.ignore_patterns("scores"))
    (run / "checkpoint-2/damaged.txt").write_text("stepped back over")
    real = watch.measure

    def slow(given, unet, variant, keep):
        if variant == "ema":  # the trainer removes it in between
            shutil.rmtree(unet)
        return real(given, unet, variant, keep)

    monkeypatch.setattr(watch, "measure", slow)
    monkeypatch.setattr(watch, "_finished", lambda run: True)
    watch.watch(flags(workshop, run))
    lines = score_file.read_lines(run / "scores/scores.jsonl")
    assert [(line["step"], line["variant"]) for line in lines] == [(4, "raw")]
    assert "checkpoint-4 was removed before it was loaded; left out" in caplog.text


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "scores.jsonl"
    score_file.append_line(path, {"step": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    with pytest.raises(RunError, match="the disk is full"):
        score_file.append_line(path, {"step": 2})
    monkeypatch.undo()
    score_file.append_line(path, {"step": 3, "prompt": "圆"})
    assert path.read_text() == '{"step": 1}\n{"step": 3, "prompt": "圆"}\n'


def test_the_published_band_and_its_sentence():
    golden = load_golden("mlperf_sd2")
    published = {0.5: (245, 0.06), 1.0: (160, 0.10), 1.5: (112, 0.13), 2.0: (98, 0.15), 2.6: (84, 0.165)}
    published |= {4.1: (62, 0.19), 5.1: (55, 0.207)}
    for millions, (fid, clip_score) in published.items():
        line = {"images_seen": int(millions * 1e6), "fid": fid, "clip_score": clip_score}
        assert golden.classify(line) == {"fid": "inside", "clip_score": "inside"}
        assert golden.classify(line | {"fid": fid * 1.2})["fid"] == "above"
        assert golden.classify(line | {"clip_score": clip_score - 0.02})["clip_score"] == "below"
    between = {"images_seen": 1_250_000, "fid": (160 + 112) / 2, "clip_score": 0.14}
    assert golden.sentence(between) == (
        "golden mlperf_sd2 at 1,250,000 images: FID 136 is inside 115.6 to 156.4; CLIP score 0.14 is above 0.1 to 0.13"
    )
    assert "no verdict, the band covers 500,000 to 5,100,000" in golden.sentence({"images_seen": 100, "fid": 1.0})


def test_bands_that_cannot_be_used_are_named(tmp_path, workshop):
    with pytest.raises(ArgumentError, match=r"expected one of .*mlperf_sd2"):
        load_golden("mlperf")
    for text in ("{", '{"name": "a"}', '{"name": "a", "about": "", "images_seen": [2, 1], "bands": {}}'):
        (tmp_path / "band.json").write_text(text)
        with pytest.raises(InputError, match=r"band\.json: "):
            load_golden(str(tmp_path / "band.json"))
    with pytest.raises(ArgumentError, match="no such folder"):
        watch.watch(flags(workshop, tmp_path / "none"))


def test_flags_of_scores_are_checked_before_a_checkpoint_is_there(workshop, tmp_path, monkeypatch):
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: pytest.fail("it waits for a checkpoint"))
    for wrong, says in [
        ({"prompts_file": None}, "no --prompts_file"),
        ({"fid_reference": None}, "--fid_model and --fid_reference go together"),
        ({"clip_model": None, "fid_model": None, "fid_reference": None, "cmmd_reference": None}, "no measure"),
    ]:
        with pytest.raises(InputError, match=says):
            watch.watch(flags(workshop, tmp_path, **wrong))


def test_what_it_waits_for_is_said_once(workshop, tmp_path, monkeypatch, caplog):
    naps = iter([None, None, KeyboardInterrupt])

    def nap(seconds):
        if (ending := next(naps)) is not None:
            raise ending

    monkeypatch.setattr(watch.time, "sleep", nap)
    caplog.set_level("INFO", "sd")
    with pytest.raises(KeyboardInterrupt):
        watch.watch(flags(workshop, tmp_path))
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: no checkpoint yet; waiting for the next checkpoint, Ctrl-C ends it"
    ]


@pytest.mark.parametrize("decay", [0, 0.9])
def test_the_distance_of_the_average_says_whether_it_averages(workshop, tmp_path, decay):
    """Decay 0 leaves a copy of the weights up to rounding, which no score of pictures tells from an average."""
    checkpoint = workshop.train(tmp_path / "run", "--use_ema", "--ema_decay", decay) / "checkpoint-4"
    raw = weights(checkpoint).astype(np.float64)
    expected = np.linalg.norm(weights(checkpoint, EMA) - raw) / np.linalg.norm(raw)
    distance = watch.ema_distance(checkpoint)
    assert distance == pytest.approx(expected, rel=1e-9)  # sums of 10^5 squares in float64, in another order
    note = watch.average_note([{"step": 4, "variant": "ema", "ema_distance": distance}, {"step": 4, "variant": "raw"}])
    assert (note is not None and "step 4: ema is a copy of raw" in note) == (decay == 0)
    assert watch.average_note([{"step": 4, "variant": "raw"}]) is None


def test_killed_in_the_middle_of_scoring_it_goes_on_with_the_next_picture(workshop, watched, tmp_path):
    run = shutil.copytree(watched.parent, tmp_path / "run", ignore=shutil.ignore_patterns("scores"))
    command = [sys.executable, "eval.py"]
    given = flags(workshop, run)
    for field in fields(given):
        if (value := getattr(given, field.name)) != field.default:
            command += [f"--{field.name}", *map(str, value if isinstance(value, list) else [value])]
    hold = Hold(tmp_path / "hold", "pictures", 6)  # the second of the average of checkpoint 2, after four of raw
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | hold.variables(), stdout=log, stderr=subprocess.STDOUT
        )
    hold.wait(first, (tmp_path / "log").read_text)
    first.kill()
    first.wait()
    there = {path: path.stat().st_mtime_ns for path in (run / "scores").glob("checkpoint-*/guidance-2/*.png")}
    assert len(there) == 6
    assert [(line["step"], line["variant"]) for line in score_file.read_lines(run / "scores/scores.jsonl")] == [
        (2, "raw")
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "step 4, ema: FID" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in there} == there  # none is drawn again
    keys = ("step", "images_seen", "variant", "weights", "ema_distance", "fid", "cmmd", "clip_score")
    killed, whole = (
        [[line.get(key) for key in keys] for line in score_file.read_lines(folder / "scores/scores.jsonl")]
        for folder in (run, watched.parent)
    )
    assert killed == whole
