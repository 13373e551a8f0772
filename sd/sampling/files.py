"""Pictures as PNG files that tell how they were made, each there whole or not at all."""

import contextlib
import errno
import json
import os
import re
import time
from pathlib import Path

from PIL import Image, PngImagePlugin

from sd.data.images.decode import decode_image
from sd.data.parts.record import RowError
from sd.errors import ArgumentError, InputError, RunError

_ABANDONED_SECONDS = 600  # a picture is written in a moment


def make_folder(path):
    """Make a folder for pictures, and remove what a kill left half written there. Raises InputError if it cannot be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for aside in path.glob(".*.tmp"):
            if re.fullmatch(r"\..+\.\d+\.tmp", aside.name) and time.time() - aside.stat().st_mtime > _ABANDONED_SECONDS:
                aside.unlink(missing_ok=True)
    except OSError as error:
        raise ArgumentError("output", str(path), f" cannot be written: {error.strerror}; choose another") from None
    return path


def write_png(path, image, prompt=None, settings=None):
    """Write a picture aside and rename it, so that nothing half written bears its name.

    image: PIL image or uint8 [H,W,3]. prompt and settings (a dict) go into the text chunks of those names.
    Raises RunError if the disk is full or not writable.
    """
    path = Path(path)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    text = PngImagePlugin.PngInfo()
    if prompt is not None:
        text.add_itxt("prompt", prompt)
    if settings is not None:
        text.add_itxt("settings", json.dumps(settings, ensure_ascii=False))
    with written(path) as aside, aside.open("wb") as file:
        image.save(file, "png", pnginfo=text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def written(path):
    """Within the context a name beside `path`, which takes its place in the end, so that no half file bears the name.

    Raises RunError if the disk is full or not writable.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        aside.replace(path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = "the disk is full; free some space" if full else f"{error.strerror}; make the folder writable"
        raise RunError(
            f"{path} not written: {why} and run the same command again, finished pictures are kept"
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def read_png_text(path):
    """(prompt, settings) of a picture written by `write_png`, or (None, None) if it is none."""
    try:
        with Image.open(path) as image:
            return image.info.get("prompt"), json.loads(image.info.get("settings", "null"))
    except (OSError, ValueError, SyntaxError):
        return None, None


def read_pixels(path):
    """A picture's uint8 [H,W,3], as training would see it. Raises InputError."""
    try:
        return decode_image(Path(path).read_bytes())
    except (OSError, RowError) as error:
        raise InputError(f"{path}: {error}; take it out of the folder, or draw it again") from None


def slug(text, most=40):
    """A prompt as a part of a file name: its letters, of any script, in lower case, its digits, and hyphens."""
    return re.sub(r"[\W_]+", "-", text.lower())[:most].strip("-") or "picture"
