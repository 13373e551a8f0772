"""Streaming of image-text pairs, samples a second and core: this toolkit beside other ways, for pictures of five sizes.

    KEEP=/tmp/torch_env python -m bench streaming            all ways
    python -m bench streaming --ways reference               this toolkit and the reference's method alone

JPEGs of quality 90, to crops of 256 and 512 px. Processor time of reading, decoding, resizing, cutting and stacking,
the tokenizer stood in for; the least of several passes in which the ways take turns, each other way in a process of its
own. Beside them the decoding of the JPEGs alone (simplejpeg). webdataset, mosaicml-streaming and Hugging Face datasets
run in the environment of bench/torch_env.sh with these packages added. Writes bench/results/DATE_streaming.json.
"""

import argparse
import gzip
import io
import itertools
import json
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image
from threadpoolctl import threadpool_limits

from bench import results, stream_ways
from bench.results import ROOT
from sd.data.parts.part import PartWriter
from sd.data.parts.record import encode_row
from sd.data.streaming.dataset import TextImagePair, collate

SIZES = [(500, 400), (800, 600), (1024, 768), (1600, 1200), (3000, 2000)]
RESOLUTIONS = (256, 512)
TORCH_WAYS = ("webdataset", "mosaic", "datasets")
OURS, DECODE = "this toolkit", "JPEG decoding alone"


def photograph(rng, width, height):
    """A picture with detail at every scale, as a photograph has."""
    pixels = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 10):
        for channel in range(3):
            grid = Image.fromarray(rng.normal(size=(2**octave, 2**octave)).astype(np.float32))
            pixels[..., channel] += 112 * 0.65**octave * np.asarray(grid.resize((width, height), Image.BICUBIC))
    return Image.fromarray(np.clip(128 + pixels, 0, 255).astype(np.uint8))


def make_data(folder, size, count, kinds=4):
    """`count` records of a size: our parts, one gzip stream, a tar. A few pictures come again and again."""
    rng, jpegs = np.random.default_rng(0), []
    for _ in range(kinds):
        buffer = io.BytesIO()
        photograph(rng, *size).save(buffer, "JPEG", quality=90)
        jpegs.append(buffer.getvalue())
    jpegs = [jpegs[number % kinds] for number in range(count)]
    rows = [encode_row(f"a photograph, number {number}", jpeg) for number, jpeg in enumerate(jpegs)]
    with PartWriter(folder / "part-000001.gz") as part:
        for row in rows:
            part.add(row, *size)
    (folder / "stream.gz").write_bytes(gzip.compress(b"".join(rows), 9))
    (folder / "a.filelist").write_text(f"{folder / 'part-000001.gz'}\n")
    (folder / "a.filelist.list").write_text(f"{folder / 'a.filelist'}\n")
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for number, jpeg in enumerate(jpegs):
            for suffix, data in (("jpg", jpeg), ("txt", f"a photograph, number {number}".encode())):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return jpegs


def ours(folder, resolution, count):
    data = TextImagePair(
        str(folder / "a.filelist.list"), stream_ways.tokenize, resolution=resolution, batch_size=stream_ways.BATCH
    )
    samples, started = iter(data), time.process_time()
    for _ in range(count // stream_ways.BATCH):
        collate(list(itertools.islice(samples, stream_ways.BATCH)))
    return (time.process_time() - started) / count


def decoding(jpegs):
    started = time.process_time()
    for jpeg in jpegs:
        simplejpeg.decode_jpeg(jpeg)
    return (time.process_time() - started) / len(jpegs)


def other(way, folder, resolution):
    """Processor seconds a sample of a way in a process of its own; None where its package is not installed."""
    command = [sys.executable] if way == "reference" else ["sh", str(ROOT / "bench/torch_env.sh")]
    command += [str(ROOT / "bench/stream_ways.py"), way, str(folder), str(resolution), "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode:
        print(f"  {way}: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    found = json.loads(run.stdout.splitlines()[-1])
    return found["seconds"] / found["count"]


def compare(size, resolution, ways, count, rounds):
    """{way: least processor seconds a sample}."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        jpegs = make_data(folder, size, count)
        calls = {OURS: lambda: ours(folder, resolution, count), DECODE: lambda: decoding(jpegs)}
        calls |= {way: lambda way=way: other(way, folder, resolution) for way in ways}
        found = {}
        for _, (name, call) in itertools.product(range(rounds), calls.items()):
            if name in found and found[name] is None:
                continue
            seconds = call()
            found[name] = seconds if seconds is None else min(seconds, found.get(name, seconds))
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="records of each size; default 64")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the least time counts; default 5")
    parser.add_argument("--ways", nargs="*", default=["reference", *TORCH_WAYS], help="what else to measure")
    arguments = parser.parse_args()
    threadpool_limits(1)
    logging.getLogger("sd.data").setLevel(logging.WARNING)
    stream_ways.keep_freed_memory()
    columns = ["picture", OURS, *arguments.ways, DECODE, "x the reference"]
    counted = f"samples a second and core: processor seconds of a pass, the least of {arguments.rounds} rounds in turns"
    table = results.Results("streaming", columns, counted)
    for resolution, size in itertools.product(RESOLUTIONS, SIZES):
        if min(size) < resolution:
            continue
        seconds = compare(size, resolution, arguments.ways, arguments.images, arguments.rounds)
        rates = {name: 1 / value for name, value in seconds.items()}
        if "reference" in rates:
            rates["x the reference"] = rates[OURS] / rates["reference"]
        table.add(picture=f"{size[0]} x {size[1]} -> {resolution}", **rates)
