"""What a run shows: log line, benchmark line, VisualDL scalars, histograms and images, validation; on rank 0 alone."""

import logging
import re

import numpy as np
import pytest
from PIL import Image

from sd.errors import InputError, RunError
from sd.metrics import score_file
from sd.sampling.prompts import read_prompts
from sd.training import callbacks, report
from sd.training.report import append_history, draw_report, read_history
from sd.training.validation import describe_metrics, evaluate_loss
from tests.training_harness import checksums, weights


def read_log(output_dir):
    """{kind: {tag: [records]}} of the VisualDL log below output_dir."""
    from visualdl import LogReader

    (path,) = output_dir.glob("runs/*/vdlrecords.*.log")
    reader = LogReader(file_path=str(path))
    return {kind: {tag: reader.get_data(kind, tag) for tag in tags} for kind, tags in reader.get_tags().items() if tags}


@pytest.fixture(scope="module")
def shown(workshop):
    (workshop.folder / "prompts.txt").write_text("a red circle\n\n a blue square \n")
    flags = ["--report_to", "visualdl", "--image_logging_steps", 2, "--num_inference_steps", 2, "--use_ema"]
    flags += ["--validation_prompts", workshop.folder / "prompts.txt", "--train_text_encoder"]
    flags += ["--text_encoder_learning_rate", 1e-4, "--eval_file_list", workshop.file_list, "--eval_steps", 2]
    return workshop.train("shown", *flags)


def test_visualdl_holds_scalars_at_every_log(shown):
    scalars = read_log(shown)["scalar"]
    for name in ("loss", "learning_rate", "samples_per_second", "data_wait_percent", "memory_gb"):
        records = scalars[f"train/{name}"]
        assert [record.id for record in records] == [2, 4]
        assert all(np.isfinite(record.value) and record.value >= 0 for record in records)
    assert [record.value for record in scalars["train/learning_rate"]] == pytest.approx([1e-3, 1e-3])
    assert [record.value for record in scalars["train/learning_rate_text_encoder"]] == pytest.approx([1e-4, 1e-4])
    assert [record.id for record in scalars["validation/eval_loss"]] == [2, 4]
    assert min(tag.split("/")[0] for tag in scalars) == "train"  # VisualDL sorts the groups


def test_visualdl_holds_the_images_of_the_reference_and_the_validation_prompts(shown):
    images = read_log(shown)["image"]
    assert set(images) == {"reconstruction", "ddim-samples-1.0", "ddim-samples-7.5", "validation"}
    assert all([record.id for record in records] == [2, 4] for records in images.values())


def test_visualdl_holds_the_loss_by_timestep(shown):
    histograms = read_log(shown)["histogram"]
    assert histograms and all(re.fullmatch(r"train_loss_by_timestep/\d{4}-\d{4}", tag) for tag in histograms)
    counted = sum(sum(record.histogram.hist) for records in histograms.values() for record in records)
    assert counted == 16  # four steps of four samples


def test_a_resumed_run_is_one_curve_of_one_run(workshop):
    flags = ["--report_to", "visualdl", "--image_logging_steps", -1]
    output_dir = workshop.train("curve", *flags, "--max_steps", 2)
    workshop.train("curve", *flags, "--max_steps", 4)
    scalars = read_log(output_dir)["scalar"]  # of the one file that there is
    assert [record.id for record in scalars["train/loss"]] == [2, 4]
    assert next(iter(sorted({tag.split("/")[0] for tag in scalars}))) == "train"  # VisualDL sorts the groups
    assert next(tag for tag in scalars if tag.startswith("train/")) == "train/loss"
    (output_dir / "scores").mkdir()
    line = {"variant": "ema", "guidance_scale": 2.0, "protocol": "a", "fid": 9.0}
    for step in (2, 4):
        score_file.append_line(output_dir / "scores/scores.jsonl", {"step": step, "images_seen": 4 * step, **line})
    append_history(output_dir, {"global_step": 4, "eval_loss": 0.5, "eval_loss_source_laion": 0.4})
    assert [line["global_step"] for line in read_history(output_dir)] == [2, 4]  # a validation is no log
    height = Image.open(output_dir / "report.png").height
    assert Image.open(draw_report(output_dir)).height > height  # it has the scores too
    workshop.train("curve", *flags, "--max_steps", 2, "--overwrite_output_dir")
    assert len([*output_dir.glob("runs/*/vdlrecords.*.log")]) == 2  # another run
    assert [line["global_step"] for line in read_history(output_dir)] == [2]  # not a page of the two


