"""Shards of the webdataset kind, as img2dataset writes them: tar files of `KEY.jpg`, `KEY.txt`, `KEY.json` members."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

from isal import isal_zlib

from sd.data.packing.outcomes import BadRow
from sd.data.packing.sources.find import find_inputs
from sd.data.packing.sources.folders import check_size, check_text_size
from sd.data.packing.sources.inputs import raise_if_not_downloaded
from sd.data.packing.sources.loaded import Loaded, captions_beside
from sd.data.packing.sources.tar import Member, group_samples, list_members
from sd.data.parts import storage
from sd.text import TextError, decode_text


@dataclass(frozen=True)
class TarItem:
    """An image member with what may hold its caption; a sample without an image; or a shard's damage."""

    shard: str
    key: str = ""
    image: Member | None = None
    texts: dict[str, Member] = field(default_factory=dict)
    damage: str = ""


@dataclass(frozen=True)
class WebdatasetSource:
    """Tar shards by glob, folder, braces or name; every image member is an item.

    A caption is what the JSON member has under a key of `caption_keys`, else the member of that suffix, else, of the
    first key, the text member.
    """

    path: str
    caption_keys: tuple[str, ...]

    def items(self) -> Iterator[tuple[TarItem, float]]:
        shards = find_inputs(self.path, ".tar")
        for number, shard in enumerate(shards):
            items = list(_items(shard, self.caption_keys))
            for at, item in enumerate(items, 1):
                yield item, (number + at / len(items)) / len(shards)

    @staticmethod
    def position(item: TarItem) -> dict:
        named = {"key": item.key} if item.key else {}
        return {"shard": item.shard} | named | ({"image": item.image.name} if item.image else {})

    @contextmanager
    def open(self) -> Iterator["WebdatasetLoader"]:
        loader = WebdatasetLoader(self.caption_keys)
        try:
            yield loader
        finally:
            loader.close()


def _items(shard, keys):
    try:
        with storage.open_binary(shard) as file:
            members, damage = list_members(file)
    except FileNotFoundError:
        members, damage = [], "no such file"
    for sample in group_samples(members, keys):
        for image in sample.images or (None,):
            yield TarItem(shard, sample.key, image, sample.texts)
    if damage:
        yield TarItem(shard, damage=damage)


class WebdatasetLoader:
    """Reads members by their place; the shard read last stays open."""

    def __init__(self, caption_keys: Sequence[str]):
        self._caption_keys = caption_keys
        self._shard: str | None = None
        self._file: BinaryIO | None = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._shard = self._file = None

    @staticmethod
    def signature(items: list[TarItem]) -> str:
        """CRC-32 over names and places of all members, and size and time of change of the shards."""
        versions = {shard: storage.version_or_error(shard) for shard in {item.shard for item in items}}
        named = [(storage.base_name(item.shard), versions[item.shard], item.image, item.texts) for item in items]
        return f"{isal_zlib.crc32(ascii(named).encode()):08x}"

    @staticmethod
    def image_name(item: object) -> str:
        """Nothing: the item's place has it."""
        return ""

    def load(self, item: TarItem) -> Loaded:
        if item.damage:
            raise BadRow("the shard is damaged", item.damage)
        if item.image is None:
            if "json" in item.texts:
                fields = self._fields(item)
                raise_if_not_downloaded(fields if isinstance(fields, dict) else {})
            raise BadRow("no image in the shard", f"{item.key} has only {', '.join(item.texts)}")
        if item.image.problem:
            raise BadRow("the member cannot be read", item.image.problem)
        check_size(item.image.num_bytes, item.image.name)
        fields = self._fields(item) if "json" in item.texts else None
        captions = captions_beside(
            fields, self._caption_keys, item.texts, ("txt",), lambda suffix: [self._text(item, suffix)]
        )
        if captions is None:
            raise BadRow("no caption in the shard", f"neither {item.key}.json nor {item.key}.txt is in it")
        return Loaded(captions, self._read(item.shard, item.image), fields if isinstance(fields, dict) else {})

    def _fields(self, item):
        try:
            return json.loads(self._text(item, "json"))
        except (ValueError, RecursionError) as error:
            raise BadRow("not JSON", f"{item.key}.json: {error}") from error

    def _text(self, item, suffix):
        member = item.texts[suffix]
        if member.problem:
            raise BadRow("the member cannot be read", f"{member.name}: {member.problem}")
        check_text_size(member.num_bytes, member.name)
        try:
            return decode_text(self._read(item.shard, member))
        except TextError as error:
            raise BadRow("text of another encoding", f"{member.name}: {error}") from error

    def _opened(self, shard: str) -> BinaryIO:
        if self._file is None or shard != self._shard:
            self.close()
            self._file, self._shard = storage.open_binary(shard), shard
        return self._file

    def _read(self, shard, member):
        file = self._opened(shard)
        file.seek(member.offset)
        data = file.read(member.num_bytes)
        if len(data) < member.num_bytes:
            raise BadRow("the shard is cut", f"{member.name}: {member.num_bytes - len(data)} bytes missing")
        return data
