"""Shards of the webdataset kind, as img2dataset writes them: tar files of `KEY.jpg`, `KEY.txt`, `KEY.json` members."""

import json
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass

from isal import isal_zlib

from sd.data.packing.sources.folders import BadRow, check_size
from sd.data.packing.sources.inputs import find_inputs, text_of
from sd.data.parts import storage

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class WebdatasetSource:
    """Tar shards by glob, folder or name. An item is (shard, key, {suffix: (offset, bytes)}) or (shard, error, None).

    The caption is `caption_key` of the JSON member if that is there, else the text member.
    """

    path: str
    caption_key: str

    def items(self):
        shards = find_inputs(self.path, ".tar")
        for number, shard in enumerate(shards):
            with storage.open_binary(shard) as file:
                num_bytes = storage.size_of(shard)
                for key, members, end in _samples(file):
                    yield (shard, key, members), (number + min(1.0, end / num_bytes)) / len(shards)

    @staticmethod
    def place(item):
        shard, key, members = item
        return {"shard": shard} if members is None else {"shard": shard, "key": key}

    @contextmanager
    def open(self):
        loader = WebdatasetLoader(self.caption_key)
        try:
            yield loader
        finally:
            loader.close()


def _samples(file):
    """Yield (key, members, end of its last member): members of one name in a row are a sample."""
    key, members, end = None, {}, 1
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if members and folder + slash + stem != key:
                    yield key, members, end
                    members = {}
                key = folder + slash + stem
                members[suffix.lower()] = (member.offset_data, member.size)
                end = member.offset_data + member.size
    except tarfile.TarError as error:
        if members:
            yield key, members, end
        yield str(error), None, end
        return
    if members:
        yield key, members, end


class WebdatasetLoader:
    def __init__(self, caption_key):
        self._caption_key = caption_key
        self._shard = self._file = None

    def close(self):
        if self._file is not None:
            self._file.close()
            self._shard = self._file = None

    @staticmethod
    def signature(items):
        """CRC-32 over the names and places of all members."""
        named = [(storage.base_name(shard), key, members) for shard, key, members in items]
        return isal_zlib.crc32(json.dumps(named).encode())

    def load(self, item):
        shard, key, members = item
        if members is None:
            raise BadRow("the shard is damaged", key)
        suffix = next((suffix for suffix in _IMAGE_SUFFIXES if suffix in members), None)
        if suffix is None:
            raise BadRow("no image in the shard", f"{key}: {', '.join(members)}")
        check_size(members[suffix][1], f"{key}.{suffix}")
        return self._caption(shard, key, members), self._read(shard, *members[suffix])

    def _caption(self, shard, key, members):
        for suffix in ("json", "txt"):
            if members.get(suffix, (0, 0))[1] > _MAX_TEXT_BYTES:
                raise BadRow("caption too large", f"{key}.{suffix}: {members[suffix][1]} bytes")
        if "json" in members:
            try:
                fields = json.loads(self._read(shard, *members["json"]))
            except (ValueError, RecursionError) as error:
                raise BadRow("not JSON", f"{key}.json: {error}") from error
            if "txt" not in members or (isinstance(fields, dict) and self._caption_key in fields):
                return text_of(fields, self._caption_key)
        if "txt" not in members:
            raise BadRow("no caption in the shard", f"{key}: {', '.join(members)}")
        return self._read(shard, *members["txt"]).decode("utf-8", "replace")

    def _read(self, shard, offset, num_bytes):
        if shard != self._shard:
            self.close()
            self._file, self._shard = storage.open_binary(shard), shard
        self._file.seek(offset)
        data = self._file.read(num_bytes)
        if len(data) < num_bytes:
            raise BadRow("the shard is cut", f"{num_bytes - len(data)} bytes missing")
        return data
