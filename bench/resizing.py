"""Packing with --resize, images/s a core: decode, short side to 512 px, JPEG of quality 95, beside img2dataset.

    python -m bench resizing --img2dataset /tmp/i2d/bin/python

--img2dataset: the Python of an environment made by `python3.11 -m venv /tmp/i2d && /tmp/i2d/bin/pip install
img2dataset==1.47.0`, whose Resizer, as it comes (OpenCV, areas), makes pictures of the same size and quality. Processor
seconds of a pass, the least of some rounds in turns.
"""

import argparse
import io
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from bench import results, stream_ways
from bench.results import ROOT
from bench.streaming import SIZES, photograph
from sd.data.images.decode import shrink
from sd.data.images.open import open_image

SIDE, QUALITY = 512, 95
OURS, OTHER = "this toolkit", "img2dataset"


def ours(files):
    """[processor seconds, bytes of all that was made]."""
    started, sizes = time.process_time(), []
    for data in files:
        sizes.append(len(shrink(open_image(data), SIDE, QUALITY)[0]))
    return [time.process_time() - started, sum(sizes)]


def theirs(python, folder):
    """As `ours`, of a process of its own."""
    command = [python, ROOT / "bench/img2dataset_resizer.py", folder, SIDE, QUALITY]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{python}: {run.stderr.strip().splitlines()[-1]}")
    return json.loads(run.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img2dataset", metavar="PYTHON", help="the Python of an environment with img2dataset")
    parser.add_argument("--images", type=int, default=24, help="of each size; default 24")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    threadpool_limits(1)
    stream_ways.keep_freed_memory()
    columns = ["picture", OURS, OTHER, "x img2dataset", "bytes, x img2dataset"]
    counted = f"images a second and core, to a short side of {SIDE} px, quality {QUALITY}: processor seconds in turns"
    table = results.Results("resizing", columns, counted)
    for size in SIZES[1:]:
        with tempfile.TemporaryDirectory() as temporary:
            folder, rng, files = Path(temporary), np.random.default_rng(0), []
            for number in range(arguments.images):
                if number < 4:
                    buffer = io.BytesIO()
                    photograph(rng, *size).save(buffer, "JPEG", quality=90)
                    files.append(buffer.getvalue())
                else:
                    files.append(files[number % 4])
                (folder / f"{number:03d}.jpg").write_bytes(files[number])
            best = {OURS: [float("inf")]}
            for _ in range(arguments.rounds):
                best[OURS] = min(best[OURS], ours(files))
                if arguments.img2dataset:
                    best[OTHER] = min(best.get(OTHER, [float("inf")]), theirs(arguments.img2dataset, folder))
        row = {name: arguments.images / seconds for name, (seconds, _) in best.items()}
        if OTHER in best:
            row["x img2dataset"] = row[OURS] / row[OTHER]
            row["bytes, x img2dataset"] = best[OURS][1] / best[OTHER][1]
        table.add(picture=f"{size[0]} x {size[1]}", **row)
