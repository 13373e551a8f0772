"""Training with aspect-ratio buckets: shapes, exact resume, other ranks, caches, validation, previews, graphs."""

import json
import re

import numpy as np
import pytest

from sd.cpu.convolution import _convolution_calls
from sd.data.streaming import sample
from sd.errors import InputError
from sd.latents.options import CacheOptions
from sd.latents.run import precompute
from sd.training.previews import labelled_sheet
from sd.training.step import StepRunner
from sd.training.trainer import StableDiffusionTrainer
from tests.bucket_maker import BUCKETS, make_pictures, mixed
from tests.training_harness import UNET, Workshop, checksums, weights

BUCKET_CROP = sample.bucket_crop
FLAGS = ["--aspect_buckets", BUCKETS, "--use_ema", "--logging_steps", 1]


class BucketWorkshop(Workshop):
    def __init__(self, folder):
        super().__init__(folder)
        self.file_list = make_pictures(self.folder / "pictures", [mixed(20, 1), mixed(17, 2), mixed(9, 3)])


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return BucketWorkshop(tmp_path_factory.mktemp("buckets"))


@pytest.fixture
def shapes(monkeypatch):
    """(width, height) of the pictures of each micro-batch."""
    seen, forward = [], StableDiffusionTrainer.forward

    def note(self, model, batch):
        key = "pixel_values" if "pixel_values" in batch else "noise"
        seen.append(tuple(batch[key].shape[:1:-1]))
        return forward(self, model, batch)

    monkeypatch.setattr(StableDiffusionTrainer, "forward", note)
    return seen


def test_steps_have_the_shapes_of_the_buckets_and_accumulate_over_them(workshop, info, shapes):
    folder = workshop.train("shapes", *FLAGS, "--gradient_accumulation_steps", 3, "--max_steps", 5)
    assert len(shapes) == 15 and set(shapes) == {(24, 40), (32, 32), (40, 24)}
    state = json.loads((folder / "checkpoint-5/data_state.json").read_text())
    assert state["group_size"] == 4 and state["aspect_buckets"] == BUCKETS and state["samples_seen"] == 60
    counts = dict(re.findall(r"bucket (\d+x\d+): (\d+) rows", info.text))
    assert counts.keys() == {"24x40", "32x32", "40x24"} and sum(map(int, counts.values())) == 46
    assert "groups of 4 samples of one bucket" in info.text


def test_a_number_makes_the_table_and_is_the_same_run_as_its_list(workshop):
    by_number = workshop.train("number", "--aspect_buckets", 3, "--max_steps", 2)
    by_list = workshop.train("list", "--aspect_buckets", "40x24,24x40,32x32", "--max_steps", 2)
    assert checksums(by_number / "checkpoint-2") == checksums(by_list / "checkpoint-2")


def test_resume_is_exact_with_workers_and_with_the_batch_split_otherwise(workshop):
    flags = [*FLAGS, "--save_steps", 3, "--max_steps", 7]
    whole = workshop.train("whole", *flags)
    resumed = workshop.train(
        "resumed", *flags, "--resume_from_checkpoint", whole / "checkpoint-3", "--dataloader_num_workers", 2
    )
    assert checksums(whole / "checkpoint-7") == checksums(resumed / "checkpoint-7")
    split = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2]
    halves = workshop.train("halves", *flags, *split, "--resume_from_checkpoint", whole / "checkpoint-3")
    assert json.loads((halves / "checkpoint-7/data_state.json").read_text())["group_size"] == 4
    difference = np.abs(weights(whole / "checkpoint-7") - weights(halves / "checkpoint-7"))
    assert difference.max() < 1e-4  # float32 sums in another order, seen through four AdamW steps of 1e-3


