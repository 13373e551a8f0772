"""Ways to stream image-text pairs that are not this toolkit's: contenders of bench/streaming.py, which starts them.

    python bench/stream_ways.py WAY FOLDER RESOLUTION PASSES

Prints the least processor seconds of a pass. All decode with Pillow, resize the whole picture, cut a square out of it
and stack batches of float pixels; they differ in how records are stored, read and shuffled. `reference` is the method
of the example that this toolkit follows, in our own words.
"""

import base64
import ctypes
import gzip
import importlib.machinery
import io
import itertools
import json
import random
import sys
import tarfile
import time
import types
from pathlib import Path

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

BATCH = 32


def tokenize(caption):
    """Stands for the tokenizer, which costs all ways the same."""
    ids = np.zeros(77, np.int64)
    words = caption.split()[:77]
    ids[: len(words)] = [len(word) for word in words]
    return ids


def pixels(data, resolution):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = int(resolution / 0.9)
    size = [max(side, int(side * length / min(image.size))) for length in image.size]
    image = image.resize(size, Image.Resampling.LANCZOS)
    left, top = (random.randint(0, length - resolution) for length in size)
    image = image.crop((left, top, left + resolution, top + resolution))
    return (np.asarray(image).astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)


def sample(image, caption, resolution):
    return {"pixel_values": pixels(image, resolution), "input_ids": tokenize(caption)}


def reference(folder, resolution):
    """A gzip text stream, base64, and a buffer that swaps with what it has just taken."""
    buffer = []
    with gzip.open(folder / "stream.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            caption, _, image = line.rstrip("\n").split("\t")
            decoded = sample(base64.b64decode(image), caption, resolution)
            if len(buffer) < 100:
                buffer.append(decoded)
                continue
            at = random.randrange(100)
            buffer[at], decoded = decoded, buffer[at]
            yield decoded
    yield from buffer


def webdataset(folder, resolution):
    import webdataset

    for record in webdataset.WebDataset(str(folder / "shard.tar"), shardshuffle=False).shuffle(100):
        yield sample(record["jpg"], record["txt"].decode(), resolution)


def _records(folder):
    with tarfile.open(folder / "shard.tar") as tar:
        members = [tar.extractfile(member).read() for member in tar]
    return [{"image": image, "caption": text.decode()} for image, text in zip(members[::2], members[1::2], strict=True)]


class _Nameless(types.ModuleType):
    """A module in which any name is a class, for imports of what is not used."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _without_torchvision():
    """streaming imports it for datasets of its own; its wheel is for CUDA, and beside a CPU's PyTorch does not load."""
    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        module = sys.modules[f"torchvision{name}"] = _Nameless(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)


def mosaic(folder, resolution):
    _without_torchvision()
    from streaming import MDSWriter, StreamingDataset

    if not (folder / "mds").exists():
        with MDSWriter(out=str(folder / "mds"), columns={"image": "bytes", "caption": "str"}) as writer:
            for record in _records(folder):
                writer.write(record)
    for record in StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=BATCH):
        yield sample(record["image"], record["caption"], resolution)


def datasets(folder, resolution):
    import datasets

    if not (folder / "table.parquet").exists():
        datasets.Dataset.from_list(_records(folder)).to_parquet(str(folder / "table.parquet"))
    table = datasets.load_dataset("parquet", data_files=str(folder / "table.parquet"), streaming=True, split="train")
    for record in table.shuffle(seed=0, buffer_size=100):
        yield sample(record["image"], record["caption"], resolution)


def latents(folder, resolution):
    """Cached latents in a webdataset, which decodes the arrays."""
    import webdataset

    for record in webdataset.WebDataset(str(folder / "latents.tar"), shardshuffle=False).shuffle(100).decode():
        yield {name: record[f"{name}.npy"] for name in ("moments", "text_states")}


def stacked(samples):
    while batch := list(itertools.islice(samples, BATCH)):
        yield {key: np.stack([made[key] for made in batch]) for key in batch[0]}


def keep_freed_memory():
    """As the toolkit's data workers do; here for all ways."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 32 << 20)
        libc.mallopt(-1, 128 << 20)


def main():
    way, folder, resolution, passes = globals()[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    keep_freed_memory()
    seconds = []
    for _ in range(passes):
        started = time.process_time()
        count = sum(len(next(iter(batch.values()))) for batch in stacked(way(folder, resolution)))
        seconds.append(time.process_time() - started)
    print(json.dumps({"seconds": min(seconds), "count": count}))


if __name__ == "__main__":
    main()
