"""Whole training, data and all, in images/s and GiB: our train.sh, the reference's method, diffusers on PyTorch.

    KEEP=/tmp/torch_env python -m bench training             the demo's model at 32 px, batch 32
    KEEP=/tmp/torch_env python -m bench training --size full the UNet of Stable Diffusion at 256 px, batch 1

Same model configurations, records, batch, number of data workers, min-SNR weight and AdamW; float32, no moving
average, no recompute. The contenders take turns, each in a process of its own, which is ended after its last step. The
rate is that of the wall clock from one log line to another, warm-up steps before the first of them; memory is the
peak of the largest process.
KEEP names the folder in which bench/torch_env.sh makes, or finds, the environment with PyTorch.
"""

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from bench import results
from bench.full_size import make_input
from bench.results import ROOT

SIZES = {
    "tiny": {"resolution": 32, "batch": 32, "length": 16, "workers": 1, "warm": 20, "steps": 200},
    "full": {"resolution": 256, "batch": 1, "length": 77, "workers": 1, "warm": 1, "steps": 4},
}
OURS, PLAIN, TORCH = "ours", "the reference's method", "diffusers on PyTorch"
STEP = re.compile(r"step (\d+)/\d+ \| loss")


def run(*command):
    """Run one of the toolkit's scripts to its end."""
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def prepare(folder, size, cached):
    """Models, records, parts and, if asked for, latent caches in `folder`. Returns the paths that a contender takes."""
    if size == "tiny":
        models, unet = ROOT / "demo/tiny_sd", ROOT / "demo/unet_config.json"
        run("-m", "demo.shapes", "--output", folder / "input")
        jsonl = folder / "input/shapes.jsonl"
    else:
        models, unet = folder / "models", ROOT / "sd/unet_config.json"
        run("-m", "bench.full_size", models)
        jsonl = make_input(folder / "input", count=8)
    run("create_pretraining_data.py", "--input_path", jsonl, "--output_path", folder / "packed", "--save_gzip_file")
    paths = {"models": models, "unet": unet, "jsonl": jsonl}
    paths["list"] = folder / "packed/filelist/custom_dataset.filelist.list"
    if cached:
        shape = SIZES[size]
        flags = ["--file_list", paths["list"], "--output_path", folder / "cached", "--resolution", shape["resolution"]]
        run("precompute_latents.py", *flags, "--pretrained_model_name_or_path", models, "--device", "cpu")
        paths["cached_list"] = folder / "cached/filelist/custom_dataset.filelist.list"
        paths["moments"] = folder / "moments.npy"
        side = shape["resolution"] // 8
        rows = len(jsonl.read_text().splitlines())
        np.save(paths["moments"], np.random.default_rng(0).standard_normal((rows, 8, side, side)).astype(np.float16))
    return paths


def commands(paths, shape, cached, output):
    """Contender -> (command, environment to add or, with None, to leave out)."""
    steps = ["--max_steps", shape["steps"], "--logging_steps", shape["warm"]]
    common = ["--models", paths["models"]]
    common += ["--unet_config", paths["unet"], "--resolution", shape["resolution"], "--batch", shape["batch"]]
    common += ["--length", shape["length"], "--workers", shape["workers"], *steps]
    ours = ["sh", "train.sh", "--device", "cpu", "--output_dir", output, "--overwrite_output_dir", True]
    ours += ["--file_list", paths["cached_list" if cached else "list"], "--resolution", shape["resolution"]]
    ours += ["--pretrained_model_name_or_path", paths["models"], "--unet_name_or_path", paths["unet"]]
    ours += ["--vae_name_or_path", paths["models"] / "vae", "--text_encoder_name_or_path"]
    ours += [paths["models"] / "text_encoder", "--per_device_train_batch_size", shape["batch"]]
    ours += ["--model_max_length", shape["length"], "--dataloader_num_workers", shape["workers"], "--snr_gamma", 5]
    ours += ["--recompute", False, "--report_to", "none", "--image_logging_steps", -1, "--save_strategy", "no", *steps]
    plain = [sys.executable, "-m", "bench.plain_training", *common, "--parts"]
    plain += sorted((paths["list"].parent.parent / "laion400m_format_data").glob("part-*.gz"))
    torch = ["sh", "bench/torch_env.sh", "bench/torch_training.py", *common, "--jsonl", paths["jsonl"]]
    if cached:
        torch += ["--moments", paths["moments"]]
    untouched = dict.fromkeys(("MKL_NUM_THREADS", "OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE"))
    actual = {OURS: (ours, {"PYTHON": sys.executable}), PLAIN: (plain, untouched), TORCH: (torch, {})}
    if cached:
        del actual[PLAIN]  # it has no cache of latents
    return actual


def peak_gib(process):
    """The largest peak among a process and its children, which still run."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    peaks = [re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{one.pid}/status").read_text()) for one in family]
    return max(int(peak[1]) for peak in peaks if peak) / 2**20


def measure(command, changes, shape, log):
    """Start a contender, time its log lines, and end it after the last one. Returns (images/s, peak in GiB)."""
    environment = {name: value for name, value in (os.environ | changes).items() if value is not None}
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    times, lines, peak = {}, [], 0.0
    try:
        for line in process.stdout:
            lines.append(line)
            if actual := STEP.search(line):
                times[int(actual[1])] = time.perf_counter()
                with contextlib.suppress(psutil.NoSuchProcess, OSError):  # it may end after its last line
                    peak = peak_gib(process)
                if int(actual[1]) == shape["steps"]:
                    break
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.write_text("".join(lines))
    if shape["steps"] not in times:
        sys.exit(f"{command[0]} {command[1]} ended before its last step:\n{''.join(lines[-15:])}")
    first = min(times)
    return shape["batch"] * (shape["steps"] - first) / (times[shape["steps"]] - times[first]), peak


def compare(table, folder, size, cached, rounds, shape, paths):
    """Let the contenders take turns, a table row for each."""
    rates, peaks = {}, {}
    for number in range(rounds):
        for name, (command, changes) in commands(paths, shape, cached, folder / "output").items():
            rate, peaks[name] = measure(command, changes, shape, folder / "log.txt")
            rates.setdefault(name, []).append(rate)
            print(f"  round {number + 1}, {name}: {rate:.4g} images/s", file=sys.stderr, flush=True)
    middle = {name: statistics.median(actual) for name, actual in rates.items()}
    for name, rate in middle.items():
        table.add(
            size=size,
            source="cached latents" if cached else "images",
            contender=name,
            **{"images/s": rate, "least": min(rates[name]), "most": max(rates[name])},
            **{"ours / this": middle[OURS] / rate, "peak GiB": peaks[name]},
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--source", choices=("images", "cached", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps of each contender, the warm-up among them")
    args = parser.parse_args()
    shape = dict(SIZES[args.size])
    if args.steps:
        shape["steps"] = args.steps
    with tempfile.TemporaryDirectory() as temporary:
        paths = prepare(Path(temporary), args.size, args.source != "images")
        columns = ["size", "source", "contender", "images/s", "least", "most", "ours / this", "peak GiB"]
        counted = f"wall clock between log lines, median of {args.rounds} rounds in turns; peak of the largest process"
        table = results.Results("training", columns, counted)
        for cached in {"images": (False,), "cached": (True,), "both": (False, True)}[args.source]:
            compare(table, Path(temporary), args.size, cached, args.rounds, shape, paths)
