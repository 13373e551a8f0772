"""Every command of the README and of docs/ runs as it is written, but for the sizes, models and paths of the demo."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

MODELS = (
    " --pretrained_model_name_or_path demo/tiny_sd --vae_name_or_path demo/tiny_sd/vae"
    " --text_encoder_name_or_path demo/tiny_sd/text_encoder --model_max_length 16 --resolution 32"
)
TRAIN = MODELS + (
    " --device cpu --max_steps 4 --save_steps 2 --save_total_limit 9 --logging_steps 2 --image_logging_steps -1"
    " --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --dataloader_num_workers 1 --warmup_steps 0"
    " --recompute False --bf16 False"
)
UNET = " --unet_name_or_path demo/unet_config.json"

# Commands that cannot run here, and why. The first pattern that matches a command decides.
LEFT_OUT = {
    r"sh quickstart\.sh": "tests/test_quickstart.py runs it",
    r"sh run_tests\.sh": "this is one of its tests",
    r"sh tests/fresh_machine\.sh": "needs root and the network",
    r"python3 -m venv|pip install": "needs the network",
    r"sh setup_app\.sh|python app\.py": "needs Gradio's environment; tests/web uses the page",
    r"GPUS=|sh train_multi\.sh$": "needs several cards",
    r"LAUNCH=": "needs several machines; tests/training runs two on one host",
    r"python eval\.py$": "needs the published weights",
    r"python eval\.py .*--preset mlperf": "needs 30,000 prompts and Inception's weights; tests/metrics runs the preset",
}
# Commands that run: pattern, what is appended. The last flag of a name wins.
RUNS = [
    (r"python create_pretraining_data\.py ", " --num_workers 1"),
    (r"python -m sd\.data\.inspect .*--aspect_buckets", " --resolution 32 --side_multiple 8"),
    (r"python -m sd\.data\.inspect ", " --resolution 32"),
    (r"python -m sd\.data\.duplicates ", " --num_workers 1"),
    (r"python precompute_latents\.py ", MODELS),
    (r"sh train\.sh.*--unet_name_or_path", TRAIN),
    (r"sh train_multi\.sh @recipes/v1_512\.args", TRAIN + " --unet_name_or_path runs/v1_256/checkpoint-4/unet"),
    (r"sh train_multi\.sh @recipes/v1_2\.args", TRAIN + " --unet_name_or_path runs/v1_512/checkpoint-4/unet"),
    (r"sh train_multi\.sh @recipes/v1_4\.args", TRAIN + " --unet_name_or_path runs/v1_2/checkpoint-4/unet"),
    (r"python -m sd\.data\.columns ", ""),
    (r"(NPROC=2 |RESTARTS=10 )?sh train(_multi)?\.sh", TRAIN + UNET),
    (r"visualdl ", ""),
    (r"python eval\.py ", " --num_inference_steps 2 --device cpu"),
    (r"python export\.py ", ""),
    (r"sh recipes/own_pictures\.sh ", " --max_steps 4"),
    (r"sh recipes/long_captions\.sh", ""),
    (r"for side in 256 512", ""),
]
# What stands for the sizes, files and machines of the pages.
IN_PLACE_OF = [
    (r"--aspect_buckets \S+", "--aspect_buckets 3"),
    (r"checkpoint-300\b", "checkpoint-2"),
    (r"checkpoint-(600|10000)\b", "checkpoint-4"),
    (r"for side in 256 512", "for side in 32"),
    (r"latents_(256|512)", "latents_32"),
    (r"--engine ray --ray_address auto", "--engine local"),
    (r"-m sd\.processes\.launch --gpus [\d,]+ precompute", "precompute"),
    (r"CompVis/stable-diffusion-v1-4/vae", "demo/tiny_sd/vae"),
    (r"sh train_multi\.sh (@recipes/(\w+)\.args)", r"sh train.sh \1 --output_dir runs/\2"),
    (r" /data/", " data/"),
    (r"--guidance_scales 1 2 3 5 8", "--guidance_scales 1 2"),
    (r"pt_inception-2015-12-05-6726825d\.pth|clip-vit-h-14", "demo/tiny_clip"),
    (r"_reference pictures/", "_reference coco_data/images"),
    (r"quickstart_out/processed_data", "processed_data"),
    (r"quickstart_out/model", "out"),
]


def commands_of(page: Path) -> list[str]:
    """The commands of a page's sh blocks, without comments; a loop is one command."""
    commands = []
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        text = re.sub(r"\\\n *", "", re.sub(r"[ \t]+#.*", "", block))
        commands += [text.strip()] if text.startswith("for ") else text.splitlines()
    return commands


