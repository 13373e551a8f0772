"""Says which colour, shape and background a picture shows, by plain arithmetic on its pixels, and scores samples.

    python -m demo.classify samples/

reads the PNGs of a folder, each with its caption in the text entry `prompt`, and prints the shares that are right.
"""

import sys

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    from sd.entry import run

    run("demo.classify")
    sys.exit()

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from demo.shapes import BACKGROUNDS, COLOURS, SHAPES, labels_of, outline
from sd.flags.parser import Parser

# A picture whose strongest colour is weaker than this (0..255), or covers less than this share of a square of its
# shorter side, which is what the size of a shape goes by, shows nothing.
MIN_CHROMA = 60
MIN_AREA = 0.05
# The strongest colour is that of the least strong pixel of the strongest ones that cover this share of such a square.
STRONGEST_AREA = 0.1
# Overlap with the ideal shape below which the picture shows none of the three.
MIN_OVERLAP = 0.75
OVERSAMPLING = 4


def coverage(picture):
    """How much of each pixel is coloured, [H, W] float in 0..1; both backgrounds are grey, so chroma tells."""
    chroma = picture.max(axis=-1).astype(float) - picture.min(axis=-1)
    strongest = np.percentile(chroma, 100 * (1 - STRONGEST_AREA * min(chroma.shape) / max(chroma.shape)))
    return np.clip(chroma / max(strongest, MIN_CHROMA), 0, 1)


def covers_enough(covered):
    """Whether a `coverage` is large enough for a shape."""
    return covered.sum() >= MIN_AREA * min(covered.shape) ** 2


def ideal(shape, x, y, area, height, width):
    """Coverage of an ideal `shape` with centroid (x, y) and `area`, in pixels."""
    radius = np.sqrt(area / np.pi) * OVERSAMPLING
    x, y = (x + 0.5) * OVERSAMPLING, (y + 0.5) * OVERSAMPLING
    mask = Image.new("L", (width * OVERSAMPLING, height * OVERSAMPLING))
    corners = outline(shape, x, y, radius)
    if corners is None:
        ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        ImageDraw.Draw(mask).polygon(corners, fill=255)
    return np.asarray(mask.resize((width, height), Image.Resampling.BOX)) / 255


def overlaps(picture):
    """For each shape the intersection over union of the coloured part with the ideal shape of its place and area."""
    covered = coverage(picture)
    area = covered.sum()
    height, width = covered.shape
    x, y = (covered.sum(0) @ np.arange(width)) / area, (covered.sum(1) @ np.arange(height)) / area
    fits = [ideal(shape, x, y, area, height, width) for shape in SHAPES]
    return [float(np.minimum(covered, fit).sum() / np.maximum(covered, fit).sum()) for fit in fits]


def classify(picture):
    """(colour, shape, background) of a picture [H, W, 3] uint8; colour or shape is None where none is to be seen."""
    covered = coverage(picture)
    empty = covered < 0.25
    ground = picture[empty].mean() if empty.any() else picture.mean()
    background = min(BACKGROUNDS, key=lambda name: abs(np.mean(BACKGROUNDS[name]) - ground))
    if not covers_enough(covered) or not (covered > 0.75).any():
        return None, None, background
    fill = np.median(picture[covered > 0.75], axis=0)
    colour = min(COLOURS, key=lambda name: np.square(fill - COLOURS[name]).sum())
    fits = overlaps(picture)
    shape = SHAPES[int(np.argmax(fits))] if max(fits) >= MIN_OVERLAP else None
    return colour, shape, background


def score(pictures, captions, seed=0):
    """Shares (0..1) of pictures that show what the caption says: colour, background, shape, all three, and all
    three again with the captions shuffled among the pictures. A background that the caption leaves open is right.
    Raises ValueError for captions of another kind."""
    expected = np.array([labels_of(caption) for caption in captions], dtype=object)
    seen = np.array([classify(picture) for picture in pictures], dtype=object)
    right = (expected == seen) | np.equal(expected, None)
    shuffled = expected[np.random.default_rng(seed).permutation(len(expected))]
    return {
        "colour": right[:, 0].mean(),
        "background": right[:, 2].mean(),
        "shape": right[:, 1].mean(),
        "all": right.all(axis=1).mean(),
        "shuffled": ((shuffled == seen) | np.equal(shuffled, None)).all(axis=1).mean(),
    }


def read_samples(folder, captions=None):
    """(pictures, captions) of the PNGs in `folder`, by name; captions from their text entry `prompt` unless given.

    PNGs without the entry (a labelled grid of all samples) are left out when captions are not given."""
    pictures, prompts = [], []
    for path in sorted(Path(folder).glob("*.png")):
        with Image.open(path) as image:
            if captions is None and "prompt" not in image.info:
                continue
            prompts.append(image.info.get("prompt"))
            pictures.append(np.asarray(image.convert("RGB")))
    return pictures, prompts if captions is None else captions


def main():
    parser = Parser(description="Score sampled shapes against their captions.")
    parser.add_argument("folder", help="folder of PNGs")
    parser.add_argument("--captions", help="text file, a caption a line, in the order of the PNGs' names")
    parser.add_argument("--min_all", type=float, default=0.0, help="exit code 1 if fewer than this share are right")
    parser.add_argument("--wrong", action="store_true", help="list the pictures that are not as captioned")
    args = parser.parse_args()
    given = Path(args.captions).read_text(encoding="utf-8").splitlines() if args.captions else None
    pictures, captions = read_samples(args.folder, given)
    if not pictures or len(pictures) != len(captions):
        print(f"error: {args.folder}: {len(pictures)} PNGs, {len(captions)} captions", file=sys.stderr)
        sys.exit(2)
    shares = score(pictures, captions)
    print(f"{len(pictures)} pictures: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    if args.wrong:
        for picture, caption in zip(pictures, captions, strict=True):
            if any(
                label not in (None, seen) for label, seen in zip(labels_of(caption), classify(picture), strict=True)
            ):
                print(f"{caption}: shows {classify(picture)}")
    sys.exit(int(shares["all"] < args.min_all))
