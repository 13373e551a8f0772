"""Pictures -> one labelled PNG that a person can look through: rows and columns with headings, captions below."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from sd.fonts import font_for
from sd.text_layout import wrap

_INK, _PAPER, _GAP = (20, 20, 20), (255, 255, 255), 8
_SMALLEST_SIDE, _LARGEST_AREA = 144, 48_000_000
_TEXT_SIZE, _LINES = 13, 3


def columns_for(count: int, aspect: float = 1.5) -> int:
    """How many columns make `count` pictures a sheet about `aspect` times as wide as high."""
    return max(1, min(count, math.ceil(math.sqrt(count * aspect))))


def labelled_sheet(
    images: Sequence[np.ndarray], captions: Sequence[str], title: str | None = None, columns: int | None = None
) -> Image.Image:
    """Pictures with a caption below each, filled row by row. images: uint8 [H,W,3] each. Returns a PIL image."""
    columns = columns or columns_for(len(images))
    starts = range(0, len(images), columns)
    return labelled_table(
        [images[start : start + columns] for start in starts],
        captions=[captions[start : start + columns] for start in starts],
        title=title,
    )


def labelled_table(
    rows: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
    title: str | None = None,
) -> Image.Image:
    """Rows of pictures, uint8 [H,W,3] each, with headings at the left and above, and captions below each.

    Small pictures are enlarged without smoothing, so that their pixels stay visible; where the sheet would be larger
    than 48 megapixels they are made smaller. Returns a PIL image.
    """
    width, height = _cell_size(rows)
    columns = max(len(row) for row in rows)
    line = _TEXT_SIZE + 4
    left = _GAP + (min(240, max(width, 120)) + _GAP if row_labels else 0)
    sheet_width = left + columns * (width + _GAP)
    title_lines = _wrapped(title, sheet_width - 2 * _GAP, 4) if title else []
    column_lines = [_wrapped(label, width, _LINES) for label in column_labels or []]
    caption_lines = [[_wrapped(caption, width, _LINES) for caption in row] for row in captions or []]
    row_lines = [_wrapped(label, left - 2 * _GAP, max(1, height // line)) for label in row_labels or []]
    top = _GAP + line * (len(title_lines) + max(map(len, column_lines), default=0)) + (_GAP if title_lines else 0)
    caption_height = line * max((len(lines) for row in caption_lines for lines in row), default=0)
    pitch = height + caption_height + _GAP
    sheet = Image.new("RGB", (sheet_width, top + len(rows) * pitch), _PAPER)
    draw = ImageDraw.Draw(sheet)

    def write(lines, x, y):
        font = font_for("".join(lines), _TEXT_SIZE)
        for number, text in enumerate(lines):
            draw.text((x, y + number * line), text, fill=_INK, font=font)

    write(title_lines, _GAP, _GAP)
    for column, lines in enumerate(column_lines):
        write(lines, left + column * (width + _GAP), top - line * len(lines))
    for number, row in enumerate(rows):
        y = top + number * pitch
        if row_lines:
            write(row_lines[number], _GAP, y)
        for column, picture in enumerate(row):
            x = left + column * (width + _GAP)
            sheet.paste(_fitted(picture, width, height), (x, y))
            if caption_lines:
                write(caption_lines[number][column], x, y + height + 2)
    return sheet


def _wrapped(text, width, max_lines):
    return wrap(text, font_for(str(text), _TEXT_SIZE), width, max_lines)


def _cell_size(rows):
    """(width, height) of every cell: the largest picture's, enlarged by a whole number or made to fit the sheet."""
    height, width = np.max([picture.shape[:2] for row in rows for picture in row], axis=0)
    times = max(1, -(-_SMALLEST_SIDE // max(height, width)))
    area = len(rows) * max(len(row) for row in rows) * height * width * times**2
    scale = times * min(1.0, math.sqrt(_LARGEST_AREA / area))
    return max(1, int(width * scale)), max(1, int(height * scale))


def _fitted(picture, width, height):
    """The picture as large as the cell allows, its pixels kept where it is enlarged."""
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize(size, kind)
