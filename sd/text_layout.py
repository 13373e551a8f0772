"""Text on pictures, cut or wrapped to a width in pixels, at a cost that the width bounds; `sd.fonts` has the fonts."""

from PIL import ImageFont

ELLIPSIS = "..."


def fit_line(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Text as one line of at most `width` pixels, ending in an ellipsis if something was left out."""
    return "".join(wrap(text, font, width, 1))


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Text as at most `most` lines of at most `width` pixels, broken at blanks where a line holds one.

    Any white space is one blank. The last line ends in an ellipsis if something was left out.
    """
    words = " ".join(str(text).split())
    rest = words[: 4 * max_lines * (int(width) + 1)]  # visible letters are wider than a quarter of a pixel
    left_out = len(rest) < len(words)
    lines: list[str] = []
    while rest and len(lines) < max_lines:
        fits = max(1, _num_fitting(rest, font, width))
        if fits < len(rest) and len(lines) + 1 < max_lines and (blank := rest.rfind(" ", 0, fits + 1)) > 0:
            fits = blank
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    if lines and (rest or left_out):
        lines[-1] = lines[-1][: _num_fitting(lines[-1], font, width, ELLIPSIS)] + ELLIPSIS
    return lines


def _num_fitting(text, font, width, end=""):
    """How many letters of `text`, with `end` behind them, `width` pixels hold: by bisection."""
    low, high = 0, min(len(text), 4 * (int(width) + 1))
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle] + end) <= width:
            low = middle
        else:
            high = middle - 1
    return low
