"""One meaning of --device: what is named, what is there, what a card can do. Cards are stand-ins, no GPU is needed."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import paddle
import pytest
from paddle.distributed.launch.context.device import Device as LauncherDevice

from sd import devices
from sd.devices import Device
from sd.errors import InputError
from sd.flags.command_line import parse_arguments
from tests.data_maker import make_data

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def cards(monkeypatch):
    """`cards(count, capability)` makes Paddle report so many cards; returns the list of devices that are set."""
    chosen = []
    real = paddle.get_device()

    def install(count=2, capability=(9, 0), name="NVIDIA H100", total=80 * 2**30):
        properties = SimpleNamespace(name=name, total_memory=total, major=capability[0], minor=capability[1])
        monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
        monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: count)
        monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda index=None: capability)
        monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda index=None: name)
        monkeypatch.setattr(paddle.device.cuda, "get_device_properties", lambda index=None: properties)
        monkeypatch.setattr(paddle, "set_device", chosen.append)
        monkeypatch.setattr(
            paddle.device, "get_device", lambda: {"gpu": "gpu:0"}.get(chosen[-1], chosen[-1]) if chosen else real
        )
        return chosen

    return install


@pytest.mark.parametrize("text", ["cuda", "gpu:", "gpu:-1", "gpu:x", "cpu:0", "", "GPU"])
def test_what_is_no_device_is_refused(text):
    with pytest.raises(InputError, match="expected cpu, gpu or gpu:N"):
        devices.parse(text)


def test_devices_are_parsed_and_printed():
    assert [devices.parse(text) for text in ("cpu", "gpu", "gpu:3")] == [Device("cpu"), Device("gpu"), Device("gpu", 3)]
    assert [str(devices.parse(text)) for text in ("cpu", "gpu", "gpu:3")] == ["cpu", "gpu", "gpu:3"]


@pytest.mark.parametrize(
    ("words", "actual"),
    [
        ([], None),
        (["--device", "cpu"], "cpu"),
        (["--device=gpu:1", "--max_steps", "3"], "gpu:1"),
        (["--device", "gpu", "--x", "--device", "cpu"], "cpu"),
        (["--device"], None),
    ],
)
def test_the_last_device_of_a_command_line_counts(words, actual):
    assert devices.requested(words) == actual


def test_on_a_cpu_the_cards_are_hidden_before_paddle_is_imported():
    environ = {"FLAGS_selected_gpus": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    devices.prepare("cpu", environ)
    assert environ == {"CUDA_VISIBLE_DEVICES": "", "PADDLE_DISTRI_BACKEND": "gloo", "USE_PPXFORMERS": "0"}
    for name in ("gpu", "gpu:1", None):
        environ = {"CUDA_VISIBLE_DEVICES": "0,1"}
        devices.prepare(name, environ)
        assert environ["CUDA_VISIBLE_DEVICES"] == "0,1" and "PADDLE_DISTRI_BACKEND" not in environ


@pytest.mark.parametrize(
    "command",
    [
        ["train_txt2img_laion400m_trainer.py", "--device", "cpu", "--file_list", "LIST"],
        ["-m", "sd.doctor", "--device", "cpu"],
        ["eval.py", "--device", "cpu"],
        ["precompute_latents.py", "--device", "cpu", "--file_list", "LIST", "--output_path", "y"],
        ["export.py", "--checkpoint", "some/model", "--output", "y"],
    ],
)
def test_every_script_hides_them_in_time(command, tmp_path):
    """A library that imports first asks for its kernels on the default device; the module that stands in for Paddle
    tells what it saw then."""
    (tmp_path / "paddle.py").write_text(
        "import os, sys; print('seen', os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); os._exit(0)"
    )
    file_list = make_data(tmp_path / "data", [1])
    command = [file_list if word == "LIST" else word for word in command]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "SD_ANY_VERSION": "1", "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert "seen \n" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("device", "chosen"), [("gpu:1", "gpu:1"), ("gpu", "gpu"), (None, "gpu"), ("cpu", "cpu")])
def test_training_computes_on_the_device_that_is_named(cards, tmp_path, device, chosen):
    actual = cards()
    flags = [] if device is None else ["--device", device]
    arguments = parse_arguments(["--do_train", "--output_dir", str(tmp_path), *flags], environ={})
    assert actual == [chosen] and arguments[2].device == chosen.partition(":")[0]


def test_a_selected_card_has_its_index(cards):
    cards()
    assert devices.select("gpu") == Device("gpu", 0) and devices.select("gpu:1") == Device("gpu", 1)
    assert devices.select("cpu") == Device("cpu")


@pytest.mark.parametrize(
    ("count", "device", "message"),
    [
        (2, "gpu:2", r"--device gpu:2: this process sees 2 card\(s\), gpu:0 to gpu:1"),
        (0, "gpu", "--device gpu: Paddle sees no card"),
    ],
)
def test_a_card_that_is_not_there_is_refused(cards, count, device, message):
    cards(count)
    with pytest.raises(InputError, match=message):
        devices.select(device)


def test_without_a_card_and_a_flag_a_cpu_computes(cards):
    assert cards(0) == [] and devices.select() == Device("cpu")


def test_a_hidden_card_is_named(cards, monkeypatch):
    cards(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES='7'"):
        devices.select("gpu")


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="of the CPU build")
def test_the_cpu_build_trains_on_no_card(monkeypatch):
    with pytest.raises(InputError, match=r"this Paddle is built for CPUs; .*requirements-gpu.txt"):
        devices.select("gpu")
    monkeypatch.setattr(devices, "has_nvidia_card", lambda: True)
    with pytest.raises(InputError, match="this machine has an NVIDIA card, but this Paddle is built for CPUs"):
        devices.select()
    assert devices.select("cpu") == Device("cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.select() == Device("cpu")


def test_ranks_share_out_the_cards_by_themselves(cards, monkeypatch):
    cards(2)
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    with pytest.raises(InputError, match="--device gpu:1 in several processes; use --device gpu"):
        devices.select("gpu:1")


@pytest.mark.parametrize(
    ("capability", "precision", "advice"),
    [
        ((7, 5), "bf16", "needs 8.0, use fp16 or fp32"),
        ((6, 1), "fp16", "needs 7.0, use fp32"),
        ((6, 1), "bf16", "fp32"),
    ],
)
def test_a_precision_that_a_card_has_no_kernels_for_is_refused(cards, capability, precision, advice):
    cards(1, capability, "Tesla T4")
    with pytest.raises(InputError, match=f"{precision} on Tesla T4 .*{advice}"):
        devices.select("gpu", precision)


@pytest.mark.parametrize(("capability", "precision"), [((8, 0), "bf16"), ((7, 0), "fp16"), ((6, 1), "fp32")])
def test_what_it_has_kernels_for_is_taken(cards, capability, precision):
    cards(1, capability)
    assert devices.select("gpu", precision) == Device("gpu", 0)


def test_old_cards_are_refused_by_the_training_command(cards, tmp_path):
    cards(1, (7, 5), "Tesla T4")
    with pytest.raises(InputError, match=r"bf16 on Tesla T4 of compute capability 7.5; it needs 8.0"):
        parse_arguments(["--do_train", "--output_dir", str(tmp_path), "--bf16", "True"], environ={})


def test_the_description_names_card_memory_driver_and_software(cards, monkeypatch):
    cards()
    monkeypatch.setattr(devices, "driver_version", lambda: "550.54.15")
    described = devices.describe(devices.select("gpu:1"))
    assert described.startswith("gpu:1, NVIDIA H100, 80.0 GiB, compute capability 9.0, driver 550.54.15, CUDA ")
    monkeypatch.undo()
    devices.select("cpu")
    assert devices.describe(devices.current()).startswith("cpu, ")


@pytest.mark.parametrize(
    ("threads", "processes", "share"), [("8", 2, "4"), ("8", 3, "2"), ("2", 8, "1"), ("1", 1, "1")]
)
def test_processes_share_the_cores(threads, processes, share, monkeypatch):
    monkeypatch.setenv("MKL_NUM_THREADS", threads)
    assert devices.shares(Device("cpu"), processes) == [{"MKL_NUM_THREADS": share}]


def test_threads_that_nobody_set_are_not_shared(monkeypatch):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert devices.shares(Device("cpu"), 2) == []


def test_processes_get_a_card_each(cards, monkeypatch):
    cards(2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.shares(Device("gpu", 0), 2) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert devices.shares(Device("gpu", 0), 2) == [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "7"}]


@pytest.mark.parametrize(("labels", "count"), [("0,1,2,3", 4), ("4,5,6,7", 4), ([], 0)])
def test_the_launcher_without_gpus_takes_what_is_visible(labels, count):
    """What train_multi.sh relies on: with `--gpus 0,...,7` the launcher ends in a ValueError on each of these."""
    launcher = LauncherDevice()
    launcher.labels = labels
    assert len(launcher.get_selected_devices("")) == count
    with pytest.raises(ValueError, match="is not in list"):
        launcher.get_selected_devices("0,1,2,3,4,5,6,7")
