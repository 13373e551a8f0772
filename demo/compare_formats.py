"""Scores what `sh demo/buckets.sh` has drawn, by model and format, and puts some of it side by side.

    python -m demo.compare_formats buckets_out

prints a table and writes `buckets_out/grid.png`.
"""

import sys

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    from sd.entry import run

    run("demo.compare_formats")
    sys.exit()

import argparse
from pathlib import Path

from demo.classify import read_samples, score
from sd.sampling.grid import labelled_table

MODELS = ("buckets", "squares")
FORMATS = ("24x40", "32x32", "40x24")
SHOWN = 5  # pictures of each model and format in a row


def main():
    parser = argparse.ArgumentParser(description="Score and show what demo/buckets.sh has drawn.")
    parser.add_argument("folder", nargs="?", default="buckets_out")
    folder = Path(parser.parse_args().folder)
    rows, labels = [], []
    print("| trained with | format | colour | background | whole shape | all three |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in MODELS:
        for size in FORMATS:
            pictures, captions = read_samples(folder / f"{model}-{size}")
            shares = score(pictures, captions)
            told = " | ".join(f"{shares[name]:.1%}" for name in ("colour", "background", "shape", "all"))
            print(f"| {model} | {size} | {told} |")
            rows.append(pictures[:: len(pictures) // (2 * SHOWN)][: 2 * SHOWN])
            labels.append(f"{model}, {size}: {shares['shape']:.0%} whole shapes")
    sheet = labelled_table(rows, labels, title="the same captions and seeds, 600 steps each")
    sheet.save(folder / "grid.png")
    print(folder / "grid.png")
