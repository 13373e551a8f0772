"""What it costs that a picture has the same bits alone and in a batch: one picture, and many, by UNet batch size.

    python bench/sampling.py                 the demo's models with a random UNet
    python bench/sampling.py CHECKPOINT      a trained one

Side by side in one process, the best of three each: seconds for one picture and for 16 when the UNet sees batches of
1, 2, 4, 8 and 16, the last batch filled up; and whether the bits of a picture change from one batch size to another.
"""

import argparse
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from sd.entry import check

    check()

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sd import devices, runtime

runtime.prepare(devices.requested(sys.argv[1:]))

from sd.logs import import_quietly  # noqa: E402

import_quietly()

import numpy as np  # noqa: E402

from sd.models.loading import random_unet  # noqa: E402
from sd.sampling.models import load_models  # noqa: E402
from sd.sampling.pipeline import default_batch_size, draw_images, make_scheduler, vae_factor  # noqa: E402

DEMO = Path(__file__).resolve().parent.parent / "demo"
COUNT, STEPS, REPEATS = 16, 10, 3


def load(checkpoint):
    """(UNet, VAE, text encoder, tokenizer, side in pixels)."""
    if checkpoint:
        models = load_models(checkpoint)
        return models.unet, models.vae, models.text_encoder, models.tokenizer, models.side
    from sd.models.loading import load_part

    unet = random_unet(DEMO / "unet_config.json")
    for parameter in unet.conv_out.parameters():  # zero to begin with, and would hide every difference
        parameter.set_value(np.random.default_rng(0).standard_normal(parameter.shape).astype("float32") * 0.05)
    parts = [load_part(part, str(DEMO / "tiny_sd"), part) for part in ("vae", "text_encoder", "tokenizer")]
    return unet, *parts, unet.config.sample_size * vae_factor(parts[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--device", help="cpu, gpu or gpu:N (default: a GPU if there is one)")
    args = parser.parse_args()
    print(devices.describe(devices.select(args.device)))
    *parts, side = load(args.checkpoint)
    print(f"{side} x {side} pixels, {STEPS} DDIM steps, guidance 7.5, best of {REPEATS}")
    print(f"chosen by itself: batches of {default_batch_size(parts[0], parts[1], side, side)}")
    print("UNet batch  one picture  16 pictures  a picture's bits as with batches of 1")
    first = None
    for batch_size in (1, 2, 4, 8, 16):
        seconds = {}
        for count in (1, COUNT):
            best = float("inf")
            for _ in range(REPEATS):
                begin = time.perf_counter()
                images = draw_images(
                    *parts,
                    ["a red circle on a black background"] * count,
                    seeds=range(count),
                    height=side,
                    width=side,
                    num_inference_steps=STEPS,
                    scheduler=make_scheduler("ddim"),
                    batch_size=batch_size,
                )
                best = min(best, time.perf_counter() - begin)
            seconds[count] = best
        first = images if first is None else first
        same = "same" if (images == first).all() else f"{(images != first).mean():.3%} of the values differ"
        print(f"{batch_size:10}  {seconds[1]:9.3f} s  {seconds[COUNT]:9.3f} s  {same}")


if __name__ == "__main__":
    main()
