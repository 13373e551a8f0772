"""Streaming side by side: samples a second and core at 256 px, from JPEGs of 300 to 700 px, and what start and resume
cost as the data grows.

    python bench/streaming.py

Ways compared: TextImagePair; the reference's method, written plainly in our own words (gzip text, base64, resize the
whole, crop, float pixels, a buffer that swaps with what it has just taken); webdataset and mosaicml-streaming with
that same decoding, where they are installed (neither is needed for anything else). Times are of the processor, the
best of several rounds in which the ways take turns, so that other load on the machine hits all alike.
"""

import argparse
import base64
import ctypes
import functools
import gzip
import importlib.util
import io
import itertools
import logging
import os
import random
import sys
import tarfile
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from sd.entry import check

    check()

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # in place of bench/, where this file would hide the package `streaming`

from sd.data.images.decode import Picture, decode_image  # noqa: E402
from sd.data.images.resize import shown_size  # noqa: E402
from sd.data.parts.part import PartWriter  # noqa: E402
from sd.data.parts.record import encode_row  # noqa: E402
from sd.data.streaming.dataset import TextImagePair, collate  # noqa: E402
from sd.data.streaming.order import Order  # noqa: E402
from sd.data.streaming.sample import short_side  # noqa: E402

RESOLUTION, BATCH = 256, 32


def photograph(rng, width, height):
    """A picture with detail at every scale, as a photograph has."""
    pixels = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 9):
        for channel in range(3):
            grid = Image.fromarray(rng.normal(size=(2**octave, 2**octave)).astype(np.float32))
            pixels[..., channel] += 112 * 0.65**octave * np.asarray(grid.resize((width, height), Image.BICUBIC))
    return Image.fromarray(np.clip(128 + pixels, 0, 255).astype(np.uint8))


def make_jpegs(count, quality=92):
    """JPEGs of the sizes that the measurement is about: sides of 300 to 700 px, 4:3 and alike."""
    rng, jpegs = np.random.default_rng(0), []
    for _ in range(count):
        side = int(rng.integers(300, 701))
        size = (side, min(700, int(side * rng.uniform(1, 1.5))))
        buffer = io.BytesIO()
        photograph(rng, *(size if rng.random() < 0.5 else size[::-1])).save(buffer, "JPEG", quality=quality)
        jpegs.append(buffer.getvalue())
    return jpegs


def make_data(folder, jpegs):
    """The same records as our parts, as one gzip stream (the reference's part) and as a tar (webdataset)."""
    rows = [encode_row(f"a photograph, number {n}", jpeg) for n, jpeg in enumerate(jpegs)]
    with PartWriter(folder / "part-000001.gz") as part:
        for row, jpeg in zip(rows, jpegs, strict=True):
            part.add(row, *Image.open(io.BytesIO(jpeg)).size)
    (folder / "stream.gz").write_bytes(gzip.compress(b"".join(rows), 9))
    (folder / "a.filelist").write_text(f"{folder / 'part-000001.gz'}\n")
    (folder / "a.filelist.list").write_text(f"{folder / 'a.filelist'}\n")
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for number, jpeg in enumerate(jpegs):
            for suffix, data in (("jpg", jpeg), ("txt", f"a photograph, number {number}".encode())):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def tokenize(caption):
    """Stands for the tokenizer, which costs all ways the same."""
    ids = np.zeros(77, np.int64)
    words = caption.split()[:77]
    ids[: len(words)] = [len(word) for word in words]
    return ids


