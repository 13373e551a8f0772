"""The bench of the training step: every setting ends as a row, a device that is not there is said at once."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import paddle
import pytest

from bench import results, train_step
from bench.operations import step_flops
from sd.diffusion.model import StableDiffusionModel
from sd.errors import InputError, RunError
from sd.flags.command_line import parse_arguments

ROOT = Path(__file__).resolve().parent.parent
ARGS = {"device": "cpu", "size": "tiny", "resolution": 32, "batch": 2, "warm": 1, "steps": 1, "peak_tflops": 1.0}


def measure(tmp_path, name, **changes):
    args = SimpleNamespace(**ARGS | {"folder": str(tmp_path)} | changes)
    return train_step.measure(args, train_step.SETTINGS[name])


@pytest.fixture(autouse=True)
def prepared(monkeypatch):
    monkeypatch.setattr("sd.runtime.prepare", lambda device=None: None)  # these tests have imported Paddle


@pytest.mark.parametrize("name", ["fp32", "fp32, plain attention", "fp32, NHWC", "fp32, cached latents and text"])
def test_what_a_cpu_has_is_measured(tmp_path, name):
    actual = measure(tmp_path, name)
    assert actual["images/s"] > 0 and actual["peak GiB"] > 0 and actual["batch"] == 2
    assert 0 <= actual["data_wait_percent"] <= 100


def test_a_setting_multiplies_the_batch(tmp_path, monkeypatch):
    monkeypatch.setitem(train_step.SETTINGS, "twice", {"batch_times": 2})
    assert measure(tmp_path, "twice")["batch"] == 4


def test_the_flags_of_every_setting_are_flags_of_training(monkeypatch, tmp_path):
    monkeypatch.setattr("sd.devices.check_precision", lambda device, precision: None)
    for setting in train_step.SETTINGS.values():
        flags = {name: value for name, value in setting.items() if name not in train_step.OURS}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        arguments = parse_arguments(["--do_train", "--output_dir", str(tmp_path), "--device", "cpu", *words], {})[2]
        assert all(getattr(arguments, name) == value for name, value in flags.items())


@pytest.mark.parametrize(
    ("returncode", "stderr", "output"),
    [
        (-9, "", "out of memory"),
        (1, "error: out of memory; a smaller --per_device_train_batch_size\n", "out of memory"),
        (1, "Traceback\nMemoryError: ResourceExhaustedError: Out of memory error on GPU 0\n\n", "out of memory"),
        (2, "error: bf16 on Tesla T4 of compute capability 7.5; it needs 8.0", "bf16 on Tesla T4 of compute"),
        (3, "", "exit code 3"),
    ],
)
def test_a_setting_without_figures_has_a_reason(returncode, stderr, output):
    assert train_step.reason(SimpleNamespace(returncode=returncode, stderr=stderr)).startswith(output)


def test_out_of_memory_in_a_step_is_one_line(tmp_path, monkeypatch):
    def forward(self, **batch):
        raise MemoryError("ResourceExhaustedError: Out of memory error on GPU 0")

    monkeypatch.setattr(StableDiffusionModel, "forward", forward)
    with pytest.raises(RunError, match=r"^out of memory"):
        measure(tmp_path, "fp32")


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="of the CPU build")
def test_a_missing_gpu_is_reported_at_once(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_step.py", "--device", "gpu"])
    monkeypatch.setattr(train_step, "run_setting", lambda *arguments: pytest.fail("a setting was tried"))
    with pytest.raises(InputError, match="--device gpu: this Paddle is built for CPUs"):
        train_step.main()


def test_result_rows_name_the_machine(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["train_step.py", "--device", "cpu", "--size", "tiny", "--only", "fp32"])
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    figures = {"images/s": 3.0, "peak GiB": 1.0, "batch": 8, "loss": 1.0, "data_wait_percent": 0.0}
    monkeypatch.setattr(
        train_step, "run_setting", lambda name, argv: (None, "out of memory") if "NHWC" in name else (figures, "")
    )
    train_step.main()
    [path] = tmp_path.iterdir()
    stored = json.loads(path.read_text())
    assert stored["card"] == "cpu" and stored["versions"]["paddlenlp"] and stored["settings"]["batch"] == 8
    rows = {row.pop("setting"): row for row in stored["rows"]}
    assert rows["fp32"] == figures and rows["fp32, NHWC"] == {"failure": "out of memory"}
    assert "| fp32, NHWC |  |  |  |  | out of memory |" in capsys.readouterr().out


def test_a_result_file_is_named_by_date_and_card_and_names_the_commit(tmp_path, monkeypatch):
    show = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(show, cwd=ROOT, capture_output=True, text=True).stdout if shutil.which("git") else ""
    table = results.Results("train_step_NVIDIA A100-SXM4-80GB", ["setting"], "nothing", folder=tmp_path)
    day, name = table.path.stem.split("_")
    assert len(day) == 10 and name == "train-step-NVIDIA-A100-SXM4-80GB"
    assert table.content["revision"] == (commit.strip() or "unknown")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert results.revision() == "unknown", "a machine without git"


def test_utilisation_is_work_over_the_peak():
    """At the published rate of eight H100 in half precision at 512 px from cached latents and captions."""
    work = step_flops(512, vae=False, text_encoder=False) * 137
    assert 0.2 < work / (train_step.PEAK_TFLOPS["H100"] * 1e12) < 0.5


@pytest.mark.parametrize("peak", ["312e12", "0", "-1", "nan"])
def test_the_recipe_refuses_a_peak_in_another_unit(peak):
    done = subprocess.run(
        [sys.executable, "-m", "bench", "operations", "--peak_tflops", peak], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "--peak_tflops " in done.stderr and "expected at least 1" in done.stderr
