"""Packed demo shapes and caches of them for tests: small enough for a second, real enough for --check."""

import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

from demo.shapes import caption_of, example
from sd.data.parts.part import PartReader, PartWriter, load_index
from sd.data.parts.record import decode_row, encode_row
from sd.latents.options import CacheOptions
from tests.data_maker import write_lists

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(ROOT / "demo/tiny_sd")
SIDE = 40  # of the images; the caches are of 32


@lru_cache(maxsize=1000)
def shape(number):
    """(caption, PNG bytes) of a demo shape."""
    pixels, labels = example(number, 0, SIDE)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return caption_of(*labels), buffer.getvalue()


def write_shapes(path, first, count):
    """A part of shapes number `first` and the following ones."""
    with PartWriter(path) as part:
        for number in range(first, first + count):
            part.add(encode_row(*shape(number)), SIDE, SIDE)


def make_shapes(folder, rows_per_part):
    """Parts with the given numbers of shapes, and their file list."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"part-{number:06d}.gz" for number in range(len(rows_per_part))]
    for number, part in enumerate(parts):
        write_shapes(part, sum(rows_per_part[:number]), rows_per_part[number])
    return write_lists(folder, (1.0, parts))


def options(file_list, output, **flags):
    flags = {"resolution": 32, "batch_size": 4, "num_workers": 0, "device": "cpu", "model_max_length": 16} | flags
    return CacheOptions(str(file_list), str(output), pretrained_model_name_or_path=MODEL, **flags)


def flags_of(file_list, output, *more):
    """The same as a command line."""
    return [
        *("precompute_latents.py", "--file_list", str(file_list), "--output_path", str(output), "--device", "cpu"),
        *("--pretrained_model_name_or_path", MODEL, "--resolution", "32", "--batch_size", "4", *more),
    ]


def read_records(part):
    """(PartIndex, Records of its good rows by row number)."""
    index = load_index(part)
    with PartReader(part, index) as reader:
        return index, {row: decode_row(reader.read(row)) for row in range(index.num_rows) if index.widths[row] == 32}
