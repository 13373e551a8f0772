"""PNG files of drawn pictures, with their prompt and settings as text chunks, written atomically."""

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from sd.data.images.decode import decode_image
from sd.data.parts.record import RowError
from sd.errors import ArgumentError, InputError, RunError
from sd.files import atomic_path, is_disk_full, is_unfinished

_ABANDONED_SECONDS = 600  # a picture is written in a moment


def check_folder(path: str | Path) -> None:
    """Raise InputError if `make_folder` cannot make the folder, since a file is in its place."""
    path = Path(path)
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise ArgumentError("output", str(path), f" cannot be written: {nearest} is a file; choose another")


def make_folder(path: str | Path) -> Path:
    """Make a folder for pictures, and remove what a kill left half written there. Raises InputError if it cannot be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for file in path.glob("*.tmp"):
            if is_unfinished(file.name) and time.time() - file.stat().st_mtime > _ABANDONED_SECONDS:
                file.unlink(missing_ok=True)
    except OSError as error:
        raise ArgumentError("output", str(path), f" cannot be written: {error.strerror}; choose another") from None
    return path


def write_png(
    path: str | Path,
    image: Image.Image | np.ndarray,
    prompt: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a picture as a PNG file, atomically.

    image: PIL image or uint8 [H,W,3]. prompt and settings (a dict) go into the text chunks of those names.
    Raises RunError if the disk is full or not writable.
    """
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    text = PngImagePlugin.PngInfo()
    if prompt is not None:
        text.add_itxt("prompt", prompt)
    if settings is not None:
        text.add_itxt("settings", json.dumps(settings, ensure_ascii=False))
    with written(Path(path)) as temporary:
        image.save(temporary, "png", pnginfo=text)


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Atomic write of an output: `sd.files.atomic_path`, whose OSError becomes a RunError with its remedy."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        full = is_disk_full(error)
        cause = "the disk is full; free some space" if full else f"{error.strerror}; make the folder writable"
        raise RunError(
            f"{path} not written: {cause} and run the same command again, finished pictures are kept"
        ) from None


def read_png_text(path: str | Path) -> tuple[str | None, dict | None]:
    """(prompt, settings) of a picture written by `write_png`, or (None, None) if it is none."""
    try:
        with Image.open(path) as image:
            return image.info.get("prompt"), json.loads(image.info.get("settings", "null"))
    except (OSError, ValueError, SyntaxError):
        return None, None


def read_pixels(path: str | Path) -> np.ndarray:
    """A picture's uint8 [H,W,3], as training would see it. Raises InputError."""
    try:
        return decode_image(Path(path).read_bytes())
    except (OSError, RowError) as error:
        raise InputError(f"{path}: {error}; take it out of the folder, or draw it again") from None


def slug(text: str, max_length: int = 40) -> str:
    """A prompt as a part of a file name: its letters, of any script, in lower case, its digits, and hyphens."""
    return re.sub(r"[\W_]+", "-", text.lower())[:max_length].strip("-") or "picture"
