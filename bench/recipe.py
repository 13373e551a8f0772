"""What the published v1 recipe takes: disk of the caches and time of each stage.

Worked out from measured bytes, counted operations and stated rates:

    python bench/recipe.py --gpus 8
    python bench/recipe.py --gpus 256 --peak_tflops 989

Bytes are those of parts written here, of noise in the shapes of v1-4: moments and text states have no redundancy to
speak of. Rates: once by the counted operations at a stated share of the GPU's bf16 peak, once by what others measured
with cached latents (mosaicml/diffusion, README: 8 A100, UNet of Stable Diffusion 2).
"""

import argparse
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from sd.entry import check

    check()

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from bench.operations import TEXT_LENGTH, part_macs, step_flops  # noqa: E402
from bench.real_size import TEXT_CONFIG, VAE_CONFIG  # noqa: E402
from sd.data.parts.moments import KIND, encode_payload  # noqa: E402
from sd.data.parts.part import PartWriter  # noqa: E402
from sd.data.parts.record import encode_row  # noqa: E402
from sd.errors import run_script  # noqa: E402
from sd.flags.arguments import check_range  # noqa: E402

BATCH = 2048
# The steps of the v1-1 to v1-4 checkpoints, from their model cards: name, side in pixels, steps.
STAGES = [("v1-1, first part", 256, 237_000), ("v1-1, second part", 512, 194_000), ("v1-2", 512, 515_000)]
STAGES += [("v1-4 (from v1-2)", 512, 225_000)]
MEASURED_A100 = {256: 1100 / 8, 512: 290 / 8}  # images/s of one GPU
CAPTION = "a caption of about as many characters as one of LAION has"


def bytes_per_record(resolution, with_text, rows=200):
    """Bytes of a cached part and its index per row."""
    rng = np.random.default_rng(0)
    channels, side = VAE_CONFIG["latent_channels"], resolution // 8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "part-000001.gz")
        with PartWriter(path, kind=KIND) as part:
            for _ in range(rows):
                # A trained VAE's means have a deviation of 1 / scaling_factor; its variances are tiny and vary little.
                means = rng.standard_normal((1, channels, side, side)) / VAE_CONFIG["scaling_factor"]
                log_variances = rng.normal(-18, 2, means.shape)
                moments = np.concatenate([means, log_variances], axis=1).astype(np.float16)
                states = rng.standard_normal((1, TEXT_LENGTH, TEXT_CONFIG["hidden_size"])).astype(np.float16)
                payload = encode_payload(moments, states if with_text else None)
                part.add(encode_row(CAPTION, payload), resolution, resolution)
        return sum(file.stat().st_size for file in Path(folder).iterdir()) / rows


def print_disk(records):
    print(f"disk of a cache of {records:,} records, one crop each")
    print("  px  text  bytes a record     TB")
    for resolution in (256, 512):
        for with_text in (False, True):
            each = bytes_per_record(resolution, with_text)
            print(f"{resolution:>4}  {'yes' if with_text else 'no':<4}  {each:>14,.0f}  {each * records / 1e12:>5.1f}")


def print_times(args):
    rate = args.peak_tflops * 1e12 * args.share
    print(f"\n{args.gpus} GPUs at {args.share:.0%} of {args.peak_tflops:g} TFLOP/s each, batch {BATCH}; days")
    print(f"{'stage':<18} {'px':>4} {'steps':>8} {'images':>8} {'images':>8} {'latents':>8} {'measured':>9}")
    for name, resolution, steps in STAGES:
        images = steps * BATCH
        days = [images * step_flops(resolution, vae=vae) / rate / args.gpus / 86400 for vae in (True, False)]
        measured = images / MEASURED_A100[resolution] / args.gpus / 86400
        print(
            f"{name:<18} {resolution:>4} {steps:>8,} {images / 1e6:>6.0f} M {days[0]:>8.1f} {days[1]:>8.1f} "
            f"{measured:>9.1f}"
        )
    for resolution in (256, 512):
        once = args.records * 2 * part_macs("vae", resolution) / rate / args.gpus / 86400
        print(f"making the cache of {args.records:,} records once at {resolution} px: {once:.1f} days")
    print("\nshare of an A100's 312 TFLOP/s that the measured rates come to, by the operations counted here:")
    for resolution, images in MEASURED_A100.items():
        flops = step_flops(resolution, vae=False, text_encoder=False) * images
        print(f"{resolution:>4} px: {images:.1f} images/s, {flops / 1e12:.0f} TFLOP/s, {flops / 312e12:.0%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=400_000_000, help="of the data set (default: LAION-400M)")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--peak_tflops", type=float, default=312, help="TFLOP/s of a GPU in bf16 (default: A100)")
    parser.add_argument("--share", type=float, default=0.25, help="of the peak that training reaches")
    args = parser.parse_args()
    check_range("peak_tflops", args.peak_tflops, low=1, high=100_000)  # a card of today; 312e12 is in FLOP/s
    check_range("share", args.share, above=0, high=1)
    for name in ("records", "gpus"):
        check_range(name, getattr(args, name), low=1)
    from sd.logs import import_quietly

    import_quietly()
    print_disk(args.records)
    print_times(args)


if __name__ == "__main__":
    run_script(main)
