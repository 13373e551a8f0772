"""The frozen models of the emoji: a VAE of 64 x 64 pixels to 8 x 8 latents, a tokenizer and a text encoder.

    python -m examples.emoji.make_models --pictures emoji_out/pictures/emoji.jsonl --output emoji_out/models

All three learn from the pictures and captions alone. On two cores: the VAE 20 minutes, the text encoder 5.
"""

import sys

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    from sd.entry import run

    run("examples.emoji.make_models")
    sys.exit()

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from demo.make_models import PIPELINE, make_scheduler
from sd import devices, runtime
from sd.data.images.decode import decode
from sd.data.images.open import open_image
from sd.data.streaming.sample import short_side
from sd.errors import InputError
from sd.files import fsync, publish, temporary_path
from sd.flags.parser import Parser

RESOLUTION = 64
CHANNELS = (16, 32, 64, 128)
# The divergence is a sum over four times the demo's latents; a weight in that proportion, and less as emoji are richer.
KL_WEIGHT = 3e-6


def read_rows(jsonl: Path) -> tuple[list[str], list[Path]]:
    """Captions and files of the pictures."""
    if not jsonl.is_file():
        raise InputError(f"--pictures {jsonl}: no such file; python -m examples.emoji.pictures writes it")
    rows = [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()]
    return [row["caption"] for row in rows], [jsonl.parent / row["image"] for row in rows]


def resized_pictures(files: list[Path]) -> np.ndarray:
    """The pictures as the trainer resizes them, before it crops: uint8 [n, 71, 71, 3]."""
    side = short_side(RESOLUTION)
    pictures = np.empty((len(files), side, side, 3), np.uint8)
    for index, file in enumerate(tqdm(files, desc="reading", unit="picture")):
        crop = decode(open_image(file.read_bytes())).crop((side, side), 0, 0, side)
        pictures[index] = crop.transpose(1, 2, 0)
    return pictures


def make_vae(pictures: np.ndarray, steps: int, batch_size: int, learning_rate: float, seed: int, on_cpu: bool) -> Any:
    """A VAE trained on random crops of the pictures."""
    import paddle

    from demo.make_vae import build_vae, train_vae
    from sd.cpu.layers import speed_up

    paddle.seed(seed)
    vae = build_vae(CHANNELS, norm_num_groups=8, resolution=RESOLUTION)
    if on_cpu:
        speed_up(vae)
    return train_vae(vae, {(RESOLUTION,) * 2: pictures}, steps, batch_size, learning_rate, seed, KL_WEIGHT)


def mean_latents(vae: Any, pictures: np.ndarray) -> np.ndarray:
    """The VAE's mean for the middle of each picture: uint8 [n, h, w, 3], 64 or more a side -> float32 [n, 256]."""
    import paddle

    margin = (pictures.shape[1] - RESOLUTION) // 2
    middles = pictures[:, margin : margin + RESOLUTION, margin : margin + RESOLUTION].transpose(0, 3, 1, 2)
    rows = []
    with paddle.no_grad():
        for first in range(0, len(middles), 64):
            pixel_values = paddle.to_tensor(np.ascontiguousarray(middles[first : first + 64], np.float32) / 127.5 - 1)
            rows.append(vae.encode(pixel_values).latent_dist.mean.flatten(1).numpy())
    return np.concatenate(rows)


def save(layer: Any, folder: Path) -> None:
    """Write weights and configuration to `folder`, which is there whole or not at all."""
    temporary = temporary_path(folder)
    try:
        layer.save_pretrained(str(temporary), safe_serialization=True)
        for file in temporary.iterdir():
            fsync(file)
        shutil.rmtree(folder, ignore_errors=True)
        publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    parser = Parser(description="Make the frozen models of the emoji.")
    parser.add_argument("--pictures", default="emoji_out/pictures/emoji.jsonl", help="JSONL of captions and pictures")
    parser.add_argument("--output", default="emoji_out/models", help="folder to write")
    parser.add_argument("--device", help="cpu, gpu or gpu:N (default: a GPU if there is one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae_steps", type=int, default=4000)
    parser.add_argument("--vae_batch_size", type=int, default=8)
    parser.add_argument("--vae_learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--text_encoder_steps", type=int, default=400)
    parser.add_argument("--text_encoder_batch_size", type=int, default=128)
    parser.add_argument("--parts", nargs="+", default=["text", "vae"], choices=["text", "vae"], help="what to make")
    args = parser.parse_args()

    captions, files = read_rows(Path(args.pictures))
    runtime.prepare(args.device)
    on_cpu = devices.select(args.device).kind == "cpu"
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    pictures = resized_pictures(files)
    if "vae" in args.parts:
        vae = make_vae(pictures, args.vae_steps, args.vae_batch_size, args.vae_learning_rate, args.seed, on_cpu)
        save(vae, output / "vae")
    if "text" in args.parts:
        from ppdiffusers import AutoencoderKL

        from examples.emoji.text import make_tokenizer, train_text_encoder

        tokenizer = make_tokenizer(captions, output / "tokenizer")
        latents = mean_latents(AutoencoderKL.from_pretrained(str(output / "vae")), pictures)
        encoder = train_text_encoder(
            tokenizer, captions, latents, args.text_encoder_steps, args.text_encoder_batch_size, args.seed
        )
        save(encoder, output / "text_encoder")
    make_scheduler().save_pretrained(str(output / "scheduler"))
    (output / "model_index.json").write_text(json.dumps(PIPELINE, indent=2) + "\n", encoding="utf-8")