def what_runs(command: str) -> str | None:
    """The command at demo size; None where LEFT_OUT says why it does not run."""
    if any(re.match(pattern, command) for pattern in LEFT_OUT):
        return None
    appended = next((flags for pattern, flags in RUNS if re.match(pattern, command)), None)
    assert appended is not None, f"no rule for {command!r}; add it to RUNS or, with the reason, to LEFT_OUT"
    for pattern, replacement in IN_PLACE_OF:
        command = re.sub(pattern, replacement, command)
    return command + appended


def test_every_documented_command_has_a_rule_and_every_rule_a_command():
    commands = [command for page in PAGES for command in commands_of(page)]
    assert sum(what_runs(command) is not None for command in commands) > 20
    for pattern in [*LEFT_OUT, *(pattern for pattern, _ in RUNS)]:
        assert any(re.match(pattern, command) for command in commands), f"nothing matches {pattern!r} any more"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with this checkout's files and, under the names that the pages use, small data and old weights."""
    folder = tmp_path_factory.mktemp("workspace")
    for file in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split():
        entry = Path(file).parts[0]
        if not (folder / entry).exists():
            (folder / entry).symlink_to(ROOT / entry)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    run(folder, "python -m demo.shapes --output coco_data --count 40")
    (folder / "coco_data/shapes.jsonl").rename(folder / "coco_data/coco_data.jsonl")
    (folder / "prompts.txt").write_text("a red circle on a black background\na blue square on a white background\n")
    pictures = sorted((folder / "coco_data/images").iterdir())[:8]
    (folder / "data/laion").mkdir(parents=True)
    (folder / "my_pictures").mkdir()
    scores = folder / "scores.json"
    with tarfile.open(folder / "data/laion/00000.tar", "w") as shard:
        for picture in pictures:
            caption = folder / "my_pictures" / f"{picture.stem}.txt"
            caption.write_text("a red circle")
            shutil.copy(picture, folder / "my_pictures")
            shard.add(picture, picture.name)
            shard.add(caption, caption.name)
            fields = {"url": f"https://example.com/{picture.name}", "AESTHETIC_SCORE": 5.5, "pwatermark": 0.1}
            scores.write_text(json.dumps(fields | {"original_width": 2000, "original_height": 1500}))
            shard.add(scores, f"{picture.stem}.json")
    urls = [f"https://example.com/{picture.name}" for picture in pictures]
    parquet.write_table(pyarrow.table({"url": urls, "sharpness": range(len(urls))}), folder / "scores.parquet")
    (folder / "old/unet").mkdir(parents=True)
    program = (
        "import json, paddle; from ppdiffusers import UNet2DConditionModel as Model; "
        "model = Model.from_config(json.load(open('demo/unet_config.json'))); model.save_config('old/unet'); "
        "paddle.save(model.state_dict(), 'old/unet/model_state.pdparams')"
    )
    run(folder, f'python -c "{program}"')
    return folder


def run(folder, command):
    """Run a command line in the folder, with this environment's programs first. Fails with what it printed."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("FLAG_", "MKL_", "OMP_"))}
    environ |= {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}", "STEPS": "4"}
    done = subprocess.run(["sh", "-euc", command], cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


def serve(folder, command):
    """Start a server, wait until it prints its address, end it."""
    log = folder / "server.log"
    program = Path(sys.prefix) / "bin" / command
    with log.open("w") as out:
        server = subprocess.Popen(
            ["sh", "-c", f"exec {program}"], cwd=folder, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until = time.monotonic() + 120
        while "http://" not in log.read_text():
            assert server.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
def test_every_documented_command_runs(workspace):
    seen = set()
    for page in PAGES:
        for command in commands_of(page):
            at_demo_size = what_runs(command)
            if at_demo_size is None or at_demo_size in seen:
                continue
            if "--output_dir out" not in at_demo_size and re.search(r"\bout(/|\s)", at_demo_size):
                make_out(workspace)
            seen.add(at_demo_size)
            if at_demo_size.startswith("visualdl"):
                serve(workspace, at_demo_size)
            else:
                run(workspace, at_demo_size)
    assert (workspace / "my_pipeline/unet").is_dir() and (workspace / "compare.png").is_file()
    assert (workspace / "processed_data/report.json").is_file()
    assert (workspace / "runs/v1_512/checkpoint-4/manifest.json").is_file()


def make_out(workspace):
    """The run `out` that the pages sample from, with two checkpoints and a moving average."""
    if not (workspace / "out/checkpoint-4").exists():
        file_list = "processed_data/filelist/custom_dataset.filelist.list"
        run(workspace, f"sh train.sh --output_dir out --use_ema True --file_list {file_list}" + TRAIN + UNET)
