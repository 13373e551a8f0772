"""The full-size model through the train script itself: time of a step and peak memory.

    python bench/real_size.py

makes a repository with random weights in the real shapes of Stable Diffusion v1-4 (the tokenizer is a tiny one), packs
a few pictures, and trains the UNet of sd/unet_config.json (860 M parameters) at 256 px, batch 1. Takes about 12 GB of
disk for the time it runs, and as much memory as it reports.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from sd.entry import check

    check()

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
VAE_CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TEXT_CONFIG = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}


def make_repository(folder):
    """vae/, text_encoder/ and tokenizer/ with random weights in `folder`."""
    sys.path.insert(0, str(ROOT))
    import paddle
    from ppdiffusers import AutoencoderKL
    from ppdiffusers.transformers import CLIPTextConfig, CLIPTextModel

    from tests.tiny import make_tokenizer_files

    paddle.seed(0)
    AutoencoderKL(**VAE_CONFIG).save_pretrained(str(folder / "vae"), safe_serialization=True)
    CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG)).save_pretrained(str(folder / "text_encoder"), safe_serialization=True)
    make_tokenizer_files(folder / "tokenizer")


def make_input(folder, count=16, side=320):
    """A JSONL and JPEGs of noise."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        pixels = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"images/{number}.jpg")
        rows.append(json.dumps({"caption": f"picture number {number}", "image": f"images/{number}.jpg"}))
    (folder / "input.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "input.jsonl"


def run(*command):
    """Run one of the toolkit's scripts to its end. Returns its wall-clock seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="make the repository here and keep it (default: a temporary folder)")
    parser.add_argument("--make_only", action="store_true", help="make the repository and the input, train nothing")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--max_steps", type=int, default=3)
    args, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        if not (folder / "vae").is_dir():
            # In a process of its own: what it takes must not count.
            program = "import sys, pathlib; from bench.real_size import make_repository as make; "
            run("-c", program + "make(pathlib.Path(sys.argv[1]))", folder)
        packed = Path(temporary, "packed")
        run("create_pretraining_data.py", "--input_path", make_input(Path(temporary)), "--output_path", packed)
        if args.make_only:
            return
        seconds = run(
            *("train_txt2img_laion400m_trainer.py", "--do_train", "--device", "cpu"),
            *("--output_dir", Path(temporary, "output"), "--pretrained_model_name_or_path", folder),
            *("--tokenizer_name", folder / "tokenizer", "--unet_name_or_path", "sd/unet_config.json"),
            *("--file_list", packed / "filelist" / "custom_dataset.filelist.list", "--resolution", args.resolution),
            *("--per_device_train_batch_size", 1, "--learning_rate", 1e-4, "--max_grad_norm", -1),
            *("--max_steps", args.max_steps, "--logging_steps", 1, "--save_strategy", "no"),
            *("--image_logging_steps", -1, "--seed", 23),
            *more,
        )
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"{args.max_steps} steps with loading in {seconds:.0f} s; peak memory of a process {peak:.1f} GiB")


if __name__ == "__main__":
    main()
