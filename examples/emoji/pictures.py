"""The pictures of a colour emoji font with their Unicode names: a folder of PNGs and a JSONL for packing.

    python -m examples.emoji.pictures --output emoji_out/pictures

A font with bitmaps has them in one size (Noto Color Emoji: 136 x 128 pixels at size 109); each is pasted in the middle
of a transparent square. Needs nothing beside Pillow: a font has a character if it draws something for it.
"""

import sys

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    from sd.entry import run

    run("examples.emoji.pictures")
    sys.exit()

import argparse
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from sd.errors import InputError
from sd.files import atomic_path
from sd.flags.parser import Parser

SIDE = 136
FONT_SIZE = 109
# Emoji are symbols of these blocks; what a font draws for letters and digits (keycaps) is none by itself.
CODE_POINTS = (range(0x2000, 0x3300), range(0x1F000, 0x1FB00))
CATEGORIES = ("So", "Sm", "Po", "Sk")
FLAGS = {*range(0x1F1E6, 0x1F200), 0x1F3F3, 0x1F3F4, 0x1F38C, 0x1F6A9, 0x1F3C1}
SKIN_TONES = range(0x1F3FB, 0x1F400)


def find_font(name: str) -> str:
    """File of an installed font by its name ("Noto Color Emoji" is NotoColorEmoji.ttf); `name` itself, if a file."""
    if Path(name).is_file():
        return name
    from matplotlib.font_manager import findSystemFonts

    stem = name.replace(" ", "").lower()
    found = [file for file in sorted(findSystemFonts()) if Path(file).stem.lower() == stem]
    if not found:
        raise InputError(
            f"{name}: no such font; install it (Debian and Ubuntu: apt-get install fonts-noto-color-emoji;"
            " Fedora: dnf install google-noto-color-emoji-fonts) or give its file by --font"
        )
    return found[0]


def load_font(file: str) -> ImageFont.FreeTypeFont:
    """The font at the size of its bitmaps."""
    try:
        return ImageFont.truetype(file, FONT_SIZE)
    except OSError as error:
        raise InputError(f"{file}: {error}; expected a TrueType font with bitmaps of size {FONT_SIZE}") from None


def picture_of(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """`character` in the middle of a transparent square of SIDE pixels; None if the font has no colours for it."""
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    picture = Image.new("RGBA", (SIDE, SIDE))
    place = (SIDE - (right - left)) / 2 - left, (SIDE - (bottom - top)) / 2 - top
    ImageDraw.Draw(picture).text(place, character, font=font, embedded_color=True)
    colours = picture.getcolors(SIDE * SIDE) or []
    drawn = any(alpha and (red, green, blue) != (255, 255, 255) for _, (red, green, blue, alpha) in colours)
    return picture if drawn else None


def emoji(font: ImageFont.FreeTypeFont, with_flags: bool, with_skin_tones: bool) -> Iterator[tuple[str, Image.Image]]:
    """Characters that the font draws in colour and Unicode names, in the order of their code points."""
    for code_points in CODE_POINTS:
        for code_point in code_points:
            character = chr(code_point)
            if unicodedata.category(character) not in CATEGORIES or not unicodedata.name(character, ""):
                continue
            if (code_point in FLAGS and not with_flags) or (code_point in SKIN_TONES and not with_skin_tones):
                continue
            picture = picture_of(font, character)
            if picture is not None:
                yield character, picture


def write(output: Path, fonts: list[tuple[str, str]], with_flags: bool = False, with_skin_tones: bool = False) -> Path:
    """Write the pictures of `fonts`, (file, words after each caption), below `output`. Returns the JSONL."""
    (output / "images").mkdir(parents=True, exist_ok=True)
    jsonl = output / "emoji.jsonl"
    with atomic_path(jsonl) as path, path.open("w", encoding="utf-8") as lines:
        for number, (file, style) in enumerate(fonts):
            pictures = emoji(load_font(file), with_flags, with_skin_tones)
            for character, picture in tqdm(pictures, desc=Path(file).stem, unit="picture"):
                name = f"images/{number}_{ord(character):x}.png"
                picture.save(output / name)
                row = {"caption": unicodedata.name(character).lower() + style, "image": name}
                row |= {"image_id": f"U+{ord(character):04X}", "code_point": ord(character)}
                lines.write(json.dumps(row) + "\n")
    return jsonl


def main() -> None:
    parser = Parser(description="Write the pictures of a colour emoji font with their names.")
    parser.add_argument("--output", default="emoji_out/pictures", help="folder to write")
    parser.add_argument("--font", default="Noto Color Emoji", help="name or file of the font")
    parser.add_argument("--second_font", help="another font, whose captions end in --second_style")
    parser.add_argument("--second_style", default=", flat style", help="what tells the second font's captions apart")
    parser.add_argument("--flags", action=argparse.BooleanOptionalAction, default=False, help="flags as well")
    parser.add_argument("--skin_tones", action=argparse.BooleanOptionalAction, default=False, help="swatches of skin")
    args = parser.parse_args()
    fonts = [(find_font(args.font), "")]
    if args.second_font:
        fonts.append((find_font(args.second_font), args.second_style))
    print(write(Path(args.output), fonts, args.flags, args.skin_tones))