def plain_pixels(data):
    """What the reference does to an image: the whole of it resized, a crop of that, floats from -1 to 1."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    size = shown_size(*image.size, short_side(RESOLUTION))
    image = image.resize(size, Image.LANCZOS)
    left, top = (random.randint(0, side - RESOLUTION) for side in size)
    image = image.crop((left, top, left + RESOLUTION, top + RESOLUTION))
    return (np.asarray(image).astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)


def stacked(samples):
    batch = list(itertools.islice(samples, BATCH))
    while batch:
        yield {key: np.stack([sample[key] for sample in batch]) for key in batch[0]}
        batch = list(itertools.islice(samples, BATCH))


def reference_way(folder, _):
    def samples():
        buffer = []
        lines = gzip.open(folder / "stream.gz", "rt", encoding="utf-8")  # noqa: SIM115  (closed with the generator)
        for line in lines:
            caption, _, image = line.rstrip("\n").split("\t")
            sample = {"pixel_values": plain_pixels(base64.b64decode(image)), "input_ids": tokenize(caption)}
            if len(buffer) < 100:
                buffer.append(sample)
                continue
            at = random.randrange(100)
            buffer[at], sample = sample, buffer[at]
            yield sample
        yield from buffer

    return stacked(samples())


def our_way(folder, count):
    data = TextImagePair(str(folder / "a.filelist.list"), tokenize, resolution=RESOLUTION, batch_size=BATCH)
    samples = iter(data)
    for _ in range(count // BATCH):
        yield collate(list(itertools.islice(samples, BATCH)))


def webdataset_way(folder, _):
    import webdataset

    def samples():
        for record in webdataset.WebDataset(str(folder / "shard.tar"), shardshuffle=False).shuffle(100):
            yield {"pixel_values": plain_pixels(record["jpg"]), "input_ids": tokenize(record["txt"].decode())}

    return stacked(samples())


def mosaic_way(folder, _):
    from streaming import StreamingDataset

    if not (folder / "mds").exists():
        from streaming import MDSWriter

        with MDSWriter(out=str(folder / "mds"), columns={"image": "bytes", "caption": "str"}) as writer:
            with tarfile.open(folder / "shard.tar") as tar:
                members = [tar.extractfile(member).read() for member in tar]
            for image, caption in zip(members[::2], members[1::2], strict=True):
                writer.write({"image": image, "caption": caption.decode()})
    data = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    return stacked({"pixel_values": plain_pixels(r["image"]), "input_ids": tokenize(r["caption"])} for r in data)


WAYS = {
    "the reference's method": reference_way,
    "webdataset": webdataset_way,
    "mosaicml-streaming": mosaic_way,
    "TextImagePair": our_way,
}


def best_seconds(calls, rounds):
    """Least processor time of each call, over rounds in which they take turns; None for what is not installed."""
    best = dict.fromkeys(calls, float("inf"))
    for _, (name, call) in itertools.product(range(rounds), calls.items()):
        if best[name] is None:
            continue
        started = time.process_time()
        try:
            call()
        except ImportError as error:
            print(f"  {name}: not installed ({error})")
            best[name] = None
            continue
        best[name] = min(best[name], time.process_time() - started)
    return best


def compare_ways(folder, jpegs, rounds):
    def drain(way):
        seen = sum(len(batch["pixel_values"]) for batch in way(folder, len(jpegs)))
        assert seen >= len(jpegs) - BATCH, seen

    best = best_seconds({name: lambda way=way: drain(way) for name, way in WAYS.items()}, rounds)
    base = best["the reference's method"]
    print("\n| way | samples/s per core | ratio |\n| --- | --- | --- |")
    for name, seconds in best.items():
        if seconds is not None:
            print(f"| {name} | {len(jpegs) / seconds:.0f} | {base / seconds:.2f} |")


def compare_decoders(jpegs, rounds):
    decoders = {"Pillow": lambda data: Image.open(io.BytesIO(data)).load()}
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        decoders["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        decoders["simplejpeg"] = simplejpeg.decode_jpeg
        decoders["simplejpeg, fast DCT and upsampling"] = functools.partial(
            simplejpeg.decode_jpeg, fastdct=True, fastupsample=True
        )
    best = best_seconds({n: lambda d=d: [d(data) for data in jpegs] for n, d in decoders.items()}, rounds)
    print("\n| decoder | images/s per core | largest difference from Pillow |\n| --- | --- | --- |")
    plain = [np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in jpegs[:20]]
    for name, decode in decoders.items():
        got = plain if name == "Pillow" else [decode(data) for data in jpegs[:20]]
        difference = max(np.abs(a - b).max() for a, b in zip(plain, got, strict=True))
        print(f"| {name} | {len(jpegs) / best[name]:.0f} | {difference} |")


def compare_resizing(jpegs, rounds):
    images = [Image.fromarray(decode_image(data)) for data in jpegs]

    def crop_of(image):
        size = shown_size(*image.size, short_side(RESOLUTION))
        return size, (size[0] - RESOLUTION) // 2, (size[1] - RESOLUTION) // 2

    def whole(image):
        size, left, top = crop_of(image)
        wide = image.resize((size[0], image.height), Image.LANCZOS)
        return np.asarray(wide.resize(size, Image.LANCZOS).crop((left, top, left + RESOLUTION, top + RESOLUTION)))

    def boxed(image):
        size, left, top = crop_of(image)
        x, y = image.width / size[0], image.height / size[1]
        box = (left * x, top * y, (left + RESOLUTION) * x, (top + RESOLUTION) * y)
        return np.asarray(image.resize((RESOLUTION, RESOLUTION), Image.LANCZOS, box=box))

    def ours(image):
        size, left, top = crop_of(image)
        return Picture(image, image.size).crop(size, left, top, RESOLUTION).transpose(1, 2, 0)

    ways = {"Pillow, whole, then crop": whole, "Pillow, `box=`": boxed, "sd.data.images.resize": ours}
    best = best_seconds({n: lambda w=w: [w(image) for image in images] for n, w in ways.items()}, rounds)
    print("\n| resize to 284 and crop 256, Lanczos | images/s per core | largest difference |\n| --- | --- | --- |")
    for name, way in ways.items():
        difference = max(np.abs(whole(image).astype(int) - way(image)).max() for image in images[:40])
        print(f"| {name} | {len(images) / best[name]:.0f} | {difference} |")


def measure_growth(folder):
    """What a start and a resume cost as parts, lanes and samples seen grow: real index files, hard links of one."""
    import psutil

    with PartWriter(folder / "growth-000000.gz") as part:
        for row in range(1000):
            part.add(encode_row(f"row {row}", b"no image, but nobody looks"), 300, 300)
    print("\n| parts | records | lanes | start, s | of it the order, s | place after 10^9 samples, ms | MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    made = 1
    for parts, lanes in ((60, 8), (600, 64), (6_000, 512), (60_000, 8192)):
        names = [folder / f"growth-{number:06d}.gz" for number in range(parts)]
        for name in names[made:]:
            for suffix in ("", ".idx"):
                os.link(f"{names[0]}{suffix}", f"{name}{suffix}")
        made = parts
        (folder / "g.filelist").write_text("".join(f"{name}\n" for name in names))
        (folder / "g.filelist.list").write_text(f"{folder / 'g.filelist'}\n")
        before, started = psutil.Process().memory_info().rss, time.process_time()
        data = TextImagePair(
            str(folder / "g.filelist.list"), tokenize, resolution=256, batch_size=1, lanes=lanes, buffer_size=1000
        )
        with_files = time.process_time() - started
        started = time.process_time()
        order = Order([(1.0, np.full(parts, 1000))], seed=0, lanes=lanes, deal_size=1, buffer_size=1000)
        order.place(0)
        alone = time.process_time() - started
        started = time.process_time()
        data.order.place(10**9)
        found = time.process_time() - started
        memory = max(0, psutil.Process().memory_info().rss - before) / 1e6
        print(
            f"| {parts:,} | {parts * 1000:,} | {lanes:,} | {with_files:.2f} | {alone:.3f} "
            f"| {found * 1e3:.2f} | {memory:.0f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320, help="records in the data set; default 320")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of which the best counts; default 7")
    arguments = parser.parse_args()
    threadpool_limits(1)
    logging.getLogger("sd.data").setLevel(logging.WARNING)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # as worker_init_fn does; here it helps all ways
        libc.mallopt(-3, 32 << 20)
        libc.mallopt(-1, 128 << 20)
    with tempfile.TemporaryDirectory() as folder:
        jpegs = make_jpegs(arguments.images)
        make_data(Path(folder), jpegs)
        size = sum(map(len, jpegs)) / len(jpegs) / 1e3
        print(f"{len(jpegs)} JPEGs of {size:.0f} KB on average, {RESOLUTION} px, batches of {BATCH}")
        compare_ways(Path(folder), jpegs, arguments.rounds)
        compare_decoders(jpegs, arguments.rounds)
        compare_resizing(jpegs, arguments.rounds)
        measure_growth(Path(folder))


if __name__ == "__main__":
    main()
