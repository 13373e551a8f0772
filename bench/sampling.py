"""Sampling: beside diffusers on PyTorch; and what it costs that a picture has the same bits alone and in a batch.

    python -m bench sampling                 the demo's models with a random UNet, by batch size
    python -m bench sampling CHECKPOINT      a trained one
    KEEP=/tmp/torch_env python -m bench sampling --torch demo     beside diffusers on PyTorch: 72 pictures of 32 px
    KEEP=/tmp/torch_env python -m bench sampling --torch full     a picture of 256 px, models of v1-4's shapes; 12 GB

By batch size: seconds for one picture and for 16 when the UNet sees batches of 1, 2, 4, 8 and 16, the last batch
filled up; and whether the bits of a picture change from one batch size to another. Beside PyTorch: both draw in turns,
texts encoded and pictures decoded, weights random.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.results import ROOT, Results
from sd import devices, runtime

DEMO = ROOT / "demo"
COUNT, STEPS, REPEATS = 16, 10, 3
BESIDE_TORCH = {
    "demo": {"count": 72, "batch": 36, "steps": 20, "guidance": 2.0, "side": 32, "length": 16},
    "full": {"count": 1, "batch": 1, "steps": 3, "guidance": 7.5, "side": 256, "length": 77},
}
PROMPT = "a red circle on a black background"


def load(checkpoint=None, unet_config=DEMO / "unet_config.json", folder=DEMO / "tiny_sd"):
    """(UNet, VAE, text encoder, tokenizer, side in pixels)."""
    from sd.cpu.layers import speed_up
    from sd.models.loading import load_component, random_unet
    from sd.sampling.models import load_models
    from sd.sampling.pipeline import vae_factor

    if checkpoint:
        models = load_models(checkpoint)
        return models.unet, models.vae, models.text_encoder, models.tokenizer, models.side
    unet = random_unet(unet_config)
    for parameter in unet.conv_out.parameters():  # zero to begin with, and would hide every difference
        parameter.set_value(np.random.default_rng(0).standard_normal(parameter.shape).astype("float32") * 0.05)
    components = [load_component(name, str(folder), name) for name in ("vae", "text_encoder", "tokenizer")]
    if devices.current().kind == "cpu":
        for layer in (unet, *components[:2]):
            speed_up(layer, frozen=True)
    return unet, *components, unet.config.sample_size * vae_factor(components[0])


def draw(components, side, count, batch_size, steps=STEPS, guidance=7.5, repeats=REPEATS):
    """((processor seconds, those of the clock), pictures) of the quickest of some drawings of `count` pictures."""
    from sd.sampling.pipeline import Networks, draw_images, make_scheduler

    best = (float("inf"), float("inf"))
    for _ in range(repeats):
        processor, clock = time.process_time(), time.perf_counter()
        images = draw_images(
            Networks(*components),
            [PROMPT] * count,
            seeds=range(count),
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=guidance,
            scheduler=make_scheduler("ddim"),
            batch_size=batch_size,
        )
        best = min(best, (time.process_time() - processor, time.perf_counter() - clock))
    return best, images


def by_batch_size(checkpoint, device):
    """A row for each batch size of the UNet."""
    from sd.sampling.pipeline import default_batch_size

    *components, side = load(checkpoint)
    chosen = default_batch_size(components[0], components[1], side, side)
    counted = f"wall clock, the least of {REPEATS}; {side} x {side} px, {STEPS} DDIM steps, guidance 7.5"
    columns = ["UNet batch", "s, one picture", f"s, {COUNT} pictures", "values unlike batch 1"]
    table, first = Results("sampling", columns, counted, {"device": device, "batch by default": chosen}), None
    for batch_size in (1, 2, 4, 8, 16):
        (one, _), (many, images) = (draw(components, side, count, batch_size) for count in (1, COUNT))
        first = images if first is None else first
        row = {"UNet batch": batch_size, "s, one picture": one[1], f"s, {COUNT} pictures": many[1]}
        table.add(**row, **{"values unlike batch 1": float((images != first).mean())})


def beside_torch(size, device, rounds):
    """A row for each round, in which both draw."""
    settings = BESIDE_TORCH[size]
    threads = int(os.environ.get("MKL_NUM_THREADS", 1))
    counted = f"seconds of {settings}, DDIM, on {threads} threads"
    columns = ["round", "s", "s, PyTorch", "processor s", "processor s, PyTorch", "x PyTorch"]
    with tempfile.TemporaryDirectory() as temporary:
        unet_config, folder = DEMO / "unet_config.json", DEMO / "tiny_sd"
        if size == "full":
            from bench.full_size import make_models

            unet_config, folder = ROOT / "sd/unet_config.json", Path(temporary)
            make_models(folder)
        command = ["sh", ROOT / "bench/torch_env.sh", ROOT / "bench/torch_sampling.py", unet_config, folder]
        command.append(json.dumps(settings | {"threads": threads}))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as torch:
            *components, _ = load(None, unet_config, folder)
            if torch.stdout.readline().strip() != "ready":
                raise SystemExit("diffusers on PyTorch did not start; its message stands above")
            table = Results(f"sampling {size}", columns, counted, {"device": device})
            for number in range(rounds + 1):
                ours, _ = draw(
                    components, settings["side"], settings["count"], settings["batch"], settings["steps"],
                    settings["guidance"], repeats=1,
                )  # fmt: skip
                torch.stdin.write("draw\n")
                torch.stdin.flush()
                theirs = json.loads(torch.stdout.readline())
                if number == 0:  # of both the first one makes what later ones find made
                    continue
                row = {"round": number, "s": ours[1], "s, PyTorch": theirs[1], "processor s": ours[0]}
                table.add(**row, **{"processor s, PyTorch": theirs[0], "x PyTorch": theirs[1] / ours[1]})
            torch.stdin.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--device", help="cpu, gpu or gpu:N (default: a GPU if there is one)")
    parser.add_argument("--torch", choices=BESIDE_TORCH, help="beside diffusers on PyTorch, at this size")
    parser.add_argument("--rounds", type=int, default=5, help="of --torch, behind a first one that is not counted")
    args = parser.parse_args()
    runtime.prepare(args.device)
    from sd.logs import import_quietly

    import_quietly()
    device = devices.describe(devices.select(args.device))
    if args.torch:
        beside_torch(args.torch, device, args.rounds)
    else:
        by_batch_size(args.checkpoint, device)
