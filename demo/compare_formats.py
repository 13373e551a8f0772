"""Scores what `sh demo/buckets.sh` has drawn, by model and format, and puts some of it side by side.

    python -m demo.compare_formats buckets_out

prints a table and writes `buckets_out/grid.png`. A picture is right where demo.classify sees the colour, the shape and
the background of its caption, and whole where no edge of the picture cuts what is coloured. What the VAE makes of true
pictures is scored too: no model draws better.
"""

import sys

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    from sd.entry import run

    run("demo.compare_formats")
    sys.exit()

from pathlib import Path

import numpy as np

from demo.classify import classify, coverage, covers_enough, read_samples
from demo.shapes import ALL_LABELS, caption_of, draw, labels_of, sizes_of
from sd import runtime
from sd.flags.aspect import format_size
from sd.flags.parser import Parser
from sd.sampling.grid import labelled_table

MODELS = ("buckets", "squares")
FORMATS = "24x40,32x32,40x24"
NUM_TRUE = 360  # true pictures of each format
SEED = 77  # of true pictures that neither VAE nor models were trained on
# The captions in the grid: each colour on both backgrounds, and so that each shape comes four times.
SHOWN = [ALL_LABELS[6 * colour + (2 * colour + odd * 3) % 6] for colour in range(6) for odd in range(2)]


def is_whole(picture):
    """Whether a picture, uint8 [H,W,3], shows something coloured that no edge cuts."""
    covered = coverage(picture)
    edges = np.concatenate([covered[0], covered[-1], covered[:, 0], covered[:, -1]])
    return bool(covers_enough(covered) and not (edges > 0.5).any())


def shares_of(pictures, captions):
    """Shares (0..1) of pictures whose colour, shape and background are as captioned, all three, which are whole, and
    which are both."""
    right = np.array(
        [np.equal(classify(picture), labels_of(text)) for picture, text in zip(pictures, captions, strict=True)]
    )
    whole = np.array([is_whole(picture) for picture in pictures])
    all_right = right.all(axis=1)
    return [*right.mean(axis=0), all_right.mean(), whole.mean(), (all_right & whole).mean()]


def true_pictures(size):
    """(pictures, captions): drawings of (width, height) with every caption in turn."""
    rng = np.random.default_rng(SEED)
    labels = [ALL_LABELS[number % len(ALL_LABELS)] for number in range(NUM_TRUE)]
    return [draw(*names, rng, size) for names in labels], [caption_of(*names) for names in labels]


def through_vae(pictures, folder):
    """Pictures [H,W,3] encoded and decoded by the VAE of a folder."""
    from ppdiffusers import AutoencoderKL

    from sd.sampling.pipeline import reconstruct

    return reconstruct(AutoencoderKL.from_pretrained(str(folder)), np.stack(pictures).transpose(0, 3, 1, 2))


def _row(name, size, pictures, captions):
    shares = shares_of(pictures, captions)
    print("| " + " | ".join([name, size, str(len(pictures)), *(f"{share:.1%}" for share in shares)]) + " |", flush=True)
    return shares


def main():
    parser = Parser(description="Score and show what demo/buckets.sh has drawn.")
    parser.add_argument("folder", nargs="?", default="buckets_out")
    parser.add_argument("--vae", default="demo/tiny_sd/vae", help="folder of the VAE that the models were trained with")
    args = parser.parse_args()
    folder = Path(args.folder)
    runtime.prepare("cpu")
    print("| pictures of | format | pictures | colour | shape | background | all three | whole | both |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for size in sizes_of(FORMATS):
        pictures, captions = true_pictures(size)
        _row("the data", format_size(size), pictures, captions)
        _row("the data, through the VAE", format_size(size), through_vae(pictures, args.vae), captions)
    rows, labels = [], []
    for model in MODELS:
        for size in FORMATS.split(","):
            pictures, captions = read_samples(folder / f"{model}-{size}")
            *_, right, whole, _ = _row(model, size, pictures, captions)
            rows.append([pictures[captions.index(caption_of(*names))] for names in SHOWN])
            labels.append(f"{model}, {size}: {right:.0%} right, {whole:.0%} whole")
    labelled_table(rows, labels).save(folder / "grid.png")
    print(folder / "grid.png")
