"""`--enlarge` in caching: smaller images are cached too, as training from images takes them, and the run must agree."""

import dataclasses
import io
import logging

import numpy as np
import pytest
from PIL import Image

from demo.shapes import caption_of, example
from sd.data.parts.filelist import write_file_lists
from sd.data.parts.moments import find_manifest
from sd.data.parts.part import PartWriter, load_index
from sd.data.parts.record import Record, encode_row
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.dataset import TextImagePair
from sd.data.streaming.sample import short_side
from sd.errors import InputError
from sd.latents.decode import crop_record
from sd.latents.fit import check_fit
from sd.latents.run import precompute
from tests.data_maker import write_lists
from tests.latent_maker import MODEL, options

SIDES = [40] * 6 + [20] * 4


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six pictures of 40 pixels, four of 20, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    with PartWriter(folder / "part-000001.gz") as part:
        for number, side in enumerate(SIDES):
            pixels, labels = example(number, 0, side)
            part.add(encode_row(caption_of(*labels), png(pixels)), side, side)
        part.add(encode_row("nothing", b"no image"), 0, 0)
    return write_lists(folder, (1.0, [folder / "part-000001.gz"]))


@pytest.fixture(scope="module")
def cache(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return precompute(options(images, folder, enlarge=True, crop="centre", check=10, max_bad_fraction=0.2))


def test_every_readable_row_is_cached_and_read(images, cache):
    file_list, report = cache
    assert report["outcomes"] == {"bad: no readable image, as its index says": 1, "cached": 10}
    assert find_manifest(file_list).enlarge
    for enlarge in (False, True):
        assert Catalog(file_list, 32, enlarge=enlarge, max_bad_fraction=0.2).num_usable == 10
    assert Catalog(images, 32, enlarge=True, max_bad_fraction=0.2).num_usable == 10


def test_the_samples_of_the_cache_are_those_of_the_images(images, cache):
    """The same rows in the same order with the same captions, so that a run may change from one to the other."""

    def letters(caption):
        return np.frombuffer(caption.encode().ljust(64), np.uint8)

    def samples(file_list):
        made = TextImagePair(file_list, letters, resolution=32, enlarge=True, max_bad_fraction=0.2)
        taken = [one for one, _ in zip(made, range(20), strict=False)]
        return [(one["position"].tolist(), one["input_ids"].tolist()) for one in taken]

    assert samples(images) == samples(cache[0])


def test_without_the_flag_small_rows_are_left_out_and_never_read(images, tmp_path):
    file_list, report = precompute(options(images, tmp_path, max_bad_fraction=0.2))
    assert report["outcomes"]["cached"] == 6 and report["outcomes"]["filtered: image too small"] == 4
    for enlarge in (False, True):  # their rows hold no picture
        assert Catalog(file_list, 32, enlarge=enlarge, max_bad_fraction=0.2).num_usable == 6
    assert "enlarge" not in find_manifest(file_list).settings()  # caches made before there was the flag go on
    with pytest.raises(InputError, match="other settings: enlarge was False, is True; take another --output_path"):
        precompute(options(images, tmp_path, enlarge=True, max_bad_fraction=0.2))
    index = load_index(tmp_path / "latents/part-000001.gz")
    assert index.widths[6:10].tolist() == [20] * 4


def test_an_enlarged_crop_is_what_pillow_makes_of_it():
    columns, rows = np.meshgrid(np.linspace(30, 220, 20), np.linspace(60, 200, 30))
    slope = np.stack([columns, rows, (columns + rows) / 2], axis=2).astype(np.uint8)  # nothing that a filter overshoots
    crops = crop_record(Record(("a slope",), png(slope)), 0, 0, options("a", "b", enlarge=True, crop="centre"))
    side = short_side(32)
    larger = Image.fromarray(slope).resize((side, side * 30 // 20), Image.Resampling.LANCZOS)
    left, top = (side - 32) // 2, (larger.height - 32) // 2
    wanted = np.asarray(larger.crop((left, top, left + 32, top + 32))).transpose(2, 0, 1).astype(int)
    assert crops.shape == (1, 3, 32, 32)
    assert np.abs(crops[0].astype(int) - wanted).max() <= 1  # where each rounds between its two passes


@pytest.mark.parametrize(
    ("enlarged", "flags", "says"),
    [
        (True, {}, "the cache holds images that are smaller than its resolution too, enlarged; give --enlarge True"),
        (False, {"enlarge": True}, "--enlarge True, but the cache left out .* precompute_latents.py --enlarge"),
        (True, {"enlarge": True}, None),
    ],
)
def test_the_run_must_agree_with_the_cache(cache, tmp_path, enlarged, flags, says):
    from sd.flags.arguments import SDDataArguments, SDModelArguments

    manifest = dataclasses.replace(find_manifest(cache[0]), enlarge=enlarged)
    file_list = write_file_lists(tmp_path, "cache", ["none"], 1)
    (tmp_path / "cache.cache.json").write_bytes(manifest.to_bytes())
    model_args = SDModelArguments(pretrained_model_name_or_path=MODEL)
    data_args = SDDataArguments(file_list=file_list, resolution=32, **flags)
    if says is None:
        check_fit(file_list, model_args, data_args)
        return
    with pytest.raises(InputError, match=says):
        check_fit(file_list, model_args, data_args)


@pytest.mark.parametrize("setting", [{"enlarge": False}, {"aspect_buckets": "32x32", "aspect_group_size": 4}])
def test_caches_of_several_settings_in_one_list_are_refused_in_either_order(cache, tmp_path, setting):
    first = find_manifest(cache[0])
    for name, manifest in (("a", first), ("b", dataclasses.replace(first, **setting))):
        write_file_lists(tmp_path, name, ["none"], 1)
        (tmp_path / f"{name}.cache.json").write_bytes(manifest.to_bytes())
    for names in ("ab", "ba"):
        (tmp_path / "both.list").write_text("".join(f"{tmp_path}/{name}.filelist\n" for name in names))
        with pytest.raises(InputError, match=f"are caches of other settings .*{next(iter(setting))} was"):
            find_manifest(str(tmp_path / "both.list"))


def test_a_run_from_the_cache_is_one_from_the_images(images, cache, tmp_path, monkeypatch):
    from sd.data.streaming import sample
    from sd.flags.command_line import parse_arguments
    from sd.training.run import train
    from sd.training.trainer import StableDiffusionTrainer

    logging.getLogger("sd").setLevel(logging.INFO)
    losses, log = [], StableDiffusionTrainer.log

    def note(self, logs, **kwargs):
        losses.append(logs["loss"])
        return log(self, logs, **kwargs)

    monkeypatch.setattr(StableDiffusionTrainer, "log", note)
    monkeypatch.setattr(sample, "random_crop", lambda picture, side, how, draw: sample.centre_crop(picture, side, how))
    for name, file_list in (("images", images), ("cache", cache[0])):
        flags = [
            "--do_train",
            "--output_dir",
            tmp_path / name,
            "--file_list",
            file_list,
            "--enlarge",
            "--device",
            "cpu",
        ]
        flags += ["--pretrained_model_name_or_path", MODEL, "--unet_name_or_path", "demo/unet_config.json"]
        flags += ["--resolution", 32, "--model_max_length", 16, "--per_device_train_batch_size", 4, "--max_steps", 4]
        flags += ["--logging_steps", 1, "--report_to", "none", "--max_bad_fraction", 0.2, "--disable_tqdm", True]
        train(*parse_arguments([*map(str, flags)], environ={}))
    assert len(losses) == 8
    difference = np.abs(np.subtract(losses[:4], losses[4:]))
    assert 0 < difference.max() < 1e-3  # the cache holds 16 bits: equal to the bit would be suspicious
