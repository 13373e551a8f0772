"""Captioned shapes ("a red circle on a black background"), drawn at random, as JSONL + PNG and JPEG files.

    python -m demo.shapes --output shapes_data --count 5000 --seed 0

writes `shapes_data/shapes.jsonl` and `shapes_data/images/`, the input of `create_pretraining_data.py`.
"""

import sys

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    from sd.entry import run

    run("demo.shapes")
    sys.exit()

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from sd.flags.parser import Parser

COLOURS = {
    "red": (224, 32, 32),
    "green": (32, 160, 48),
    "blue": (36, 56, 224),
    "yellow": (240, 208, 16),
    "purple": (168, 32, 184),
    "cyan": (16, 200, 216),
}
BACKGROUNDS = {"black": (8, 8, 8), "white": (246, 246, 246)}
SHAPES = ("circle", "square", "triangle")
COLOUR_JITTER = 12
BACKGROUND_JITTER = 6
# Radius of the circle of the same area, in widths of the picture; small enough that no crop of 90% cuts a shape.
RADIUS_RANGE = {"circle": (0.25, 0.31), "square": (0.25, 0.31), "triangle": (0.21, 0.26)}
CENTRE_JITTER = 0.04
EXTRA_ROOM = 0.08  # of the shorter side, by which a shape may come nearer to the ends of the longer one
OVERSAMPLING = 4

ALL_LABELS = tuple((c, s, b) for c in COLOURS for s in SHAPES for b in BACKGROUNDS)


def caption_of(colour, shape, background):
    """The caption of a picture: "a red circle on a black background"."""
    return f"a {colour} {shape} on a {background} background"


def short_caption_of(colour, shape):
    """The caption that leaves the background open: "a red circle"."""
    return f"a {colour} {shape}"


def labels_of(caption):
    """Inverse of the two: (colour, shape, background), None for a background that is left open. Raises ValueError for
    another kind of sentence."""
    words = caption.split()
    if len(words) == 3 and words[1] in COLOURS and words[2] in SHAPES and caption == short_caption_of(*words[1:]):
        return words[1], words[2], None
    labels = (words[1], words[2], words[5]) if len(words) == 7 else None
    if labels not in ALL_LABELS or caption != caption_of(*labels):
        raise ValueError(f"{caption!r} is no caption of this demo, such as {caption_of('red', 'circle', 'black')!r}")
    return labels


def outline(shape, x, y, radius):
    """Corners of `shape` with centroid (x, y) and the area of a circle of `radius`; None for the circle itself."""
    if shape == "square":
        half = radius * math.sqrt(math.pi) / 2
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    if shape == "triangle":
        side = radius * math.sqrt(4 * math.pi / math.sqrt(3))
        height = side * math.sqrt(3) / 2
        return [(x, y - height * 2 / 3), (x + side / 2, y + height / 3), (x - side / 2, y + height / 3)]
    return None


def draw(colour, shape, background, rng, size):
    """One anti-aliased picture, [height, width, 3] uint8, with place, size and tints drawn from `rng`.

    size: the side of a square, or (width, height); the shape is as large as in a square of the shorter side, and lies
    anywhere along the longer one.
    """
    width, height = (size, size) if isinstance(size, int) else size
    size = min(width, height)
    fill = np.clip(np.array(COLOURS[colour]) + rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3), 0, 255)
    ground = np.array(BACKGROUNDS[background]) + rng.integers(-BACKGROUND_JITTER, BACKGROUND_JITTER + 1)
    large = size * OVERSAMPLING
    radius = rng.uniform(*RADIUS_RANGE[shape]) * large
    x, y = (0.5 + rng.uniform(-CENTRE_JITTER, CENTRE_JITTER, 2)) * large
    if width != height:
        room = (max(width, height) / size - 1) / 2 + EXTRA_ROOM
        along = rng.uniform(-room, room) * large
        x, y = x + (width - size) / 2 * OVERSAMPLING, y + (height - size) / 2 * OVERSAMPLING
        x, y = (x + along, y) if width > height else (x, y + along)
    if shape == "triangle":  # its centroid lies a sixth of its height below the middle of its extent
        y += radius * math.sqrt(math.pi / math.sqrt(3)) * math.sqrt(3) / 6
    picture = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), tuple(int(v) for v in ground))
    pen = ImageDraw.Draw(picture)
    corners = outline(shape, x, y, radius)
    if corners is None:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(int(v) for v in fill))
    else:
        pen.polygon(corners, fill=tuple(int(v) for v in fill))
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX))


def example(index, seed, size):
    """Picture and labels number `index` of the endless set `seed`; each caption comes once in every 36.

    size: as of `draw`, or a list of sizes that take turns, each with every caption.
    """
    labels = ALL_LABELS[index % len(ALL_LABELS)]
    if isinstance(size, list):
        size = size[(index + index // len(ALL_LABELS)) % len(size)]
    return draw(*labels, np.random.default_rng((seed, index)), size), labels


def sizes_of(text):
    """`48x80,64x64` as [(48, 80), (64, 64)]: width, then height."""
    return [tuple(map(int, word.split("x"))) for word in text.split(",")]


def write(output, count, seed, size, long_captions=False):
    """Write `count` captioned pictures below the folder `output`; every second one is a JPEG. Returns the JSONL.

    long_captions: `caption` leaves the background open, and `long_caption` names it.
    """
    output = Path(output)
    (output / "images").mkdir(parents=True, exist_ok=True)
    jsonl = output / "shapes.jsonl"
    with jsonl.open("w", encoding="utf-8") as lines:
        for index in tqdm(range(count), desc="drawing shapes", unit="picture"):
            picture, labels = example(index, seed, size)
            name = f"images/{index:06d}" + (".jpg" if index // len(ALL_LABELS) % 2 else ".png")
            Image.fromarray(picture).save(output / name, quality=95, subsampling=0)
            captions = {"caption": caption_of(*labels)}
            if long_captions:
                captions = {"caption": short_caption_of(*labels[:2]), "long_caption": caption_of(*labels)}
            row = captions | {"image": name, "image_id": f"shapes_{seed}_{index}"}
            lines.write(json.dumps(row) + "\n")
    return jsonl


def main():
    parser = Parser(description="Draw captioned shapes.")
    parser.add_argument("--output", default="shapes_data", help="folder to write")
    parser.add_argument("--count", type=int, default=5000, help="number of pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=70, help="width and height, in pixels")
    parser.add_argument("--sizes", help="several in turn instead, width x height: 48x80,64x64,80x48")
    parser.add_argument("--long_captions", action="store_true", help="a short caption and a long one for each")
    args = parser.parse_args()
    sizes = sizes_of(args.sizes) if args.sizes else args.size
    print(write(args.output, args.count, args.seed, sizes, args.long_captions))