@pytest.fixture(scope="module")
def one_step(workshop):
    return workshop.train("one_step", *FLAGS, "--max_steps", 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--per_device_train_batch_size", 8], r"1 rank\(s\) x 8 samples = 8 .*group of 4 .*one of 1, 2, 4 \("),
        (["--per_device_train_batch_size", 3], r"= 3 in a micro-batch .*do not divide the group of 4"),
        (["--aspect_group_size", 8], r"--aspect_group_size 8, but .* was dealt in groups of 4; leave it out"),
        (["--aspect_buckets", "32x32"], r"aspect_buckets: '24x40,32x32,40x24' -> '32x32'"),
    ],
)
def test_a_resume_refuses_other_buckets_and_groups(workshop, one_step, flags, message):
    with pytest.raises(InputError, match=message):
        workshop.train(one_step, *FLAGS, *flags, "--max_steps", 2)


def test_a_run_of_squares_does_not_resume_with_buckets_nor_the_reverse(workshop, one_step):
    squares = workshop.train("squares", "--resolution", 24, "--max_steps", 1)
    with pytest.raises(InputError, match="aspect_buckets: None -> '24x24'"):
        workshop.train(squares, "--resolution", 24, "--aspect_buckets", "24x24", "--max_steps", 2)
    assert "group_size" not in json.loads((squares / "checkpoint-1/data_state.json").read_text())
    with pytest.raises(InputError, match="aspect_buckets: '24x40,32x32,40x24' -> None"):
        workshop.train(one_step, "--use_ema", "--resolution", 32, "--enlarge", "--max_steps", 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--aspect_buckets", "32x32,28x36"], "28x36; VAE and UNet need sides that are multiples of 8"),
        (["--aspect_buckets", "128x128"], "16 times the area of --resolution 32"),
        (["--aspect_buckets", "40x40,48x40"], "none of 46 rows is as large as one of the buckets 40x40,48x40"),
        (["--aspect_group_size", 4], "aspect_group_size=4 needs --aspect_buckets"),
        (["--aspect_buckets", 3, "--aspect_group_size", 6], "do not divide the group of 6"),
    ],
)
def test_impossible_buckets_are_refused_before_a_step(workshop, flags, message):
    with pytest.raises(InputError, match=message):
        workshop.train("refused", *flags)


def test_small_buckets_are_merged_and_reported(workshop, info, shapes):
    flags = ["--aspect_buckets", BUCKETS, "--aspect_group_size", 12, "--max_steps", 3]
    workshop.train("merged", *flags)
    line = next(message for message in info.messages if "they go to" in message)
    merged = re.match(r"bucket (\d+)x(\d+) has \d+ rows, fewer than a group of 12 samples: they go to \d+x\d+", line)
    assert len(set(shapes)) == 1 and tuple(map(int, merged.groups())) not in shapes  # a group is three micro-batches


@pytest.fixture
def centre_crops(monkeypatch):
    """Images are cropped where those of the cache were."""
    monkeypatch.setattr(sample, "bucket_crop", lambda picture, size, how, draw=None: BUCKET_CROP(picture, size, how))


def test_training_from_a_cache_is_training_from_images(workshop, centre_crops, shapes, monkeypatch):
    losses, run_step = {}, StepRunner.run
    models = str(workshop.folder / "models")
    cache, report = precompute(
        CacheOptions(
            file_list=workshop.file_list,
            output_path=str(workshop.folder / "cache"),
            pretrained_model_name_or_path=models,
            resolution=32,
            aspect_buckets="3",
            crop="centre",
            num_workers=0,
            cache_text=True,
            device="cpu",
        )
    )
    assert report["outcomes"] == {"cached": 46}
    with pytest.raises(InputError, match=f"made with buckets; give --aspect_buckets {BUCKETS}"):
        workshop.train("from_cache", "--file_list", cache)
    with pytest.raises(InputError, match=r"aspect_buckets was 24x40,32x32,40x24, is 32x32"):
        workshop.train("from_cache", "--file_list", cache, "--aspect_buckets", "32x32")
    for name, file_list in (("images", workshop.file_list), ("cache", cache)):
        reported = losses[name] = []
        monkeypatch.setattr(
            StepRunner, "run", lambda *a, reported=reported: reported.append(run_step(*a)) or reported[-1]
        )
        flags = ["--file_list", file_list, "--eval_file_list", file_list, "--eval_steps", 4, "--max_steps", 8]
        workshop.train(f"from_{name}", *FLAGS, *flags)
    difference = np.abs(np.subtract(*([outcome.loss for outcome in reported] for reported in losses.values())))
    assert len(difference) == 8 and 0 < difference.max() < 1e-3  # the cache holds 16 bits
    half = len(shapes) // 2
    assert [(w * 4, h * 4) for w, h in shapes[half:]] == shapes[:half] and len(set(shapes[:half])) > 1


