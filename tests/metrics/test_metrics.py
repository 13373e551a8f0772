"""`eval.py --metrics`: scores that follow from the pictures on disk, go on after a stop, and tell right from wrong."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from demo.shapes import ALL_LABELS, caption_of, example
from sd.data.filters.parse import FilterError
from sd.data.parts.columns import from_arrow
from sd.data.parts.part import PartWriter
from sd.data.parts.record import encode_row
from sd.errors import InputError, RunError
from sd.metrics.extractors import load_clip, load_fid_extractor
from sd.metrics.measure import fid_warning, measure
from sd.metrics.reference import reference_statistics
from sd.metrics.report import table, verdict, write_report
from sd.metrics.scores import clip_scores, frechet_distance
from sd.processes.pool import run_local
from sd.sampling.files import read_pixels, read_png_text
from tests.data_maker import make_data, write_lists
from tests.metrics.flags import scoring_flags
from tests.tiny import make_tiny_repository

CLIP = str(Path(__file__).resolve().parents[2] / "demo" / "tiny_clip")
CAPTIONS = [caption_of(*labels) for labels in ALL_LABELS]
COUNT = 20


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    make_tiny_repository(folder / "tiny")
    rows = "".join(f"{number}\t{caption}\n" for number, caption in enumerate(CAPTIONS[:COUNT]))
    (folder / "coco.tsv").write_text("image_id\tcaption_en\n" + rows)
    (folder / "real").mkdir()
    for number in range(COUNT):
        Image.fromarray(example(number, 1, 70)[0]).save(folder / "real" / f"{number:02d}.png")
    return folder


def flags(workshop, output, **given):
    given = {
        "metrics": True, "guidance_scales": [1.0, 3.0], "output": str(output),
        "pretrained_model": str(workshop / "tiny"),
    } | given  # fmt: skip
    return scoring_flags(CLIP, workshop / "coco.tsv", workshop / "real", **given)


def run(workshop, output, **given):
    return measure(flags(workshop, output, **given), None, None)


@pytest.fixture(scope="module")
def measured(workshop):
    return workshop / "out", run(workshop, workshop / "out")


def test_scores_are_those_of_the_pictures_on_disk(workshop, measured):
    output, report = measured
    clip = load_clip(CLIP)
    real = np.stack([read_pixels(path) for path in sorted((workshop / "real").iterdir())])
    stored = np.load(output / "fid_reference.npz")
    assert stored["count"] == COUNT and real.shape == (COUNT, 70, 70, 3)
    for result in report["results"]:
        folder = output / f"guidance-{result['guidance_scale']:g}"
        pictures = [read_pixels(path) for path in sorted(folder.iterdir())]
        features = clip.embed_images(pictures).astype(np.float64)
        moments = features.mean(0), np.cov(features, rowvar=False)
        assert result["fid"] == pytest.approx(frechet_distance(*moments, stored["mu"], stored["sigma"]), rel=1e-6)
        expected = clip_scores(features, clip.embed_texts(CAPTIONS[:COUNT])).mean()
        assert result["clip_score"] == pytest.approx(expected, rel=1e-5)
        texts = [read_png_text(path) for path in sorted(folder.iterdir())]
        assert [prompt for prompt, _ in texts] == CAPTIONS[:COUNT]
        assert [settings["seed"] for _, settings in texts] == list(range(42, 42 + COUNT))


def test_the_report_is_json_curve_and_visualdl(measured):
    output, report = measured
    assert json.loads((output / "metrics.json").read_text()) == report
    assert report["pictures"] == COUNT and [r["guidance_scale"] for r in report["results"]] == [1.0, 3.0]
    assert Image.open(output / "curve.png").size > (300, 200) and any((output / "visualdl").iterdir())


def test_a_full_disk_leaves_the_table(measured, tmp_path, monkeypatch, capsys):
    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match=r"metrics.json not written: the disk is full; free some space and run the same"):
        write_report(measured[1], tmp_path)
    assert "guidance scale" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


def test_an_interrupted_run_resumes_to_the_same_scores(workshop, measured, tmp_path, capsys):
    _, report = measured
    run(workshop, tmp_path / "o", num_prompts=7, guidance_scales=[1.0])
    assert fid_warning(7, load_fid_extractor(CLIP).width) in capsys.readouterr().out
    pictures = sorted((tmp_path / "o" / "guidance-1").iterdir())
    times = {path.name: path.stat().st_mtime_ns for path in pictures}
    pictures[3].unlink()
    again = run(workshop, tmp_path / "o")
    assert again["results"] == report["results"]
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "o" / "guidance-1").iterdir()}
    assert len(now) == COUNT and {name for name in times if now[name] != times[name]} == {pictures[3].name}


def test_an_fid_of_no_more_pictures_than_features_is_warned_of():
    assert re.match("FID of 2048 pictures by 2048 features: .* far too high", fid_warning(2048, 2048))
    assert fid_warning(2049, 2048) == ""


def test_several_processes_give_the_same_pictures_and_scores(workshop, measured, tmp_path, monkeypatch):
    output, report = measured
    pools = []

    def counted(function, tasks, *arguments):
        pools.append({task.settings.guidance_scale for task in tasks})
        return run_local(function, tasks, *arguments)

    monkeypatch.setattr("sd.sampling.processes.run_local", counted)
    again = run(workshop, tmp_path / "o", processes=2, guidance_scales=[1.0, 3.0])
    assert pools == [{1.0, 3.0}]  # one pool for all scales: a process loads its models once
    assert again["results"][1] == pytest.approx(report["results"][1])
    for path in (tmp_path / "o" / "guidance-3").iterdir():
        assert path.read_bytes() == (output / "guidance-3" / path.name).read_bytes()


def test_the_demos_clip_separates_right_from_wrong_captions():
    clip = load_clip(CLIP)
    drawings = [example(2_000_000 + number, 7, 64)[0] for number in range(108)]
    captions = [CAPTIONS[(2_000_000 + number) % 36] for number in range(108)]
    images, texts = clip.embed_images(drawings), clip.embed_texts(CAPTIONS)
    nearest = (images / np.linalg.norm(images, axis=1, keepdims=True)) @ (
        texts / np.linalg.norm(texts, axis=1)[:, None]
    ).T
    assert np.mean([CAPTIONS[k] == caption for k, caption in zip(nearest.argmax(1), captions, strict=True)]) > 0.9
    right = clip_scores(images, clip.embed_texts(captions)).mean()
    wrong = clip_scores(images, clip.embed_texts(captions[5:] + captions[:5])).mean()
    assert right > wrong + 0.2


def test_fid_grows_with_damage():
    """Noise of growing strength on real drawings: FID and CLIP score both get worse, each time."""
    clip = load_clip(CLIP)
    drawings = np.stack([example(3_000_000 + number, 7, 32)[0] for number in range(72)])
    texts = clip.embed_texts([CAPTIONS[(3_000_000 + number) % 36] for number in range(72)])
    real = clip.embed_images([example(number, 7, 32)[0] for number in range(72)]).astype(np.float64)
    noise = np.random.default_rng(0).standard_normal(drawings.shape)
    fids, scores = [], []
    for strength in (0, 80, 160, 320):
        damaged = np.clip(drawings + strength * noise, 0, 255).astype(np.uint8)
        features = clip.embed_images(list(damaged)).astype(np.float64)
        moments = [(f.mean(0), np.cov(f, rowvar=False)) for f in (features, real)]
        fids.append(frechet_distance(*moments[0], *moments[1]))
        scores.append(clip_scores(features, texts).mean())
    assert fids == sorted(fids) and scores == sorted(scores, reverse=True)


def test_reference_statistics_are_cached_and_fit(workshop, tmp_path):
    clip = load_fid_extractor(CLIP)
    mean, covariance = reference_statistics(workshop / "real", clip, 32, tmp_path / "kept.npz")
    assert mean.shape == (clip.width,) and covariance.shape == (clip.width, clip.width)
    again = reference_statistics(tmp_path / "kept.npz", clip, 32, tmp_path / "unused.npz")
    assert (again[0] == mean).all() and not (tmp_path / "unused.npz").exists()
    stamp = (tmp_path / "kept.npz").stat().st_mtime_ns
    reference_statistics(workshop / "real", clip, 32, tmp_path / "kept.npz")
    assert (tmp_path / "kept.npz").stat().st_mtime_ns == stamp
    reference_statistics(workshop / "real", clip, 24, tmp_path / "kept.npz")
    assert (tmp_path / "kept.npz").stat().st_mtime_ns != stamp
    stamp = (tmp_path / "kept.npz").stat().st_mtime_ns
    more = tmp_path / "more"
    shutil.copytree(workshop / "real", more)
    reference_statistics(more, clip, 24, tmp_path / "kept.npz")
    shutil.copy(more / "00.png", more / "copy.png")  # one picture more: other statistics
    other, _ = reference_statistics(more, clip, 24, tmp_path / "kept.npz")
    assert (tmp_path / "kept.npz").stat().st_mtime_ns != stamp and not np.array_equal(other, mean)
    assert not list(tmp_path.glob(".*"))
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(InputError, match=f"statistics of 3 features, clip tiny_clip has {clip.width}"):
        reference_statistics(tmp_path / "other.npz", clip, 32, tmp_path / "k")


@pytest.mark.parametrize("shape", [(32, 32), (40, 24)])
def test_pictures_against_a_copy_of_themselves_have_distance_0(workshop, tmp_path, shape):
    """Against a folder and against a list of parts: both sides are prepared alike."""
    clip, (height, width) = load_fid_extractor(CLIP), shape
    pictures = np.random.default_rng(0).integers(0, 256, (16, height, width, 3), np.uint8)
    (tmp_path / "copy").mkdir()
    with PartWriter(tmp_path / "part-000001.gz") as part:
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / "copy" / f"{number}.png")
            data = (tmp_path / "copy" / f"{number}.png").read_bytes()
            part.add(encode_row("a", data), width, height)
    features = clip.embed_images(list(pictures)).astype(np.float64)
    drawn = features.mean(0), np.cov(features, rowvar=False)
    for source in (tmp_path / "copy", write_lists(tmp_path, (1.0, [tmp_path / "part-000001.gz"]))):
        real = reference_statistics(source, clip, shape, tmp_path / "kept.npz")
        assert 0 <= frechet_distance(*drawn, *real) <= 1e-6 * np.trace(drawn[1])


def test_a_filter_chooses_the_pictures_of_a_reference(workshop, tmp_path):
    """The statistics are those of a folder with the chosen pictures alone, and are kept under the filter's rows."""
    clip, paths = load_fid_extractor(CLIP), sorted((workshop / "real").iterdir())[:8]
    (tmp_path / "chosen").mkdir()
    with PartWriter(tmp_path / "part-000001.gz") as part:
        for number, path in enumerate(paths):
            part.add(encode_row("a", path.read_bytes()), 70, 70)
            if number % 2:
                shutil.copy(path, tmp_path / "chosen")
        part.columns = {"odd": from_arrow(pa.array([number % 2 == 1 for number in range(8)]))}
    file_list = write_lists(tmp_path, (1.0, [tmp_path / "part-000001.gz"]))
    expected = reference_statistics(tmp_path / "chosen", clip, 32, tmp_path / "folder.npz")
    for keep in ("kept.npz", "kept.npz"):
        actual = reference_statistics(file_list, clip, 32, tmp_path / keep, "odd")
        np.testing.assert_array_equal(actual[0], expected[0])
        np.testing.assert_array_equal(actual[1], expected[1])
    everything = reference_statistics(file_list, clip, 32, tmp_path / "kept.npz")
    assert not np.array_equal(everything[0], expected[0])


