"""Wrong input for training ends at once with one line that says what, where and what to do."""

import json
import os
import re
import subprocess
import sys

import pytest

from sd.errors import InputError, RunError
from tests.data_maker import write_lists
from tests.training_harness import SCRIPT


def refused(workshop, message, *flags, error=InputError):
    with pytest.raises(error, match=message) as caught:
        workshop.train("refused", *flags)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not list((workshop.folder / "refused").glob("checkpoint-*"))


def config(workshop, name, **changes):
    values = json.loads((workshop.folder / "models/unet_config.json").read_text()) | changes
    path = workshop.folder / f"{name}.json"
    path.write_text(json.dumps(values))
    return path


def test_without_do_train_there_is_nothing_to_do(workshop):
    from sd.flags.command_line import parse_arguments
    from sd.training.run import train

    with pytest.raises(InputError, match="give --do_train"):
        train(*parse_arguments(workshop.flags("nothing")[1:], environ={}))


def test_missing_and_empty_file_lists_are_refused_by_name(workshop, tmp_path):
    refused(workshop, r"none\.filelist\.list", "--file_list", tmp_path / "none.filelist.list")
    (tmp_path / "empty.list").write_text("")
    refused(workshop, r"empty\.list", "--file_list", tmp_path / "empty.list")
    missing = write_lists(tmp_path, (1.0, [tmp_path / "part-000001.gz"]))
    refused(workshop, r"part-000001\.gz", "--file_list", missing)


def test_images_smaller_than_the_resolution_are_refused(workshop):
    refused(workshop, "64", "--resolution", 64)  # the images have 40 pixels


def test_fewer_records_than_one_batch_for_each_lane_are_refused(workshop):
    refused(workshop, "33", "--per_device_train_batch_size", 12, "--data_lanes", 3)


def test_mismatched_models_are_refused(workshop):
    other = config(workshop, "text", cross_attention_dim=24)
    refused(workshop, "cross_attention_dim=24 .* 16 numbers", "--unet_name_or_path", other)
    other = config(workshop, "latents", in_channels=8)
    refused(workshop, "in_channels=8 .* 4 channels", "--unet_name_or_path", other)
    refused(workshop, "--resolution 36: .*multiple of 8", "--resolution", 36)


def test_unloadable_models_are_named(workshop, tmp_path):
    refused(workshop, "no such folder", "--vae_name_or_path", tmp_path / "none")
    refused(workshop, "no weights", "--vae_name_or_path", workshop.folder / "models/scheduler")
    (tmp_path / "broken.json").write_text("{")
    refused(workshop, "not a readable model configuration", "--unet_name_or_path", tmp_path / "broken.json")


def test_missing_prompts_and_checkpoints_are_refused(workshop, tmp_path):
    refused(workshop, "cannot be read", "--validation_prompts", tmp_path / "none.txt")
    refused(workshop, "no such folder; .* none", "--resume_from_checkpoint", tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3").mkdir()
    refused(workshop, "manifest.json is missing", "--resume_from_checkpoint", tmp_path / "checkpoint-3")


def test_an_unwritable_output_dir_is_refused(workshop, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--output_dir .*file/out cannot be written"):
        workshop.train(tmp_path / "file/out")


def test_parts_that_are_all_damaged_end_the_run(workshop, tmp_path):
    names = []
    for number in range(3):
        data = bytearray((workshop.folder / f"data/part-{number:06d}.gz").read_bytes())
        for place in range(60, len(data), 97):
            data[place] ^= 255
        names.append(tmp_path / f"part-{number:06d}.gz")
        names[-1].write_bytes(data)
    with pytest.raises((InputError, RunError), match="part-00000"):
        workshop.train("damaged_data", "--file_list", write_lists(tmp_path, (1.0, names)))


@pytest.mark.parametrize(("flags", "code"), [(["--prediction_type", "eps"], 2), (["--file_list", "none.list"], 2)])
def test_the_script_prints_one_line_and_its_exit_code(workshop, flags, code):
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *workshop.flags("script", *flags)],
        capture_output=True,
        text=True,
        cwd=workshop.folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert run.returncode == code, run.stderr
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in run.stderr
    assert re.search(r"--prediction_type eps|none\.list", errors[0])
