"""Packing: images/s a core and bytes, beside the reference's method in our words; memory on long input.

python -m bench packing                      10,000 JPEGs of about 80 KB, both ways, twice
python -m bench packing --memory 10000000    peak memory of the parent on a JSONL of ten million lines
"""

import argparse
import base64
import gzip
import io
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from bench import results
from bench.results import ROOT
from sd.data.packing import packer
from sd.data.packing.options import PackOptions
from sd.data.packing.part import PartResult


def make_photo(rng):
    """A JPEG that packs like a photo: smooth colour with grain, 400 to 700 px a side, about 80 KB."""
    width, height = rng.integers(400, 700, 2)
    coarse = rng.integers(0, 256, (height // 12, width // 12, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    grainy = smooth + rng.normal(0, 9, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def write_input(folder, num_images):
    """Write a JSONL of so many rows over a thousand photos (enough to leave the processor's caches)."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    num_photos = min(num_images, 1000)
    photos = [make_photo(rng) for _ in range(num_photos)]
    for number, photo in enumerate(photos):
        (folder / f"images/{number}.jpg").write_bytes(photo)
    with (folder / "data.jsonl").open("w") as lines:
        for number in range(num_images):
            image = f"images/{number % num_photos}.jpg"
            lines.write(json.dumps({"caption": f"a picture of grain with the number {number}", "image": image}) + "\n")
    return sum(map(len, photos)) / num_photos


def plain_part(rows, folder, path):
    with gzip.open(path, "wb", compresslevel=9) as part:
        for row in rows:
            image = base64.b64encode((folder / row["image"]).read_bytes()).decode()
            part.write(f"{row['caption']}\tNONE\t{image}\n".encode())


def pack_plainly(folder, output, part_rows):
    """What the reference does, in our words: the whole JSONL in memory, a process a part, the standard library."""
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    output.mkdir()
    starts = range(0, len(rows), part_rows)
    processes = [
        multiprocessing.Process(
            target=plain_part, args=(rows[start : start + part_rows], folder, output / f"part-{start:06d}.gz")
        )
        for start in starts
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def pack_ours(folder, output, part_rows, *flags):
    words = ["--input_path", folder / "data.jsonl", "--output_path", output, "--save_gzip_file"]
    words += ["--per_part_file_num", part_rows, *flags]
    command = [sys.executable, ROOT / "create_pretraining_data.py", *words]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(work):
    """Wall seconds, and processor seconds of all child processes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def size_of_parts(folder):
    return sum(part.stat().st_size for part in folder.rglob("part-*.gz"))


def compare(num_images, rounds, part_rows):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mean_bytes = write_input(folder, num_images)
        work = {
            "reference's method": lambda output: pack_plainly(folder, output, part_rows),
            "ours, --num_workers 1": lambda output: pack_ours(folder, output, part_rows, "--num_workers", 1),
            "ours, --num_workers 2": lambda output: pack_ours(folder, output, part_rows, "--num_workers", 2),
        }
        figures = {name: [] for name in work}
        sizes = {}
        for number in range(rounds):  # by turns, so that other load on the machine meets all alike
            for place, (name, pack) in enumerate(work.items()):
                output = folder / f"out-{number}-{place}"
                figures[name].append(measure(lambda: pack(output)))  # noqa: B023 - called at once
                sizes[name] = size_of_parts(output)
                subprocess.run(["rm", "-r", str(output)], check=True)
    counted = (
        f"{num_images} JPEGs of {mean_bytes / 1000:.0f} KB, {part_rows} a part, median of {rounds} rounds in turns; "
        "a core: processor seconds of the workers"
    )
    table = results.Results(
        "packing", ["contender", "images/s a core", "images/s", "bytes", "x the reference"], counted
    )
    plain = statistics.median(processor for _, processor in figures["reference's method"])
    for name, seconds in figures.items():
        processor = statistics.median(processor for _, processor in seconds)
        row = {"images/s a core": num_images / processor, "bytes": sizes[name], "x the reference": plain / processor}
        table.add(contender=name, **row, **{"images/s": num_images / statistics.median(wall for wall, _ in seconds)})


def count_only(task, source, options):
    """Stands for the work on a part, so that the parent's share is left."""
    return PartResult(task.path, task.done_fraction, num_packed=len(task.items), num_bytes=1)


def memory(num_lines):
    """All that the parent does for a long JSONL (list, hand out, collect, report, lists); print its peak memory."""
    packer.pack_part = count_only
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with (folder / "data.jsonl").open("w") as lines:
            for number in range(num_lines):
                row = {"caption": f"a caption of usual length, number {number}", "image": f"images/{number:012d}.jpg"}
                lines.write(json.dumps(row) + "\n")
        options = PackOptions(str(folder / "data.jsonl"), str(folder / "out"), num_workers=2, num_repeat=100)
        start = time.perf_counter()
        _, report = packer.pack(options)
        seconds = time.perf_counter() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    table = results.Results(
        "packing_memory", ["lines", "parts", "s", "MB"], "peak of the parent, the workers' work left out"
    )
    table.add(lines=report["rows"], parts=report["parts"], s=seconds, MB=peak_mb)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--part_rows", type=int, default=1000)
    parser.add_argument("--memory", type=int, metavar="LINES", help="measure memory instead")
    arguments = parser.parse_args()
    if arguments.memory:
        memory(arguments.memory)
    else:
        compare(arguments.num_images, arguments.rounds, arguments.part_rows)
