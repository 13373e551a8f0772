"""Small packed data sets for tests of the streaming half: images whose first pixel says which row they are."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from sd.data.parts.columns import from_arrow
from sd.data.parts.part import PartWriter
from sd.data.parts.record import encode_row

SIDE = 40


def jpeg(seed, width=SIDE, height=SIDE):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def caption(part, row):
    return f"part {part} row {row}"


def tokenize(text):
    """The caption's bytes, cut or filled to 32: a test reads the caption back from the ids."""
    data = text.encode()[:32]
    return np.frombuffer(data.ljust(32, b"\0"), np.uint8).astype(np.int64)


def untokenize(ids):
    return bytes(np.asarray(ids).astype(np.uint8)).rstrip(b"\0").decode()


def draw(rng):
    return {"noise": rng.standard_normal((2, 2, 2)).astype(np.float32), "timestep": rng.integers(1000)}


def write_part(path, number, rows, save_gzip=True, image=jpeg, columns=None):
    """A part of so many rows, or of the given ones. columns: name -> values, None where one is missing, of these."""
    rows = range(rows) if isinstance(rows, int) else rows
    with PartWriter(path, save_gzip=save_gzip) as part:
        for row in rows:
            part.add(encode_row(caption(number, row), image(1000 * number + row)), SIDE, SIDE)
        part.columns = {name: from_arrow(pa.array(values)) for name, values in (columns or {}).items()}


def write_lists(folder, *sources):
    """Write one filelist for each (weight, parts) and return the list of lists."""
    lines = []
    for number, (weight, parts) in enumerate(sources):
        name = Path(folder) / f"source{number}.filelist"
        name.write_text("".join(f"{part}\n" for part in parts))
        lines.append(f"{name} {weight}\n")
    (Path(folder) / "train.filelist.list").write_text("".join(lines))
    return str(Path(folder) / "train.filelist.list")


def make_data(folder, rows_per_part, save_gzip=True):
    """Parts with the given numbers of rows; returns the file list."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    parts = []
    for number, num_rows in enumerate(rows_per_part):
        parts.append(Path(folder) / f"part-{number:06d}.gz")
        write_part(parts[-1], number, num_rows, save_gzip)
    return write_lists(folder, (1.0, parts))