def test_the_history_of_steps_that_were_gone_back_over_does_not_count(tmp_path):
    def log(step, **values):
        append_history(tmp_path, {"global_step": step, **values})

    for step in (2, 4, 6, 8):
        log(step, loss=1.0)
        log(step, eval_loss=1.0)
    log(5, loss=2.0)  # from checkpoint-4, and another logging_steps
    log(10, loss=2.0)
    log(10, loss=3.0)  # killed before checkpoint-10
    assert [(line["global_step"], line["loss"]) for line in read_history(tmp_path)] == [(2, 1), (4, 1), (5, 2), (10, 3)]
    assert [line["global_step"] for line in report._by_step(tmp_path, "eval_loss")] == [2, 4]


@pytest.mark.defect(17)
def test_defect_17_rank_0_alone_draws_and_always_the_same_captions(workshop, monkeypatch):
    from sd.training import previews

    requested = []

    def noted(*arguments, seeds, **settings):
        requested.append((arguments[1], list(seeds), settings["guidance_scale"]))
        return np.zeros([len(arguments[1]), 32, 32, 3], np.uint8)

    monkeypatch.setattr(previews, "draw_images", noted)
    workshop.train("same", "--report_to", "visualdl", "--image_logging_steps", 2)
    captions = requested[0][0]
    assert len(set(captions)) == 4 and all(re.fullmatch(r"part \d row \d+", caption) for caption in captions)
    assert requested == [(captions, [0, 1, 2, 3], scale) for _ in range(2) for scale in (1.0, 7.5)]

    class Arguments:
        process_index, disable_tqdm, benchmark, report_to, profiler_options = 1, False, True, ["visualdl"], None

    assert callbacks.make_callbacks(Arguments, trainer=None) == []


def test_pictures_that_cannot_be_drawn_do_not_end_a_run(workshop, monkeypatch, info):
    from sd.training import previews

    def overflowing(*arguments, seeds, guidance_scale, **settings):
        if guidance_scale > 1:
            raise RunError("a picture has NaN pixels")
        return np.zeros([4, 32, 32, 3], np.uint8)

    monkeypatch.setattr(previews, "draw_images", overflowing)
    output_dir = workshop.train("nan", "--report_to", "visualdl", "--image_logging_steps", 2, "--max_steps", 2)
    assert set(read_log(output_dir)["image"]) == {"reconstruction", "ddim-samples-1.0"}
    assert "ddim-samples-7.5 was not drawn: a picture has NaN pixels" in info.messages


def test_what_is_shown_changes_nothing_that_is_trained(workshop, monkeypatch):
    monkeypatch.setenv("WANDB_DISABLED", "1")  # as if it were not installed
    quiet = workshop.train("quiet", "--use_ema")
    flags = ["--report_to", "visualdl", "wandb", "--image_logging_steps", 2, "--num_inference_steps", 1, "--benchmark"]
    seen = workshop.train("seen", "--use_ema", *flags, "--disable_tqdm", False, "--eval_file_list", workshop.file_list)
    assert checksums(quiet / "checkpoint-4") == checksums(seen / "checkpoint-4")


def test_the_log_line_and_the_benchmark_line(workshop, info):
    workshop.train("lines", "--benchmark", "--gradient_accumulation_steps", 3, "--logging_steps", 4)
    lines = [record.getMessage() for record in info.records]
    (line,) = [line for line in lines if line.startswith("step 4/4 | ")]
    assert re.fullmatch(
        r"step 4/4 \| loss [\d.]+ \| lr 0\.001 \| [\d.]+ images/s \| waiting for data [\d.]+% \| memory [\d.]+ GB \| "
        r"left 00:00",
        line,
    )
    (line,) = [line for line in lines if line.startswith("global step 4 / 4")]
    numbers = dict(re.findall(r"(\w+): ([\d.]+)", line))
    assert float(numbers["avg_samples"]) == pytest.approx(12)  # three micro-batches of four
    assert float(numbers["ips"]) == pytest.approx(12 / float(numbers["avg_batch_cost"]), rel=1e-3)


def test_training_reports_truncated_captions_before_the_first_step(workshop, info):
    workshop.train("cut", "--model_max_length", 8, "--max_steps", 1)
    (line,) = [line for line in info.messages if "captions read" in line]
    assert "100% of 33 captions read are longer than the 8 tokens of --model_max_length" in line
    lists = [line for line in info.messages if "usable at 32 px" in line]
    assert len(lists) == 1  # and the list is read once


def test_the_validation_loss_is_the_same_for_the_same_weights(workshop, info):
    flags = ["--eval_file_list", workshop.file_list, "--eval_steps", 2]
    for name, more in (("eval_1", []), ("eval_2", ["--per_device_eval_batch_size", 3])):
        workshop.train(name, *flags, *more)
    reported = [record.getMessage() for record in info.records if "eval_loss" in record.getMessage()]
    assert len(reported) == 4 and reported[0].startswith("step 2: ") and reported[1].startswith("step 4: ")
    numbers = [[float(text) for text in re.findall(r"(?:eval_loss|\d{4}-\d{4}) ([\d.]+)", line)] for line in reported]
    assert numbers[0] == pytest.approx(numbers[2], rel=1e-6) and numbers[1] == pytest.approx(numbers[3], rel=1e-6)
    assert numbers[0] != numbers[1] and len(numbers[0]) > 1
    assert reported[0].startswith("step 2: eval_loss ") and " over 33 records | timesteps " in reported[0]


