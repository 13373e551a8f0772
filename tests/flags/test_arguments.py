"""Flags: the documented defaults and command lines, values that are refused, and the environment's switches."""

import json
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sd.data.packing.options import PackOptions
from sd.devices import Device
from sd.errors import InputError
from sd.flags.arguments import SDDataArguments, SDModelArguments
from sd.flags.command_line import DIFFUSERS_FLAGS, environment_values, parse_arguments
from sd.flags.help import training_help

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = ["--output_dir", "out", "--device", "cpu"]

# As the reference documents them.
DEFAULTS = {
    "vae_name_or_path": None,
    "text_encoder_name_or_path": None,
    "unet_name_or_path": None,
    "tokenizer_name": None,
    "pretrained_model_name_or_path": "CompVis/stable-diffusion-v1-4",
    "model_max_length": 77,
    "prediction_type": "epsilon",
    "num_inference_steps": 50,
    "train_text_encoder": False,
    "noise_offset": 0,
    "snr_gamma": None,
    "input_perturbation": 0,
    "file_list": "./data/filelist/train.filelist.list",
    "num_records": 10_000_000,
    "buffer_size": None,
    "shuffle_every_n_samples": 5,
    "interpolation": "lanczos",
    "resolution": 512,
    "image_logging_steps": 1000,
    "use_ema": False,
    "recompute": False,
    "enable_xformers_memory_efficient_attention": None,
    "only_save_updated_model": True,
    "unet_learning_rate": None,
    "text_encoder_learning_rate": None,
    "to_static": False,
    "benchmark": False,
    "profiler_options": None,
    "report_to": ["visualdl"],
    # Ours
    "data_filter": None,
    "enlarge": False,
    "caption_dropout": 0.1,
    "data_lanes": None,
    "max_bad_fraction": 0.05,
    "eval_file_list": None,
    "validation_prompts": None,
    "rescale_betas_zero_snr": False,
    "ema_decay": 0.9999,
    "ema_start_step": 0,
    "save_on_exit": True,
    "max_bad_steps": 10,
    "allow_changed_resume": False,
}

# What train.sh passes.
TRAIN_SH = {
    "do_train": True,
    "output_dir": "./laion400m_pretrain_output_trainer",
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "max_steps": 200_000,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "image_logging_steps": 1000,
    "logging_steps": 10,
    "resolution": 256,
    "save_steps": 10_000,
    "save_total_limit": 20,
    "seed": 23,
    "dataloader_num_workers": 4,
    "vae_name_or_path": "CompVis/stable-diffusion-v1-4/vae",
    "text_encoder_name_or_path": "CompVis/stable-diffusion-v1-4/text_encoder",
    "unet_name_or_path": "./sd/unet_config.json",
    "model_max_length": 77,
    "max_grad_norm": -1,
    "disable_tqdm": True,
    "bf16": False,
    "use_ema": False,
    "recompute": False,  # train.sh turns both on for a GPU, see below
    "enable_xformers_memory_efficient_attention": None,
}


def parse(*flags, environ=None):
    groups = parse_arguments([*REQUIRED, *map(str, flags)], environ=environ or {})
    return {name: value for group in groups for name, value in vars(group).items()}


