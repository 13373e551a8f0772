"""Pictures with texts beside them, `cat.jpg` and `cat.txt`: kohya's, OneTrainer's and img2dataset's folders."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

from isal import isal_zlib

from sd.data.packing.outcomes import BadRow, Filtered, Unpaired
from sd.data.packing.sources.folders import LocalFolder, RemoteFolder, folder_at
from sd.data.packing.sources.loaded import Loaded, captions_beside
from sd.data.packing.sources.tar import IMAGE_SUFFIXES
from sd.data.packing.sources.walk import Listed, top_folders, walk
from sd.errors import InputError
from sd.text import TextError, decode_text, split_lines

CAPTION_SUFFIXES = ("txt", "caption")
_TEXT_SUFFIXES = (*CAPTION_SUFFIXES, "json")
_MASKS = ("-masklabel.png", "-condlabel.png")  # OneTrainer's
_REPEAT = re.compile(r"(\d+)_(.+)")
_MAX_REPEAT = 10_000
_PREFETCH = 32  # remote images in memory at a time


@dataclass(frozen=True)
class PairItem:
    """An image with the files that may hold its caption, by suffix; or a text without one. Paths are below the root."""

    image: str
    texts: dict[str, str] = field(default_factory=dict)
    repeat: int = 1
    default: str | None = None  # the caption where there is no file: the name of kohya's folder


@dataclass(frozen=True)
class PairSource:
    """A folder with its sub-folders; every picture is an item, and so is every text without a picture.

    A caption of `a.jpg` is what `a.json` has under a key of `caption_keys`, else `a.KEY`, else, of the first key,
    `a.txt` or `a.caption`; it may also be named after the whole image, `a.jpg.txt`. kohya_folders: pictures below a
    folder `NN_name` carry the repeat NN, and the caption `name` where they have no other. caption_lines: every line of
    a text is a caption.
    """

    path: str
    caption_keys: tuple[str, ...]
    allow_outside: bool
    kohya_folders: bool = False
    caption_lines: bool = False

    def items(self) -> Iterator[tuple[PairItem, float]]:
        """Raises InputError for what is no folder, or has no pictures."""
        num_images = 0
        for listed in walk(self.path):
            repeat, default = self._kohya(listed.folder)
            for item, number in _pairs(listed, self.caption_keys, repeat, default):
                num_images += bool(item.image)
                yield item, listed.start + listed.share * number / len(listed.names)
        if not num_images:
            raise InputError(f"--input_path {self.path}: no picture in it or its sub-folders")

    def _kohya(self, folder):
        match = _REPEAT.fullmatch(folder.partition("/")[0]) if self.kohya_folders else None
        if not match:
            return 1, None
        if int(match[1]) > _MAX_REPEAT:
            raise InputError(
                f"{self.path}/{match[0]}: a repeat of {match[1]}, expected at most {_MAX_REPEAT}; rename the "
                "folder, or leave out --kohya_folders"
            )
        return int(match[1]), match[2]

    @staticmethod
    def position(item: PairItem) -> dict:
        return {"file": item.image or next(iter(item.texts.values()))}

    @contextmanager
    def open(self) -> Iterator["PairLoader"]:
        yield PairLoader(self.caption_keys, folder_at(self.path, self.allow_outside), self.caption_lines)


def find_kohya_folders(path: str) -> list[str]:
    """The folders right below `path` that kohya's scripts would read a repeat from."""
    return [name for name in top_folders(path) if _REPEAT.fullmatch(name)]


