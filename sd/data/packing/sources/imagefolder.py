"""Folders of the kind that the datasets library calls imagefolder: a metadata file in a folder names its pictures."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from isal import isal_zlib

from sd.data.packing.sources.jsonl import JsonlSource
from sd.data.packing.sources.loaded import Loaded
from sd.data.packing.sources.parquet import ParquetSource
from sd.data.packing.sources.table import TableSource
from sd.data.packing.sources.walk import walk
from sd.data.parts import storage
from sd.errors import InputError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
IMAGE_KEY = "file_name"


@dataclass(frozen=True)
class MetadataItem:
    """An item of the source that reads the metadata file at `path`."""

    path: str
    item: Any


@dataclass(frozen=True)
class ImagefolderSource:
    """Every metadata file of a folder and its sub-folders (splits); each names its pictures relative to itself.

    image_key: `file_name` where it is the packer's default.
    """

    path: str
    caption_keys: tuple[str, ...]
    image_key: str
    allow_outside: bool
    column_keys: tuple[str, ...] = ()

    def items(self) -> Iterator[tuple[MetadataItem, float]]:
        """Raises InputError for a folder without a metadata file, and for one with two."""
        num_files = 0
        for listed in walk(self.path):
            metadata = [name for name in METADATA if name in listed.names]
            if len(metadata) > 1:
                raise InputError(f"{self.path}/{listed.folder}: {' and '.join(metadata)}; keep one of them")
            for name in metadata:
                num_files += 1
                path = storage.join(self.path, listed.folder + name)
                for item, done in self.source(path).items():
                    yield MetadataItem(path, item), listed.start + listed.share * done
        if not num_files:
            raise InputError(f"--input_path {self.path}: none of {', '.join(METADATA)} in it or its sub-folders")

    def source(self, path: str) -> JsonlSource | TableSource | ParquetSource:
        """The source that reads one metadata file."""
        keys = (self.caption_keys, self.image_key, self.allow_outside)
        if path.endswith(".jsonl"):
            return JsonlSource(path, *keys)
        if path.endswith(".csv"):
            return TableSource(path, "csv", *keys)
        return ParquetSource(path, *keys, self.column_keys)

    def position(self, item: MetadataItem) -> dict:
        return {"file": item.path} | self.source(item.path).position(item.item)

    @contextmanager
    def open(self) -> Iterator["ImagefolderLoader"]:
        with ExitStack() as stack:
            yield ImagefolderLoader(self, stack)


class ImagefolderLoader:
    """The loaders of the metadata files that a part's rows stand in."""

    def __init__(self, source: ImagefolderSource, stack: ExitStack):
        self._source, self._stack, self._loaders = source, stack, {}

    def _loader(self, path):
        if path not in self._loaders:
            self._loaders[path] = self._stack.enter_context(self._source.source(path).open())
        return self._loaders[path]

    def signature(self, items: list[MetadataItem]) -> str:
        """CRC-32 over the signatures of the metadata files' own rows."""
        named = []
        for path, group in groupby(items, lambda item: item.path):
            named.append((storage.base_name(path), self._loader(path).signature([item.item for item in group])))
        return f"{isal_zlib.crc32(ascii(named).encode()):08x}"

    def image_name(self, item: Any) -> str:
        return self._loader(item.path).image_name(item.item)

    def load(self, item: MetadataItem) -> Loaded:
        return self._loader(item.path).load(item.item)
