"""A picture of some groups: a line for each, its representative first."""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from sd.data.images.decode import decode
from sd.data.images.open import open_image
from sd.data.parts.part import PartReader, load_index
from sd.data.parts.record import RowError, decode_row
from sd.fonts import font_for
from sd.text_layout import fit_line

COLUMNS, LINES = 6, 16
_TILE, _LABEL = 150, 30


def draw_groups(groups: list[list[tuple[str, int, str]]]) -> Image.Image:
    """The sheet of groups of (part, row from 0, what to say of it below its name), of each the first COLUMNS."""
    sheet = Image.new("RGB", (COLUMNS * _TILE, max(1, len(groups)) * (_TILE + _LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    for line, group in enumerate(groups):
        for column, (part, row, text) in enumerate(group[:COLUMNS]):
            x, y = column * _TILE, line * (_TILE + _LABEL)
            sheet.paste(_tile(part, row), (x + 2, y + 2))
            name = f"{part.rpartition('/')[2]} row {row + 1}"
            for number, words in enumerate((name, text)):
                font = font_for(words, 10)
                at = (x + 2, y + _TILE + 13 * number)
                pen.text(at, fit_line(words, font, _TILE - 4), "gray" if number == 0 else "black", font)
    return sheet


def _tile(part, row):
    """The picture of a row in a square of grey; grey alone where it cannot be read any more."""
    side = _TILE - 4
    tile = Image.new("RGB", (side, side), (230, 230, 230))
    try:
        index = load_index(part)
        with PartReader(part, index) as reader:
            picture = decode(open_image(decode_row(reader.read(row)).image), side)
    except RowError:
        return tile
    thumbnail = ImageOps.contain(Image.fromarray(picture.array()), (side, side), Image.Resampling.LANCZOS)
    tile.paste(thumbnail, ((side - thumbnail.width) // 2, (side - thumbnail.height) // 2))
    return tile


def choose_groups(owner: np.ndarray, exact: np.ndarray) -> list[np.ndarray]:
    """Rows of up to LINES groups, representatives first: half of them the largest, half spread over the rest.

    Groups of near duplicates before those of equal files, of which there is nothing to see.
    """
    joined = np.flatnonzero(owner != np.arange(len(owner)))
    joined = joined[np.argsort(owner[joined], kind="stable")]
    heads, begins, counts = np.unique(owner[joined], return_index=True, return_counts=True)
    if not len(heads):
        return []
    near = np.add.reduceat(~exact[joined], begins) > 0
    order = np.lexsort((heads, -counts, ~near))
    rest = order[LINES // 2 :]
    spread = np.unique(np.linspace(0, len(rest) - 1, LINES - LINES // 2).astype(int)) if len(rest) else []
    chosen = [*order[: LINES // 2], *rest[spread]] if len(rest) else order
    return [
        np.concatenate([heads[group : group + 1], joined[begins[group] : begins[group] + counts[group]]])
        for group in chosen
    ]
