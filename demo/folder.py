"""A folder of pictures with their captions beside them (cat.jpg, cat.txt), as the JSONL that packing reads.

python -m demo.folder pictures --output captions.jsonl
"""

import sys

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    from sd.entry import run

    run("demo.folder")
    sys.exit()

import argparse
import json
from pathlib import Path

from sd.errors import InputError
from sd.text import TextError, decode_text

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def rows_of(folder: Path) -> tuple[list[dict[str, str]], list[Path]]:
    """The rows {"caption", "image"} of all pictures below `folder`, sorted, and the pictures without a caption."""
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    captioned = [picture for picture in pictures if picture.with_suffix(".txt").is_file()]
    rows = []
    for picture in captioned:
        try:
            caption = decode_text(picture.with_suffix(".txt").read_bytes())
        except TextError as error:
            raise InputError(f"{picture.with_suffix('.txt')}: {error}; save it as UTF-8") from None
        rows.append({"caption": " ".join(caption.split()), "image": str(picture.resolve())})
    return rows, sorted(set(pictures) - set(captioned))


def main() -> None:
    """Write the JSONL; print how many rows it holds and which pictures have no caption."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="JSONL file to write")
    flags = parser.parse_args()
    if not flags.folder.is_dir():
        raise InputError(f"{flags.folder}: no such folder")
    rows, without = rows_of(flags.folder)
    if not rows:
        raise InputError(f"{flags.folder}: no picture with a caption beside it; expected pairs as cat.jpg, cat.txt")
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    flags.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} captioned pictures in {flags.output}")
    if without:
        print(f"{len(without)} pictures have no .txt of the same name, the first of them {without[0]}")
