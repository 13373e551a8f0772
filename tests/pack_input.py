"""Input for packing tests: small captioned images and their JSONL."""

import hashlib
import io
import json

import numpy as np
from PIL import Image


def image_bytes(width=48, height=40, seed=0, image_format="PNG", **save):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **save)
    return buffer.getvalue()


def write_input(folder, num_rows=25, *, bad=(), width=40, height=40):
    """Write `folder/data.jsonl` and its images; the images of the rows numbered in `bad` (from 1) are missing."""
    (folder / "images").mkdir(parents=True)
    with (folder / "data.jsonl").open("w") as lines:
        for number in range(1, num_rows + 1):
            name = f"images/{number}.png"
            if number not in bad:
                (folder / name).write_bytes(image_bytes(width + number, height, number))
            lines.write(json.dumps({"caption": f"caption {number}", "image": name, "image_id": number}) + "\n")
    return folder / "data.jsonl"


def contents(folder):
    """Every file below a folder by its relative name, as a digest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