def test_the_validation_loss_by_band_is_the_mean_of_its_records():
    class Model:
        def eval(self):
            pass

        def __call__(self, timestep, value):
            return {"sample_loss": value}

    timesteps = np.array([0, 249, 250, 999, 999])
    values = np.array([1.0, 3.0, 10.0, 5.0, 8.0], np.float32)
    records = [{"timestep": timestep, "value": value} for timestep, value in zip(timesteps, values, strict=True)]

    def collate(samples):
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}

    whole = evaluate_loss(Model(), records, collate, 2)
    assert whole == {
        "eval_loss": pytest.approx(5.4),
        "eval_records": 5,
        "eval_loss_0000-0249": 2,
        "eval_loss_0250-0499": 10,
        "eval_loss_0750-0999": 6.5,
    }
    half = evaluate_loss(Model(), records[1::2], collate, 8, prefix="half")
    assert half["half_loss"] == pytest.approx(4) and half["half_records"] == 2


def test_the_validation_loss_by_source_is_the_mean_of_its_records():
    class Model:
        def eval(self):
            pass

        def __call__(self, timestep, value, position):
            return {"sample_loss": value}

    class Catalog:
        names = ("a/laion.filelist.list", "b/coco.filelist", "c/coco.filelist", "empty")

        def source_of(self, part):
            return (0, 0, 1, 2)[part]

    class Records(list):
        catalog = Catalog()

    places = np.array([[0, 1], [1, 7], [2, 3], [3, 0], [3, 2]])
    values = np.array([1.0, 4.0, 10.0, 5.0, 8.0], np.float32)
    records = Records(
        {"timestep": np.int64(3), "value": value, "position": place}
        for value, place in zip(values, places, strict=True)
    )

    def collate(samples):
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}

    metrics = evaluate_loss(Model(), records, collate, 2)
    by_source = {name: value for name, value in metrics.items() if "_source_" in name}
    expected = {"laion": (1 + 4) / 2, "coco": 10, "coco-2": (5 + 8) / 2}
    assert by_source == {f"eval_loss_source_{name}": pytest.approx(value) for name, value in expected.items()}
    assert describe_metrics(metrics).endswith(" | timesteps 0000-0249 5.6 | sources laion 2.5 | coco 10 | coco-2 6.5")


def test_the_average_is_what_is_judged(workshop, info):
    workshop.train("raw", "--eval_file_list", workshop.file_list, "--eval_steps", 4)
    frozen = ["--use_ema", "--ema_decay", 0, "--eval_file_list", workshop.file_list, "--eval_steps", 4]
    workshop.train("raw_as_average", *frozen)
    output_dir = workshop.train("average", *frozen, "--ema_decay", 0.9999, "--learning_rate", 0.05)
    reported = [record.getMessage() for record in info.records if "eval_loss" in record.getMessage()]
    losses = [float(re.search(r"eval_loss ([\d.]+)", line)[1]) for line in reported]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # a decay of 0 averages nothing
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)
    assert np.isfinite(weights(output_dir / "checkpoint-4")).all()


@pytest.mark.parametrize("handler", ["wandb", "tensorboard"])
def test_a_log_handler_that_is_not_installed_costs_a_line_not_the_run(handler, monkeypatch, caplog):
    class Arguments:
        process_index, disable_tqdm, benchmark, report_to, profiler_options = 0, True, False, [handler], None

    monkeypatch.setattr(f"paddlenlp.trainer.integrations.is_{handler.replace('board', 'boardX')}_available", bool)
    caplog.set_level(logging.WARNING, logger="sd")
    made = callbacks.make_callbacks(Arguments, trainer=None)
    assert [type(callback).__name__ for callback in made] == ["LogLine", "Report"]
    assert re.search(rf"--report_to {handler}: .*installed.*; the run continues without it", caplog.text)


def test_unreadable_prompt_files_are_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "blank.txt").write_text("\n  \n")
    with pytest.raises(InputError, match="holds no prompt"):
        read_prompts(tmp_path / "blank.txt")
    (tmp_path / "windows.txt").write_bytes("\ufeff红色的圆\r\n\r\na cat\u2028b \r\n".encode("utf-16-le"))
    assert read_prompts(tmp_path / "windows.txt") == ["红色的圆", "a cat\u2028b"]
