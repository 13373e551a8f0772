"""What the doctor says before a long run, with numbers given and as a command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sd.flags.command_line import parse_arguments
from sd.training import doctor
from tests.training_harness import Workshop

ROOT = Path(__file__).resolve().parents[2]
PEAKS = {1: 10 * 2**30, 2: 11 * 2**30, 4: 13 * 2**30}


def test_memory_grows_by_what_each_image_cost():
    assert doctor.predicted_peak(PEAKS, 0) == 9 * 2**30
    assert doctor.predicted_peak(PEAKS, 32) == 41 * 2**30
    assert doctor.largest_batch(PEAKS, 24 * 2**30) == 15
    assert doctor.largest_batch(PEAKS, 5 * 2**30) == 0


def test_too_large_a_batch_is_a_problem_with_a_remedy(capsys):
    assert doctor.report_memory(PEAKS, 24 * 2**30, 15) is False
    assert doctor.report_memory(PEAKS, 24 * 2**30, 16) is True
    reported = capsys.readouterr().out.splitlines()
    assert reported[1].startswith("PROBLEM memory")
    assert "largest batch that fits: about 15; lower --per_device_train_batch_size" in reported[1]


class Args:
    save_total_limit, max_steps, save_steps, use_ema, only_save_updated_model = 3, 100, 10, True, True


class Model:
    trained_components = ("unet",)


def test_disk_counts_moments_the_average_and_the_one_being_written(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "millions", lambda model, part: 256 * 2**20 / 1e6)
    assert doctor.checkpoint_bytes(Model, Args) == 4 * 2**30
    free = type("Usage", (), {"free": 15 * 2**30})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: free)
    assert doctor.report_disk(Model, Args, tmp_path / "not" / "there") is True
    assert "16.0 GiB, free 15.0; use --save_total_limit 2" in capsys.readouterr().out


def test_the_command_names_what_is_wrong_and_leaves_the_output_folder_alone(tmp_path):
    command = [sys.executable, "-m", "sd.doctor", "--do_train", "--device", "cpu"]
    command += ["--pretrained_model_name_or_path", "demo/tiny_sd", "--unet_name_or_path", "demo/unet_config.json"]
    command += ["--resolution", "32", "--per_device_train_batch_size", "2", "--max_steps", "10"]
    command += ["--output_dir", str(tmp_path / "out"), "--file_list", str(tmp_path / "no.list")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = {line.split()[1]: line for line in result.stdout.splitlines() if line.startswith(("ok", "PROBLEM"))}
    questions = {"versions", "device", "models", "memory", "step", "start", "data", "disk", "saving"}
    assert set(lines) == questions, result.stderr
    assert lines["data"].startswith("PROBLEM") and "no.list" in lines["data"]
    assert [line for line in lines.values() if line.startswith("PROBLEM")] == [lines["data"]]
    assert result.returncode == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("doctor"))


@pytest.fixture
def examined(workshop, capsys, monkeypatch):
    """A function of flags: question -> (whether it is a problem, answer) of what the doctor says of the command."""
    monkeypatch.setattr(doctor, "READ_SECONDS", 0.05)

    def answers(*flags):
        capsys.readouterr()
        problems = list(doctor.examine(*parse_arguments(workshop.flags(*flags), environ={})))
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("ok ", "PROBLEM "))]
        assert sum(problems) == sum(line.startswith("PROBLEM") for line in lines)
        return {line[8:18].strip(): (line.startswith("PROBLEM"), line[18:]) for line in lines}

    return answers


def test_the_doctor_checks_the_resume_that_the_command_would_be(workshop, examined):
    trained = workshop.train("run", "--save_steps", 2)
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    answers = examined("run", "--max_steps", 6)
    assert answers["start"] == (False, f"resumes from {trained}/checkpoint-4")
    assert answers["resume"] == (False, "the settings of the checkpoint")
    bad, line = examined("run", "--max_steps", 6, "--seed", 24, "--gradient_accumulation_steps", 2)["resume"]
    assert bad and "global_batch_size: 4 -> 8" in line and "seed: 23 -> 24" in line
    answers = examined("run", "--max_steps", 6, "--seed", 24, "--allow_changed_resume")
    assert answers["resume"] == (False, "changed settings, accepted: seed: 23 -> 24")
    assert examined("run")["start"] == (False, f"nothing to do after {trained}/checkpoint-4")
    answers = examined("run", "--overwrite_output_dir")
    assert (
        answers["start"] == (False, f"begins anew, and removes the 2 checkpoints in {trained}")
        and "resume" not in answers
    )
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


@pytest.mark.parametrize(
    ("flags", "question", "says"),
    [
        (["--resume_from_checkpoint", "latest"], "start", "--resume_from_checkpoint latest; leave it out: the newest"),
        (["--validation_prompts", "no.txt"], "start", "--validation_prompts no.txt cannot be read: No such file"),
        (["--output_dir", "README.md/out"], "start", "--output_dir README.md/out: .*README.md cannot be written"),
        (["--eval_file_list", "no.list"], "data", "no.list: No such file"),
        (["--data_filter", "score > 5"], "data", "score"),
    ],
)
def test_what_would_end_the_run_before_its_first_step_is_reported(examined, monkeypatch, flags, question, says):
    monkeypatch.chdir(ROOT)
    answers = examined("new", *flags)
    assert [name for name, (bad, _) in answers.items() if bad and name != "data"] == ["start"] * (question == "start")
    assert answers[question][0]
    assert re.search(says, answers[question][1])


def test_the_doctor_reports_mismatched_models_before_any_step(tmp_path):
    command = [sys.executable, "-m", "sd.doctor", "--do_train", "--device", "cpu", "--output_dir", str(tmp_path)]
    command += ["--pretrained_model_name_or_path", "demo/tiny_sd", "--unet_name_or_path", "demo/unet_config.json"]
    result = subprocess.run([*command, "--resolution", "33"], cwd=ROOT, capture_output=True, text=True)
    assert "PROBLEM models" in result.stdout and "--resolution 33" in result.stdout
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("measured", "output"),
    [
        ((PEAKS, 0.5, None), "2 images/s instead of 1.5 without it, and batch 8 fits too; use --recompute False"),
        (({1: 1, 2: 40 * 2**30}, 0.5, None), "and batch 8 does not fit; keep it"),
        (({1: 1}, 0.5, 2), "and batch 8 does not fit; keep it"),
        (({}, 0.5, 1), "needed: without it a single image runs out of memory"),
    ],
)
def test_the_doctor_reports_the_speed_without_recompute(monkeypatch, capsys, measured, output):
    class Training:
        device, recompute, output_dir, per_device_train_batch_size = "cpu", True, "out", 8

    def measure(model, data_args, args, available):
        assert args.recompute is False
        return measured

    monkeypatch.setattr(doctor, "measure_steps", measure)
    doctor.report_without_recompute(None, None, Training, 24 * 2**30, 1.5)
    assert output in capsys.readouterr().out and Training.recompute is True