def test_a_cache_with_a_bucket_below_a_group_is_refused_with_the_remedy(workshop):
    options = {"pretrained_model_name_or_path": str(workshop.folder / "models"), "resolution": 32, "num_workers": 0}
    options |= {"file_list": workshop.file_list, "aspect_buckets": BUCKETS, "device": "cpu"}
    plain, _ = precompute(CacheOptions(output_path=str(workshop.folder / "cache_1"), **options))
    flags = ["--aspect_buckets", BUCKETS, "--per_device_train_batch_size", 12, "--max_steps", 1]
    with pytest.raises(
        InputError, match=r"bucket \d+x\d+ holds \d rows, fewer than a group of 12.*--aspect_group_size 12"
    ):
        workshop.train("small_cache", "--file_list", plain, *flags)
    merged, _ = precompute(CacheOptions(output_path=str(workshop.folder / "cache_12"), aspect_group_size=12, **options))
    workshop.train("merged_cache", "--file_list", merged, *flags)


def test_validation_loss_by_bucket_counts_each_record_once(workshop, info):
    flags = ["--eval_file_list", workshop.file_list, "--eval_steps", 2, "--max_steps", 2]
    workshop.train("validated", *FLAGS, *flags, "--per_device_eval_batch_size", 5)
    line = next(message for message in info.messages if "eval_loss" in message)
    assert "over 46 records" in line
    loss = float(re.search(r"eval_loss ([\d.]+)", line)[1])
    of_buckets = {size: float(value) for size, value in re.findall(r"(\d+x\d+) ([\d.]+)", line)}
    counts = {size: int(n) for size, n in re.findall(r"bucket (\d+x\d+): (\d+) rows", info.text)}
    assert of_buckets.keys() == counts.keys()
    mean = sum(counts[size] * value for size, value in of_buckets.items()) / 46
    assert loss == pytest.approx(mean, rel=1e-5)  # seven digits are told


def test_previews_have_the_shapes_of_their_records(workshop, tmp_path, monkeypatch):
    from sd.training import previews
    from tests.training.test_visible import read_log

    sheets = {}
    monkeypatch.setattr(
        previews,
        "labelled_sheet",
        lambda images, captions, title=None, columns=None: (
            sheets.setdefault(title, [image.shape for image in images])
            and labelled_sheet(images, captions, title, columns)
        ),
    )
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    flags = ["--report_to", "visualdl", "--image_logging_steps", 2, "--num_inference_steps", 1, "--max_steps", 2]
    folder = workshop.train("shown", *FLAGS, *flags, "--logging_steps", 2, "--validation_prompts", prompts)
    assert {"reconstruction", "validation", "ddim-samples-1.0"} <= set(read_log(folder)["image"])
    records = sheets["guidance scale 1.0"]
    assert len(records) == 4 and set(records) <= {(40, 24, 3), (32, 32, 3), (24, 40, 3)}
    assert sheets[None] == records * 2


@pytest.mark.slow
def test_a_static_graph_takes_every_shape(workshop, shapes):
    flags = ["--max_steps", 6, "--logging_steps", 1, "--aspect_buckets", BUCKETS]
    plain = workshop.train("dynamic", *flags)
    static = workshop.train("static", *flags, "--to_static", True)
    assert len(set(shapes)) > 1
    moved = np.abs(weights(plain / "checkpoint-6", UNET) - weights(static / "checkpoint-6", UNET))
    assert moved.mean() < 1e-4  # AdamW turns rounding near zero gradients into whole steps of 1e-3


def test_primitives_are_made_once_a_shape(workshop):
    flags = ["--aspect_buckets", BUCKETS, "--max_steps", 12]
    workshop.train("primitives", *flags)
    made = _convolution_calls.cache_info().currsize
    workshop.train("primitives_again", *flags)
    assert _convolution_calls.cache_info().currsize == made
