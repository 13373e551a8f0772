"""Sampling: what it costs that a picture has the same bits alone and in a batch, by batch size of the UNet.

    python -m bench sampling                 the demo's models with a random UNet
    python -m bench sampling CHECKPOINT      a trained one

Seconds for one picture and for 16 when the UNet sees batches of 1, 2, 4, 8 and 16, the last batch filled up; and
whether the bits of a picture change from one batch size to another.
"""

import argparse
import time

import numpy as np

from bench.results import ROOT, Results
from sd import devices, runtime

DEMO = ROOT / "demo"
COUNT, STEPS, REPEATS = 16, 10, 3


def load(checkpoint):
    """(UNet, VAE, text encoder, tokenizer, side in pixels)."""
    from sd.models.loading import load_part, random_unet
    from sd.sampling.models import load_models
    from sd.sampling.pipeline import vae_factor

    if checkpoint:
        models = load_models(checkpoint)
        return models.unet, models.vae, models.text_encoder, models.tokenizer, models.side
    unet = random_unet(DEMO / "unet_config.json")
    for parameter in unet.conv_out.parameters():  # zero to begin with, and would hide every difference
        parameter.set_value(np.random.default_rng(0).standard_normal(parameter.shape).astype("float32") * 0.05)
    components = [load_part(name, str(DEMO / "tiny_sd"), name) for name in ("vae", "text_encoder", "tokenizer")]
    return unet, *components, unet.config.sample_size * vae_factor(components[0])


def draw(components, side, count, batch_size):
    """(seconds, pictures) of the quickest of three drawings of `count` pictures."""
    from sd.sampling.pipeline import draw_images, make_scheduler

    best = float("inf")
    for _ in range(REPEATS):
        begin = time.perf_counter()
        images = draw_images(
            *components,
            ["a red circle on a black background"] * count,
            seeds=range(count),
            height=side,
            width=side,
            num_inference_steps=STEPS,
            scheduler=make_scheduler("ddim"),
            batch_size=batch_size,
        )
        best = min(best, time.perf_counter() - begin)
    return best, images


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--device", help="cpu, gpu or gpu:N (default: a GPU if there is one)")
    args = parser.parse_args()
    runtime.prepare(args.device)
    from sd.logs import import_quietly

    import_quietly()
    from sd.sampling.pipeline import default_batch_size

    device = devices.describe(devices.select(args.device))
    *components, side = load(args.checkpoint)
    chosen = default_batch_size(components[0], components[1], side, side)
    counted = f"wall clock, the least of {REPEATS}; {side} x {side} px, {STEPS} DDIM steps, guidance 7.5"
    columns = ["UNet batch", "s, one picture", f"s, {COUNT} pictures", "values unlike batch 1"]
    table, first = Results("sampling", columns, counted, {"device": device, "batch by default": chosen}), None
    for batch_size in (1, 2, 4, 8, 16):
        (one, _), (many, images) = (draw(components, side, count, batch_size) for count in (1, COUNT))
        first = images if first is None else first
        row = {"UNet batch": batch_size, "s, one picture": one, f"s, {COUNT} pictures": many}
        table.add(**row, **{"values unlike batch 1": float((images != first).mean())})
