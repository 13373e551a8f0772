"""Where rows to pack come from. The parent lists items, cheaply and in order; a worker loads them.

A source has `items()`, which yields (item, share of the input listed so far), and `open()`, a context manager for a
loader: `loader.signature(items)` says what the items are without reading images, and `loader.load(item)` gives a
Loaded or raises BadRow. `place(item)` names an item for people. This file has the JSONL source.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from isal import isal_zlib

from sd.data.packing.outcomes import BadRow
from sd.data.packing.sources.folders import LocalFolder, RemoteFolder, folder_at
from sd.data.packing.sources.inputs import input_error, raise_if_not_downloaded, refuse_other_than_lines, text_of
from sd.data.packing.sources.loaded import Loaded, captions_of
from sd.data.parts import storage
from sd.errors import InputError
from sd.text import decode_text

MAX_LINE_BYTES = 16 << 20
_PREFETCH = 32  # remote images in memory at a time


@dataclass(frozen=True)
class JsonlSource:
    """One JSON object a line, images as files beside it. An item is (line number from 1, line)."""

    path: str
    caption_keys: tuple[str, ...]
    image_key: str
    allow_outside: bool

    def items(self) -> Iterator[tuple[Any, float]]:
        try:
            num_bytes = storage.size_of(self.path)
            if not storage.is_remote(self.path) and not Path(self.path).is_file():
                raise InputError(f"--input_path {self.path}: not a file; expected a JSONL file")
            file = storage.open_binary(self.path)
        except OSError as error:
            raise input_error(self.path, error.strerror or str(error)) from error
        with file:
            refuse_other_than_lines(file, self.path)
            num_read, number = 0, 0
            while line := file.readline(MAX_LINE_BYTES):
                num_read += len(line)
                if number == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                number += 1
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    raise InputError(f"{self.path}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; not JSONL?")
                line = line.strip()
                if line:
                    yield (number, line), num_read / num_bytes

    @staticmethod
    def position(item: Any) -> dict[str, Any]:
        return {"line": item[0]}

    @contextmanager
    def open(self) -> Iterator["JsonlLoader"]:
        yield JsonlLoader(self, folder_at(storage.folder_of(self.path), self.allow_outside))


class JsonlLoader:
    """Looks at all rows of a part first, then reads their images, remote ones several at a time."""

    def __init__(self, source: JsonlSource, folder: LocalFolder | RemoteFolder):
        self._source, self._folder = source, folder
        self._rows = {}  # line number -> (captions, image path, fields), of rows that are not loaded yet

    def signature(self, items: Sequence[Any]) -> str:
        """CRC-32 over the lines, and over size and time of change of the images they name."""
        for number, line in items:
            with suppress(BadRow):
                self._rows[number] = self._parse(line)
        versions = self._folder.versions([image_path for _, image_path, _ in self._rows.values()])
        version_of = dict(zip(self._rows, versions, strict=True))
        crc = 0
        for number, line in items:
            crc = isal_zlib.crc32(b"%d %b %b\n" % (number, line, version_of.get(number, "").encode()), crc)
        return f"{crc:08x}"

    def image_name(self, item: Any) -> str:
        """The path of an item's image as the line has it, empty if there is none."""
        with suppress(BadRow):
            return self._parse(item[1])[1]
        return ""

    def load(self, item: Any) -> Loaded:
        number, line = item
        captions, image_path, fields = self._rows.pop(number, None) or self._parse(line)
        if not self._folder.is_prefetched(image_path):
            following = (path for _, path, _ in islice(self._rows.values(), _PREFETCH - 1))
            self._folder.prefetch([image_path, *following])
        return Loaded(captions, self._folder.read(image_path), fields)

    def _parse(self, line):
        try:
            fields = json.loads(decode_text(line))
        except (ValueError, RecursionError) as error:  # TextError is a ValueError
            raise BadRow("not JSON", str(error)) from error
        if isinstance(fields, dict) and fields.get(self._source.image_key) is None:
            raise_if_not_downloaded(fields)
        return captions_of(fields, self._source.caption_keys), text_of(fields, self._source.image_key), fields