@pytest.mark.parametrize("what", ["a picture of the same size", "the extractor's weights", "a cut file"])
def test_cached_statistics_of_other_content_are_not_used(workshop, tmp_path, what):
    shutil.copytree(workshop / "real", tmp_path / "real")
    shutil.copytree(CLIP, tmp_path / "clip")
    paths = sorted((tmp_path / "real").iterdir())
    longest = max(path.stat().st_size for path in paths)
    for path in paths:  # all of one size; what is behind a PNG is ignored
        path.write_bytes(path.read_bytes().ljust(longest, b"\0"))
    clip, keep = load_fid_extractor(str(tmp_path / "clip")), tmp_path / "kept.npz"
    before, _ = reference_statistics(tmp_path / "real", clip, 32, keep)
    if what == "a picture of the same size":
        paths[0].write_bytes(paths[1].read_bytes())
    elif what == "a cut file":
        keep.write_bytes(keep.read_bytes()[:100])
    else:
        weights = load_file(tmp_path / "clip/model.safetensors")
        name = "visual_projection.weight"
        save_file(weights | {name: weights[name][::-1].copy()}, tmp_path / "clip/model.safetensors", {"format": "np"})
        clip = load_fid_extractor(str(tmp_path / "clip"))
    after, _ = reference_statistics(tmp_path / "real", clip, 32, keep)
    fresh, _ = reference_statistics(tmp_path / "real", clip, 32, tmp_path / "fresh.npz")
    np.testing.assert_array_equal(after, fresh)
    assert np.array_equal(after, before) == (what == "a cut file")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts_file": None}, "no --prompts_file"),
        ({"fid_model": None, "fid_reference": None, "clip_model": None}, "no measure"),
        ({"fid_reference": None}, "--fid_model and --fid_reference go together"),
        ({"data_filter": "a > 5"}, "data_filter='a > 5' chooses rows of a file list, and"),
        (
            {"data_filter": "a > 5", "fid_model": None, "fid_reference": None, "cmmd_reference": None},
            "rows of the file list of --fid_ref",
        ),
        ({"preset": "coco"}, "preset='coco'; expected one of"),
        ({"guidance_scales": [0.0]}, "guidance_scales=0.0; expected at least 1"),
        ({"processes": 0}, "processes=0; expected at least 1"),
        ({"fid_reference": "/nowhere"}, "no such .npz file, folder or file list"),
        ({"clip_model": "demo/tiny_sd/text_encoder"}, "expected a folder of a CLIP model"),
        ({"prompts_column": "words"}, "no column 'words'"),
    ],
)
def test_flags_that_do_not_fit_are_named(workshop, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(Path(CLIP).parent.parent)
    with pytest.raises(InputError) as error:
        run(workshop, tmp_path / "o", **given)
    assert message in str(error.value)


def test_an_unknown_column_is_reported_before_any_model_is_loaded(workshop, tmp_path):
    file_list = make_data(tmp_path / "real", [3])
    given = {"fid_reference": file_list, "cmmd_reference": None, "data_filter": "score > 5"}
    with pytest.raises(FilterError, match="no part has a column 'score'"):
        run(workshop, tmp_path / "o", pretrained_model=str(tmp_path / "nowhere"), **given)


def test_presets_fill_in_what_is_left_open(workshop):
    given = flags(workshop, "o", preset="mlperf", guidance_scales=None, num_prompts=100).with_preset()
    assert (given.height, given.width, given.scheduler, given.scales) == (512, 512, "ddim", [8.0])
    assert given.num_prompts == 100
    given = flags(workshop, "o", preset="reference", guidance_scales=None).with_preset()
    assert given.height == 256 and given.scales == [1.5, 2, 3, 4, 5, 6, 7, 8] and given.seed == 42
    given = flags(workshop, "o", guidance_scales=None).with_preset()
    assert given.scales == [7.5]


def test_the_table_and_the_verdict_show_the_scores():
    results = [
        {"guidance_scale": 3.0, "fid": 95.1234, "clip_score": 0.16},
        {"guidance_scale": 8.0, "fid": 89.5, "clip_score": 0.151},
    ]
    report = {"results": results, "targets": {"fid": 90.0, "clip_score": 0.15}}
    assert table(report).splitlines()[1].split() == ["3", "95.123", "0.1600"]
    assert verdict(report).endswith("met at guidance scale 8")
    assert verdict(report | {"results": results[:1]}).endswith("not met")
    assert verdict(report | {"results": [results[0] | {"fid": None}]}).endswith("it takes both measures")
    assert verdict(report | {"targets": None}) is None
