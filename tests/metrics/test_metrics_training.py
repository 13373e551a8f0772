"""Scores follow training: over three checkpoints of the demo FID falls and the CLIP score rises, all offline."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = (50, 100, 200)


def command(*words, cwd):
    process = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]


@pytest.mark.slow
def test_scores_follow_training(tmp_path):
    command(sys.executable, "-m", "demo.shapes", "--output", tmp_path / "shapes", "--count", 1800, cwd=ROOT)
    packed = tmp_path / "packed"
    pack = ["--input_path", tmp_path / "shapes/shapes.jsonl", "--output_path", packed, "--save_gzip_file"]
    command(sys.executable, "create_pretraining_data.py", *pack, cwd=ROOT)
    file_list = packed / "filelist/custom_dataset.filelist.list"
    model, demo = tmp_path / "model", ROOT / "demo"
    flags = (
        f"--do_train --device cpu --output_dir {model} --file_list {file_list} --resolution 32 --max_steps {STEPS[-1]} "
        f"--pretrained_model_name_or_path {demo}/tiny_sd --unet_name_or_path {demo}/unet_config.json "
        "--per_device_train_batch_size 32 --model_max_length 16 --learning_rate 1e-3 --warmup_steps 50 "
        "--lr_scheduler_type constant_with_warmup --weight_decay 0.01 --snr_gamma 5 --use_ema True --ema_decay 0.98 "
        f"--logging_steps 50 --image_logging_steps -1 --save_steps {STEPS[0]} --disable_tqdm True"
    )
    command(sys.executable, "train_txt2img_laion400m_trainer.py", *flags.split(), cwd=ROOT)
    actual = []
    for steps in STEPS:
        output = tmp_path / f"scores-{steps}"
        flags = (
            f"--metrics --unet {model}/checkpoint-{steps} --variant ema --prompts_file {demo}/captions.txt "
            f"--guidance_scale 3 --num_inference_steps 15 --clip_model {demo}/tiny_clip --fid_model {demo}/tiny_clip "
            f"--fid_reference {file_list} --device cpu --output {output}"
        )
        command(sys.executable, "eval.py", *flags.split(), cwd=ROOT)
        actual.append(json.loads((output / "metrics.json").read_text())["results"][0])
    print(actual)
    assert [result["fid"] for result in actual] == sorted((result["fid"] for result in actual), reverse=True)
    assert [result["clip_score"] for result in actual] == sorted(result["clip_score"] for result in actual)
    assert actual[-1]["clip_score"] > actual[0]["clip_score"] + 0.1
