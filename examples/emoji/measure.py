"""How many drawn pictures are the ones that their captions name: nearest neighbours among the training pictures.

    python -m examples.emoji.measure --captions 300 > captions.txt        prints captions spread over the set
    python -m examples.emoji.measure --samples emoji_out/samples_captions  scores the pictures that eval.py drew of them

Training draws its crops from pictures of 71 pixels, so that the drawn picture may be shifted by up to 4 pixels against
the middle crop: it is shifted by each amount, (2 x 4 + 1)^2 = 81 ways, and the nearest of all training pictures by the
squared distance of the VAE's means counts. By chance 1 of 1,352 is right.
"""

import sys

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    from sd.entry import run

    run("examples.emoji.measure")
    sys.exit()

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from demo.classify import read_samples
from examples.emoji.make_models import mean_latents, read_rows, resized_pictures
from sd import devices, runtime
from sd.errors import InputError
from sd.flags.parser import Parser

MAX_SHIFT = 4


def spread(captions: list[str], count: int) -> list[str]:
    """`count` of the captions, at equal distances in their order."""
    return [captions[index * len(captions) // count] for index in range(count)]


def shifted(picture: np.ndarray) -> np.ndarray:
    """A picture shifted by up to MAX_SHIFT pixels each way, on white: uint8 [h, w, 3] -> [81, h, w, 3]."""
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((MAX_SHIFT,) * 2, (MAX_SHIFT,) * 2, (0, 0)), constant_values=255)
    starts = range(2 * MAX_SHIFT + 1)
    return np.stack([padded[top : top + height, left : left + width] for top in starts for left in starts])


def nearest(vae: Any, pictures: list[np.ndarray], training: np.ndarray) -> np.ndarray:
    """Row of the training picture that is nearest to each picture in any of its shifts: int [n].

    training: float32 [m, d], the VAE's means of the training pictures, of which all are compared.
    """
    rows = np.empty(len(pictures), np.int64)
    norms = np.square(training).sum(1)
    for index, picture in enumerate(tqdm(pictures, desc="searching", unit="picture")):
        latents = mean_latents(vae, shifted(picture))
        distances = np.square(latents).sum(1, keepdims=True) - 2 * latents @ training.T + norms
        rows[index] = distances.min(0).argmin()
    return rows


def main() -> None:
    parser = Parser(description="Share of the drawn emoji whose nearest training picture is the captioned one.")
    parser.add_argument("--pictures", default="emoji_out/pictures/emoji.jsonl", help="JSONL of the training pictures")
    parser.add_argument("--vae", default="emoji_out/models/vae", help="folder of the VAE")
    parser.add_argument("--device", help="cpu, gpu or gpu:N (default: a GPU if there is one)")
    parser.add_argument("--samples", default="emoji_out/samples_captions", help="folder that eval.py wrote")
    parser.add_argument("--captions", type=int, help="print so many captions instead")
    parser.add_argument("--wrong", action="store_true", help="name what the others are nearest to")
    args = parser.parse_args()
    captions, files = read_rows(Path(args.pictures))
    if args.captions:
        print("\n".join(spread(captions, args.captions)))
        return
    pictures, prompts = read_samples(args.samples)
    unknown = sorted(set(prompts) - set(captions))
    if not pictures or unknown:
        problem = f"the caption {unknown[0]!r} is not in {args.pictures}" if unknown else "no pictures of eval.py"
        raise InputError(f"{args.samples}: {problem}; draw the captions that --captions prints")

    runtime.prepare(args.device)
    from ppdiffusers import AutoencoderKL

    from sd.cpu.layers import speed_up

    vae = AutoencoderKL.from_pretrained(args.vae)
    if devices.select(args.device).kind == "cpu":
        speed_up(vae, frozen=True)
    found = [captions[row] for row in nearest(vae, pictures, mean_latents(vae, resized_pictures(files)))]
    right = [name == prompt for name, prompt in zip(found, prompts, strict=True)]
    print(f"{len(pictures)} pictures: {np.mean(right):.1%} are nearest to the captioned one of {len(captions)}")
    if args.wrong:
        for name, prompt in zip(found, prompts, strict=True):
            if name != prompt:
                print(f"{prompt}: nearest to {name}")
