"""Fonts for text in pictures: Pillow's own, else one of this machine that has the letters, found by fontconfig."""

import functools
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger(__name__)

_UNASSIGNED = "\U0010ffff"  # drawn as the box that stands for every letter a font lacks
_matched_fonts: list[tuple[str, int]] = []  # fonts that served before: fontconfig is a process each time
_warned: set[str] = set()


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of `size` pixels for `text`: Pillow's own, DejaVu Sans, or one of this machine that has the letters.

    What none of them has is drawn as boxes, after one log line that names the packages to install.
    """
    own = _font(None, size)
    if text.isascii():
        return own
    missing = missing_characters(frozenset(text), own)
    alphabetic = frozenset(filter(str.isalpha, missing))
    for characters in filter(None, (missing, alphabetic)):  # signs and emoji may be boxes before words are
        for face in _candidates(characters):
            font = _font(face, size)
            if not missing_characters(characters, font):
                if face not in _matched_fonts:
                    _matched_fonts.append(face)
                _warn(missing_characters(missing, font))
                return font
    _warn(missing)
    return own


def missing_characters(characters: frozenset[str], font: ImageFont.FreeTypeFont) -> frozenset[str]:
    """Those of the characters that the font draws as its box."""
    box = bytes(font.getmask(_UNASSIGNED))
    return frozenset(c for c in characters if not c.isspace() and bytes(font.getmask(c)) == box)


@functools.lru_cache(maxsize=64)
def _font(face: tuple[str, int] | None, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size) if face is None else ImageFont.truetype(face[0], size, index=face[1])
    assert isinstance(font, ImageFont.FreeTypeFont)  # the other kind is for a Pillow built without FreeType
    return font


def _dejavu() -> tuple[str, int]:
    """DejaVu Sans, which comes with matplotlib: Latin with accents, Greek, Cyrillic, Arabic."""
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 0


def _candidates(characters: frozenset[str]) -> Iterator[tuple[str, int]]:
    yield _dejavu()
    yield from tuple(_matched_fonts)
    yield from _system_fonts(characters)


@functools.lru_cache(maxsize=256)
def _system_fonts(characters: frozenset[str]) -> tuple[tuple[str, int], ...]:
    """(file, index in it) of the fonts that have all of the characters, the one that fontconfig prefers first."""
    pattern = ":charset=" + " ".join(f"{ord(character):x}" for character in sorted(characters))
    preferred = _fontconfig("fc-match", pattern)
    return tuple(sorted(_fontconfig("fc-list", pattern), key=lambda face: face not in preferred))


def _fontconfig(program: str, pattern: str) -> list[tuple[str, int]]:
    command = [program, "-f", "%{file}\t%{index}\n", pattern]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = (line.rpartition("\t") for line in run.stdout.splitlines())
    return [(path, int(index) & 0xFFFF) for path, _, index in lines if index.isdigit()]  # above: the style's number


def _warn(characters: frozenset[str]) -> None:
    if characters and not _warned:
        _warned.update(characters)
        logger.warning(
            "no font here has %r, drawn as boxes in pictures; install one: fonts-noto-cjk and fontconfig (Debian, "
            "Ubuntu), google-noto-sans-cjk-fonts and fontconfig (Fedora)",
            "".join(sorted(characters))[:20],
        )
