"""Training from images, from cached latents, and from cached latents and text: images/s side by side.

    python bench/latents.py          a UNet small enough to see what the encoders cost, 256 px
    python bench/latents.py full     the UNet of Stable Diffusion (860 M), a few steps: 15 GB of memory
    python bench/latents.py tiny     the models of the quickstart, 32 px

The first two with encoders of v1-4's real size (random weights); all by the scripts themselves, one after the other and
without data workers. What reading costs is measured by itself, beside each.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from sd.entry import check

    check()

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sd import runtime  # noqa: E402

runtime.prepare()

from bench.real_size import make_input, run  # noqa: E402
from sd.processes.pool import die_with_parent  # noqa: E402

SMALL_UNET = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [64, 128],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
# UNet, models (None: v1-4's shapes), side in pixels, batch, images
SIZES = {
    "small": (None, None, 256, 4, 8),
    "full": ("sd/unet_config.json", None, 256, 1, 8),
    "tiny": ("demo/unet_config.json", ROOT / "demo/tiny_sd", 32, 32, 64),
}
LINE = re.compile(r"step (\d+)/\d+ .*?([\d.e+-]+) images/s")
WARM_UP = 2


def measure(name, file_list, folder, args):
    """Images/s of a training run: the median of its steps after the first two."""
    command = [sys.executable, "train_txt2img_laion400m_trainer.py", "--do_train", "--device", args.device]
    command += ["--output_dir", folder / f"output {name}", "--pretrained_model_name_or_path", args.models]
    command += ["--unet_name_or_path", args.unet, "--file_list", file_list, "--resolution", args.resolution]
    command += ["--per_device_train_batch_size", args.batch_size, "--max_steps", args.steps + WARM_UP]
    command += ["--logging_steps", 1, "--save_strategy", "no", "--max_grad_norm", -1, "--seed", 23]
    command += ["--report_to", "none", "--disable_tqdm", True, "--dataloader_num_workers", 0, "--learning_rate", 1e-4]
    ends_too = partial(die_with_parent, os.getpid())  # a run of minutes is not to outlive a measurement that was ended
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, preexec_fn=ends_too)
    steps = LINE.findall(done.stdout + done.stderr)
    if done.returncode or len(steps) < args.steps:
        sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return statistics.median(float(rate) for _, rate in steps[WARM_UP:])


def reading_seconds(file_list, models, resolution, samples=1000):
    """Processor seconds that one sample costs: read, decoded, chosen, drawn and collated."""
    from sd.data.streaming.dataset import TextImagePair, collate
    from sd.diffusion.draws import draw
    from sd.models.loading import load_part

    tokenizer = load_part("tokenizer", str(models), "tokenizer")

    def tokenize(caption):
        return tokenizer(caption, padding="max_length", truncation=True, max_length=77)["input_ids"]

    shape = (4, resolution // 8, resolution // 8)  # a few numbers more or less make no difference
    data = iter(TextImagePair(file_list, tokenize, resolution=resolution, draw=partial(draw, latent_shape=shape)))
    collate([next(data) for _ in range(8)])
    begin = time.process_time()
    for _ in range(samples // 8):
        collate([next(data) for _ in range(8)])
    return (time.process_time() - begin) / (samples // 8 * 8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", nargs="?", choices=SIZES, default="small")
    parser.add_argument("--device", default="cpu", help="cpu, gpu or gpu:N (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="measured, after two to warm up")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        args.unet, args.models, args.resolution, args.batch_size, count = SIZES[args.size]
        if args.unet is None:
            args.unet = folder / "unet_config.json"
            args.unet.write_text(json.dumps(SMALL_UNET))
        if args.models is None:
            args.models = folder / "models"
            program = "import sys, pathlib; from bench.real_size import make_repository as make; "
            run("-c", program + "make(pathlib.Path(sys.argv[1]))", args.models)
        source = make_input(folder, count=count, side=args.resolution + 64)
        run("create_pretraining_data.py", "--input_path", source, "--output_path", folder / "packed")
        images = folder / "packed/filelist/custom_dataset.filelist.list"
        lists = {"images": images}
        for name, more in (("latents", []), ("latents and text", ["--cache_text"])):
            run(
                *("precompute_latents.py", "--file_list", images, "--output_path", folder / name),
                *(
                    "--device",
                    args.device,
                    "--pretrained_model_name_or_path",
                    args.models,
                    "--resolution",
                    args.resolution,
                    *more,
                ),
            )
            lists[name] = folder / name / "filelist/custom_dataset.filelist.list"
        print(f"{args.resolution} px, batch {args.batch_size}, {args.size} UNet, median step")
        print(f"{'training from':<18} {'images/s':>9} {'ratio':>7}   reading an image: ms, share of a step")
        base = None
        for name, file_list in lists.items():
            rate = measure(name, file_list, folder, args)
            base = base or rate
            seconds = reading_seconds(file_list, args.models, args.resolution)
            print(f"{name:<18} {rate:>9.3f} {rate / base:>6.2f}x {1000 * seconds:>21.2f} {seconds * rate:>17.2%}")


if __name__ == "__main__":
    main()