def test_the_defaults_are_the_documented_ones():
    parsed = parse()
    assert {name: parsed[name] for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prediction_type", "eps"], r"prediction_type='eps'; expected one of \('epsilon', 'v_prediction'\)"),
        (["--interpolation", "cubic"], "interpolation='cubic'"),
        (["--resolution", 0], "resolution=0; expected at least 8"),
        (["--snr_gamma", 0], "snr_gamma=0.0; expected above 0"),
        (["--noise_offset", -1], "noise_offset=-1.0"),
        (["--caption_dropout", 1.5], "caption_dropout=1.5; expected at least 0 and at most 1"),
        (["--caption_dropout", "nan"], "caption_dropout=nan"),
        (["--image_logging_steps", 0], "image_logging_steps=0; expected -1"),
        (["--per_device_train_batch_size", 0], "per_device_train_batch_size=0"),
        (["--gradient_accumulation_steps", 0], "gradient_accumulation_steps=0"),
        (["--logging_steps", 0], "logging_steps=0"),
        (["--save_steps", -5], "save_steps=-5"),
        (["--learning_rate", -1], "learning_rate=-1.0"),
        (["--ema_decay", 2], "ema_decay=2.0"),
        (["--seed", -1], "seed=-1"),
        (["--report_to", "paper"], "report_to='paper'"),
        (["--rescale_betas_zero_snr"], "use --prediction_type v_prediction"),
        (["--fp16"], "fp16 on device 'cpu', where Paddle has no kernels for it"),
        (["--bf16", "True"], "bf16 on device 'cpu'"),
        (["--device", "gpu:x"], "--device gpu:x; expected cpu, gpu or gpu:N"),
        (["--sharding", "stage2"], "--sharding stage2 on device 'cpu'; stages 2 and 3 need a GPU"),
        (["--sharding", "stage3"], "sharding='stage3' is not supported"),
        (["--tensor_parallel_degree", 2], "tensor_parallel_degree=2 is not supported"),
        (["--load_best_model_at_end", "True"], "load_best_model_at_end=True is not supported"),
        (["--unified_checkpoint"], "unified_checkpoint"),
        (["--max_steps", "many"], "--max_steps many; expected a whole number"),
        (["--mixed_precision", "fp16"], "unknown argument '--mixed_precision'; here it is --fp16 True or --bf16 True"),
        (["--train_batch_size=4"], "here it is --per_device_train_batch_size"),
        (["--learning_rat", "1"], "unknown argument '--learning_rat'; did you mean --learning_rate?"),
        (["--warmup_ratio", 3], "warmup_ratio=3.0; expected at least 0 and at most 1"),
        (["--lr_scheduler_type", "spiral"], "spiral"),
    ],
)
def test_wrong_values_are_named_in_one_line(flags, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(*flags)
    assert "\n" not in str(caught.value)


def test_every_flag_of_diffusers_names_its_counterpart():
    known = {f"--{name}" for name in (*parse(), *PackOptions.__dataclass_fields__)}
    for name, here in DIFFUSERS_FLAGS.items():
        assert name not in known
        assert set(re.findall(r"--\w+", here)) <= known, here


def test_dataclasses_check_themselves_without_a_command_line():
    with pytest.raises(InputError, match="model_max_length=1"):
        SDModelArguments(model_max_length=1)
    with pytest.raises(InputError, match="buffer_size=0"):
        SDDataArguments(buffer_size=0)


def test_image_logging_goes_up_to_a_multiple_of_logging_steps(caplog):
    caplog.set_level(logging.INFO, logger="sd")
    assert parse("--image_logging_steps", 25, "--logging_steps", 10)["image_logging_steps"] == 30
    assert "image_logging_steps: 25 -> 30" in caplog.text
    assert parse("--image_logging_steps", -1, "--logging_steps", 10)["image_logging_steps"] == -1


def test_environment_switches_are_logged_and_lose_against_flags(caplog):
    caplog.set_level(logging.INFO, logger="sd")
    environ = {"FLAG_USE_EMA": "1", "FLAG_RECOMPUTE": "0", "FLAG_XFORMERS": "true", "FLAG_BENCHMARK": "1"}
    parsed = parse("--benchmark", "False", environ=environ)
    assert parsed["use_ema"] is True and parsed["enable_xformers_memory_efficient_attention"] is True
    assert parsed["recompute"] is False and parsed["benchmark"] is False
    assert "FLAG_USE_EMA=1, in the environment: use_ema is on" in caplog.text
    assert "FLAG_RECOMPUTE" not in caplog.text and "FLAG_BENCHMARK" not in caplog.text
    assert environment_values({"FLAG_TO_STATIC": "1"}) == {"to_static": True}
    with pytest.raises(InputError, match="FLAG_USE_EMA='maybe'; expected 0 or 1"):
        parse(environ={"FLAG_USE_EMA": "maybe"})


def run_script(script, folder, *more, **environ):
    """Run a start script with a Python that only tells its arguments and the variables that the scripts set."""
    python = folder / "python"
    names = "FLAG|SD_GPU_DEFAULTS|PORT_RANGE"
    python.write_text(f'#!/bin/sh\nfor word in "$@"; do echo "$word"; done\nenv | grep -E "^({names})"\n')
    python.chmod(0o755)
    run = subprocess.run(
        ["sh", os.path.relpath(ROOT / script, folder), *more],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHON": str(python), **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = run.stdout.splitlines()
    variables = ("FLAG", "SD_GPU_DEFAULTS=", "PORT_RANGE=")
    words = [line for line in lines if not line.startswith(variables)]
    return words, dict(line.split("=", 1) for line in lines if line.startswith(variables))


def test_train_sh_is_the_documented_command(tmp_path):
    words, environ = run_script("train.sh", tmp_path)
    start = next(number for number, word in enumerate(words) if word.endswith("train_txt2img_laion400m_trainer.py"))
    assert words[:start] == ["-u"]
    unet = words[words.index("--unet_name_or_path") + 1]
    assert (tmp_path / unet).samefile(ROOT / "sd/unet_config.json")
    words[words.index("--unet_name_or_path") + 1] = "./sd/unet_config.json"
    groups = parse_arguments([*words[start + 1 :], "--device", "cpu"], environ)
    parsed = {name: value for group in groups for name, value in vars(group).items()}
    assert {name: getattr(parsed[name], "value", parsed[name]) for name in TRAIN_SH} == TRAIN_SH
    assert environ == {
        "FLAG_FUSED_LINEAR": "0",
        "FLAGS_conv_workspace_size_limit": "4096",
        "FLAG_USE_EMA": "0",
        "FLAG_RECOMPUTE": "1",
        "FLAG_XFORMERS": "1",
        "SD_GPU_DEFAULTS": " FLAG_RECOMPUTE FLAG_XFORMERS",
    }


def test_train_multi_sh_is_the_same_behind_the_launcher(tmp_path):
    one, environ = run_script("train.sh", tmp_path)
    several, environ_of_several = run_script("train_multi.sh", tmp_path)
    # Without --gpus the launcher takes all visible cards; of numbers it names those that are not there are an error.
    assert several[:3] == ["-u", "-m", "sd.processes.launch"]
    assert several[3:] == one[1:] and environ | {"PORT_RANGE": "20000:32767"} == environ_of_several
    machines, _ = run_script("train_multi.sh", tmp_path, GPUS="0,1", LAUNCH="--ips 10.0.0.1,10.0.0.2")
    assert machines[3:7] == ["--gpus", "0,1", "--ips", "10.0.0.1,10.0.0.2"]
    on_cpus, _ = run_script("train_multi.sh", tmp_path, "--device", "cpu", NPROC="3")
    assert on_cpus[3:5] == ["--nproc_per_node", "3"]
    assert run_script("train_multi.sh", tmp_path, "--device", "cpu")[0][3:5] == ["--nproc_per_node", "2"]


def test_the_launcher_chooses_free_ports_unless_the_user_names_one(tmp_path):
    """Linux gives those of ip_local_port_range, by default 32768 to 60999, to whoever connects."""
    for given, expected in (({}, "20000:32767"), ({"PORT_RANGE": "40000:40100"}, "40000:40100")):
        assert run_script("train_multi.sh", tmp_path, **given)[1]["PORT_RANGE"] == expected


def test_further_arguments_win(tmp_path):
    words, environ = run_script("train.sh", tmp_path, "--max_steps", "100", "--bf16", "True", FLAG_USE_EMA="1")
    assert words[-4:] == ["--max_steps", "100", "--bf16", "True"] and environ["FLAG_USE_EMA"] == "1"
    groups = parse_arguments([*words[2:], "--bf16", "False", "--device", "cpu"], environ)
    assert groups[2].max_steps == 100 and groups[2].use_ema


def test_the_packed_data_is_taken_if_there_is_any(tmp_path):
    def file_list():
        words, _ = run_script("train.sh", tmp_path)
        return words[words.index("--file_list") + 1]

    assert file_list() == "./data/filelist/train.filelist.list"
    packed = tmp_path / "processed_data/filelist"
    packed.mkdir(parents=True)
    (packed / "custom_dataset.filelist.list").write_text("")
    assert file_list() == "./processed_data/filelist/custom_dataset.filelist.list"


def test_help_names_every_flag_without_importing_paddlenlp():
    """Importing Paddle takes ten times as long as all the rest."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train_txt2img_laion400m_trainer.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(re.findall(r"\| +([\w.]+)$", run.stderr, re.MULTILINE))
    assert "sd.errors" in imported and imported.isdisjoint({"paddle", "paddlenlp", "ppdiffusers"})
    reported = set(re.findall(r"^  --(\w+) \(", run.stdout, re.MULTILINE))
    assert reported >= set(DEFAULTS) | set(TRAIN_SH) - {"do_train"} | {"resume_from_checkpoint", "overwrite_output_dir"}
    assert "{', '" not in run.stdout


def test_help_shows_the_values_of_files_of_flags(tmp_path):
    (tmp_path / "my.args").write_text("--resolution 384  # comment\n--learning_rate 3e-5\n")
    arguments = {"SDDataArguments": {"resolution": 64, "num_workers": 3}, "SDTrainingArguments": {"snr_gamma": 5.0}}
    (tmp_path / "run.json").write_text(json.dumps({"arguments": arguments}))
    reported = training_help("train", [f"@{tmp_path}/my.args", "--seed", "7"])
    assert "--resolution (384; default" in reported and "--learning_rate (3e-05; default" in reported
    assert "--seed (7; default 42)" in reported
    reported = training_help("train", [f"@{tmp_path}/run.json"])
    assert "--resolution (64; default" in reported and "--snr_gamma (5.0; default" in reported
    with pytest.raises(InputError, match="cannot be read"):
        training_help("train", ["@nowhere.args"])


def test_documented_commands_parse():
    """Every training command of the READMEs and of docs/, as far as it names flags."""
    commands = 0
    for path in (ROOT / "README.md", ROOT / "README_zh.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            if re.match(r"\s*(sh train\w*\.sh|python (-u )?train_txt2img_laion400m_trainer\.py)\b", line):
                flags = [word for word in shlex.split(line, comments=True) if word.startswith("--")]
                known = {f"--{name}" for name in parse()}
                assert set(flags) <= known | {"--help", "--doctor"}, line
                commands += 1
    assert commands > 10


@pytest.mark.parametrize(
    ("flags", "variables", "recompute", "attention"),
    [
        (["--device", "cpu"], {}, False, None),
        (["--device", "cpu"], {"FLAG_RECOMPUTE": "1", "FLAG_XFORMERS": "1"}, True, True),
        (["--device", "cpu", "--recompute", "True"], {}, True, None),
        (["--device=cpu"], {"FLAG_XFORMERS": "1"}, False, True),
    ],
)
def test_on_a_cpu_the_scripts_own_switches_are_off_and_the_users_are_not(
    tmp_path, caplog, flags, variables, recompute, attention
):
    caplog.set_level("INFO", logger="sd")
    words, environ = run_script("train.sh", tmp_path, *flags, **variables)
    arguments = parse_arguments(words[2:], environ)[2]
    assert arguments.recompute is recompute
    assert arguments.enable_xformers_memory_efficient_attention is attention
    assert ("FLAG_RECOMPUTE=1, in the environment" in caplog.text) == ("FLAG_RECOMPUTE" in variables)
    assert "train.sh's default" not in caplog.text


def test_on_a_gpu_the_scripts_own_switches_are_on_and_named(monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO", logger="sd")
    monkeypatch.setattr("sd.devices.card_count", lambda: 1)
    monkeypatch.setattr("sd.devices.select", lambda name, precision: Device("gpu", 0))
    words, environ = run_script("train.sh", tmp_path)
    arguments = parse_arguments(words[2:], environ)[2]
    assert arguments.recompute is True and arguments.enable_xformers_memory_efficient_attention is True
    assert "FLAG_RECOMPUTE=1, train.sh's default: recompute is on" in caplog.text


@pytest.mark.parametrize("flag", ["recompute", "enable_xformers_memory_efficient_attention", "use_ema", "bf16"])
def test_a_switch_is_on_by_its_name_alone(flag, tmp_path):
    words = ["--do_train", "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    if flag != "bf16":  # which a CPU refuses
        assert getattr(parse_arguments([*words, f"--{flag}"], environ={})[2], flag) is True
    assert not getattr(parse_arguments([*words, f"--{flag}", "False"], environ={})[2], flag)
