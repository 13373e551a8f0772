"""Scores what `sh demo/buckets.sh` has drawn, by model and format, and puts some of it side by side.

    python -m demo.compare_formats buckets_out

prints a table and writes `buckets_out/grid.png`. Beside colour and background it counts the shapes that are whole:
those that no edge of the picture cuts. The kind of a shape is not counted, since the demo's VAE, made on squares of
32 px with the shape in the middle, blurs it in other formats: true pictures of 24 x 40 that it has encoded and decoded
are recognised by demo.classify in none of 72 cases.
"""

import sys

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    from sd.entry import run

    run("demo.compare_formats")
    sys.exit()

from pathlib import Path

import numpy as np

from demo.classify import MIN_AREA, coverage, read_samples, score
from sd.flags.parser import Parser
from sd.sampling.grid import labelled_table

MODELS = ("buckets", "squares")
FORMATS = ("24x40", "32x32", "40x24")
SHOWN = 12  # pictures of each model and format in a row


def is_whole(picture):
    """Whether a picture, uint8 [H,W,3], shows something coloured that no edge cuts."""
    covered = coverage(picture)
    edges = np.concatenate([covered[0], covered[-1], covered[:, 0], covered[:, -1]])
    return bool(covered.mean() >= MIN_AREA and not (edges > 0.5).any())


def main():
    parser = Parser(description="Score and show what demo/buckets.sh has drawn.")
    parser.add_argument("folder", nargs="?", default="buckets_out")
    folder = Path(parser.parse_args().folder)
    rows, labels = [], []
    print("| trained with | format | pictures | colour | background | whole |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in MODELS:
        for size in FORMATS:
            pictures, captions = read_samples(folder / f"{model}-{size}")
            shares = score(pictures, captions)
            whole = np.mean([is_whole(picture) for picture in pictures])
            reported = f"{shares['colour']:.0%} | {shares['background']:.0%} | {whole:.0%}"
            print(f"| {model} | {size} | {len(pictures)} | {reported} |")
            rows.append(pictures[:: max(1, len(pictures) // SHOWN)][:SHOWN])
            labels.append(f"{model}, {size}: {whole:.0%} whole")
    labelled_table(rows, labels).save(folder / "grid.png")
    print(folder / "grid.png")
