"""Streaming of image-text pairs, samples a second and core: this toolkit beside other ways, for pictures of five sizes.

    KEEP=/tmp/torch_env python -m bench streaming            all ways; some 12 minutes
    python -m bench streaming --ways reference               this toolkit and the reference's method alone
    KEEP=/tmp/torch_env python -m bench streaming --cached   cached latents, beside arrays in a webdataset

JPEGs of quality 90, to crops of 256 and 512 px. Processor time of reading, decoding, resizing, cutting and stacking,
the tokenizer stood in for; the least of several passes in which the ways take turns, each other way in a process of its
own. Beside them the decoding of the JPEGs alone (simplejpeg). webdataset, mosaicml-streaming and Hugging Face datasets
run in the environment of bench/torch_env.sh, in the first two rounds, two passes each.
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
from sd.data.parts.moments import KIND, Manifest, encode_empty_state, encode_payload, manifest_path
from sd.data.parts.part import PartWriter
from sd.data.parts.record import encode_row
from sd.data.streaming.dataset import TextImagePair, collate

SIZES = [(500, 400), (800, 600), (1024, 768), (1600, 1200), (3000, 2000)]
RESOLUTIONS = (256, 512)
TORCH_WAYS, TORCH_ROUNDS = ("webdataset", "mosaic", "datasets"), 2
OURS, DECODE, CACHED = "this toolkit", "JPEG decoding alone", "webdataset of arrays"
COUNTED = "samples a second and core: processor seconds of a pass, the least of {rounds} rounds in turns"


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
    _write_lists(folder)
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for number, jpeg in enumerate(jpegs):
            for suffix, data in (("jpg", jpeg), ("txt", f"a photograph, number {number}".encode())):
                _add(tar, f"{number:06d}.{suffix}", data)
    return jpegs


def _write_lists(folder):
    (folder / "a.filelist").write_text(f"{folder / 'part-000001.gz'}\n")
    (folder / "a.filelist.list").write_text(f"{folder / 'a.filelist'}\n")


def _add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


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
    command += [str(ROOT / "bench/stream_ways.py"), way, str(folder), str(resolution)]
    command += ["1" if way == "reference" else "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode:
        print(f"  {way}: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    actual = json.loads(run.stdout.splitlines()[-1])
    return actual["seconds"] / actual["count"]


def in_turns(calls, rounds):
    """{way: least processor seconds a sample} of `calls`, {way: function}; what fails is left out."""
    actual = {}
    for turn, (name, call) in itertools.product(range(rounds), calls.items()):
        failed, late = name in actual and actual[name] is None, name in (*TORCH_WAYS, CACHED) and turn >= TORCH_ROUNDS
        if failed or late:
            continue
        seconds = call()
        actual[name] = seconds if seconds is None else min(seconds, actual.get(name, seconds))
    return {name: seconds for name, seconds in actual.items() if seconds is not None}


def compare(size, resolution, ways, count, rounds):
    """{way: least processor seconds a sample}."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        jpegs = make_data(folder, size, count)
        calls = {OURS: lambda: ours(folder, resolution, count), DECODE: lambda: decoding(jpegs)}
        return in_turns(calls | {way: lambda way=way: other(way, folder, resolution) for way in ways}, rounds)


def make_latents(folder, resolution, count):
    """`count` records of moments and text states as v1-4's encoders make them: our parts with a manifest, a tar."""
    side, rng = resolution // 8, np.random.default_rng(0)
    manifest = Manifest(
        vae_hash="0" * 64,
        scaling_factor=0.18215,
        resolution=resolution,
        latent_shape=(4, side, side),
        crop="centre",
        text_encoder_hash="0" * 64,
        model_max_length=77,
        empty_state="empty.safetensors",
    )
    arrays = {"moments": (1, 8, side, side), "text_states": (1, 77, 768)}
    arrays = {name: rng.normal(size=shape).astype(np.float16) for name, shape in arrays.items()}
    with PartWriter(folder / "part-000001.gz", kind=KIND) as part:
        for number in range(count):
            part.add(encode_row(f"a photograph, number {number}", encode_payload(**arrays)), resolution, resolution)
        part.notes = {"cache": manifest.id}
    (folder / manifest_path("a.filelist")).write_bytes(manifest.to_bytes())
    (folder / str(manifest.empty_state)).write_bytes(encode_empty_state(arrays["text_states"][0]))
    _write_lists(folder)
    with tarfile.open(folder / "latents.tar", "w") as tar:
        for number, (name, array) in itertools.product(range(count), arrays.items()):
            file = io.BytesIO()
            np.save(file, array[0])
            _add(tar, f"{number:06d}.{name}.npy", file.getvalue())


def cached(count, rounds):
    """Rows of cached latents with text states."""
    columns = ["latents", OURS, CACHED, "x webdataset"]
    table = results.Results("streaming cached", columns, COUNTED.format(rounds=rounds))
    for resolution in RESOLUTIONS:
        rates = {name: 1 / value for name, value in compare_cached(resolution, count, rounds).items()}
        if CACHED in rates:
            rates["x webdataset"] = rates[OURS] / rates[CACHED]
        table.add(latents=f"{resolution} px, with text", **rates)


def compare_cached(resolution, count, rounds):
    """{way: least processor seconds a record}."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_latents(folder, resolution, count)
        calls = {OURS: lambda: ours(folder, resolution, count), CACHED: lambda: other("latents", folder, resolution)}
        return in_turns(calls, rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="records of each size; default 64")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the least time counts; default 5")
    parser.add_argument("--ways", nargs="*", default=["reference", *TORCH_WAYS], help="what else to measure")
    parser.add_argument("--cached", action="store_true", help="cached latents in the place of images")
    arguments = parser.parse_args()
    threadpool_limits(1)
    logging.getLogger("sd.data").setLevel(logging.WARNING)
    stream_ways.keep_freed_memory()
    if arguments.cached:
        return cached(arguments.images, arguments.rounds)
    ratios = {f"x {way}": way for way in ("reference", "webdataset", DECODE)}
    columns = ["picture", OURS, *arguments.ways, DECODE, *ratios]
    table = results.Results("streaming", columns, COUNTED.format(rounds=arguments.rounds))
    for resolution, size in itertools.product(RESOLUTIONS, SIZES):
        if min(size) < resolution:
            continue
        seconds = compare(size, resolution, arguments.ways, arguments.images, arguments.rounds)
        rates = {name: 1 / value for name, value in seconds.items()}
        rates |= {name: rates[OURS] / rates[way] for name, way in ratios.items() if way in rates}
        table.add(picture=f"{size[0]} x {size[1]} -> {resolution}", **rates)
