"""Text on pictures: it fits, nothing but the end is left out, and a long text costs no more than a short one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd.fonts import font_for
from sd.text_layout import ELLIPSIS, fit_line, wrap

TEXTS = ["a red circle on a black background " * 5, "x" * 300, "short", "一个红色的圆" * 20]


def letter_by_letter(text, font, width, most):
    """What is wanted, found by trying every length."""
    lines, rest = [], " ".join(text.split())
    while rest and len(lines) < most:
        fits = next((n for n in range(len(rest), 0, -1) if font.getlength(rest[:n]) <= width), 1)
        if fits < len(rest) and len(lines) + 1 < most and rest.rfind(" ", 0, fits + 1) > 0:
            fits = rest.rfind(" ", 0, fits + 1)
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    if rest:
        end = next(n for n in range(len(lines[-1]), -1, -1) if font.getlength(lines[-1][:n] + ELLIPSIS) <= width)
        lines[-1] = lines[-1][:end] + ELLIPSIS
    return lines


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("width", "most"), [(150, 3), (60, 1), (400, 2)])
def test_wrapped_text_is_what_a_search_letter_by_letter_gives(text, width, most):
    assert wrap(text, font_for("", 13), width, most) == letter_by_letter(text, font_for("", 13), width, most)


@settings(deadline=None)
@given(st.text(), st.integers(30, 300), st.integers(1, 4))
def test_any_text_fits_and_missing_glyphs_are_reported(text, width, most):
    font = font_for("", 10)
    lines = wrap(text, font, width, most)
    assert len(lines) <= most
    assert all(font.getlength(line) <= width or len(line) == 1 for line in lines)
    shown, whole = "".join(lines), "".join(text.split())
    shown = "".join(shown.split())
    assert shown == whole or (shown.endswith(ELLIPSIS) and whole.startswith(shown.removesuffix(ELLIPSIS)))


class CountingFont:
    """Every letter is 5 pixels wide; counts the letters that it measures."""

    measured = 0

    def getlength(self, text):
        self.measured += len(text)
        return 5 * len(text)


@pytest.mark.parametrize("letter", ["x", "word ", "圆"])
def test_a_hundred_thousand_letters_are_not_measured(letter):
    font = CountingFont()
    assert fit_line(letter * 100_000, font, 160).endswith(ELLIPSIS)
    assert len(wrap(letter * 100_000, font, 160, 3)) == 3
    assert font.measured < 100_000