def _pairs(listed: Listed, keys, repeat, default):
    """(item, number of the name that it stands for) of one folder, in the order of names.

    A folder may hold millions: beside the names there is no more than a set of them.
    """
    names = set(listed.names)
    unusual: dict[str, dict[str, str]] = {}  # stem -> {suffix: name}, of suffixes that are neither small nor capital
    suffixes = {*_TEXT_SUFFIXES, *keys}
    for name in listed.names:
        stem, suffix = _split(name)
        if not name.endswith((f".{suffix}", f".{suffix.upper()}")):
            unusual.setdefault(stem, {})[suffix] = name

    def named(stem, suffix):
        candidates = (f"{stem}.{variant}" for variant in (suffix, suffix.upper()) if f"{stem}.{variant}" in names)
        return next(candidates, None) or unusual.get(stem, {}).get(suffix)

    for number, name in enumerate(listed.names, 1):
        stem, suffix = _split(name)
        if suffix in IMAGE_SUFFIXES:
            text_names = {end: named(stem, end) or named(name, end) for end in suffixes}
            texts = {end: listed.folder + text for end, text in sorted(text_names.items()) if text}
            yield PairItem(listed.folder + name, texts, repeat, default), number
        elif suffix in CAPTION_SUFFIXES and not _has_image(stem, names, named):
            yield PairItem("", {suffix: listed.folder + name}, repeat), number


def _has_image(stem, names, named):
    named_after_image = stem in names and _split(stem)[1] in IMAGE_SUFFIXES
    return named_after_image or any(named(stem, suffix) for suffix in IMAGE_SUFFIXES)


def _split(name):
    stem, _, suffix = name.rpartition(".")
    return stem, suffix.lower()


class PairLoader:
    """Looks at all files of a part first, then reads them, remote images several at a time."""

    def __init__(self, caption_keys: Sequence[str], folder: LocalFolder | RemoteFolder, caption_lines: bool = False):
        self._caption_keys, self._folder, self._caption_lines = caption_keys, folder, caption_lines
        self._ahead = {}  # images that are not read yet, in order

    def signature(self, items: list[PairItem]) -> str:
        """CRC-32 over the names of all files and their sizes and times of change."""
        self._ahead = dict.fromkeys(item.image for item in items if item.image)
        names = [name for item in items for name in (item.image, *item.texts.values()) if name]
        named = list(zip(names, self._folder.versions(names), strict=True))
        defaults = [item.default for item in items]
        return f"{isal_zlib.crc32(ascii([named, defaults]).encode()):08x}"

    @staticmethod
    def image_name(item: object) -> str:
        """Nothing: the item's place has it."""
        return ""

    def load(self, item: PairItem) -> Loaded:
        if not item.image:
            raise Unpaired("a text without an image", "")
        if item.image.lower().endswith(_MASKS):
            raise Filtered("a mask of OneTrainer's", "")
        if item.repeat == 0:
            raise Filtered("a folder of repeat 0", "")
        self._ahead.pop(item.image, None)
        fields = self._fields(item.texts["json"]) if "json" in item.texts else None
        captions = captions_beside(
            fields, self._caption_keys, item.texts, CAPTION_SUFFIXES, lambda suffix: self._captions(item.texts[suffix])
        )
        if captions is None:
            if item.default is None:
                raise BadRow("no caption beside the image", "expected a .txt of the same name")
            name = os.fsencode(item.default)  # that of a folder, which may be in any encoding
            captions = ((self._caption_keys[0], _decoded(name, item.image)),)
        if not self._folder.is_prefetched(item.image):
            self._folder.prefetch([item.image, *islice(self._ahead, _PREFETCH - 1)])
        return Loaded(captions, self._folder.read(item.image), fields if isinstance(fields, dict) else {})

    def _captions(self, name):
        """The text of a file, or its lines that are not blank."""
        text = self._text(name)
        return [line for line in split_lines(text) if line.strip()] or [""] if self._caption_lines else [text]

    def _fields(self, name):
        try:
            return json.loads(self._text(name))
        except (ValueError, RecursionError) as error:
            raise BadRow("not JSON", f"{name}: {error}") from error

    def _text(self, name):
        return _decoded(self._folder.read_text(name), name)


def _decoded(data, name):
    try:
        return decode_text(data)
    except TextError as error:
        raise BadRow("text of another encoding", f"{name}: {error}") from error
