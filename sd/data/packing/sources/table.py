"""Tables with a header, CSV or TSV, that name image files and their captions."""

import csv
import io
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

from isal import isal_zlib

from sd.data.packing.outcomes import BadRow
from sd.data.packing.sources.find import find_inputs
from sd.data.packing.sources.folders import folder_at
from sd.data.packing.sources.inputs import list_names, raise_if_not_downloaded, refuse_other_than_lines
from sd.data.packing.sources.loaded import Loaded, captions_of
from sd.data.parts import storage
from sd.errors import InputError, first_line
from sd.text import TextError, decode_text, unquoted

MAX_LINE_CHARS = 16 << 20
_DELIMITERS = {"csv": ",;", "tsv": "\t"}
_BETWEEN = b"\x1f"  # ASCII's unit separator
_PREFETCH = 32  # remote images in memory at a time


@dataclass(frozen=True)
class TableItem:
    """A row: its file, the line it begins in, and its fields as bytes of the file; or why it has none."""

    path: str
    line: int
    names: tuple[str, ...]  # of the header
    fields: tuple[bytes, ...] = ()
    damage: str = ""


@dataclass(frozen=True)
class TableSource:
    """Tables by glob, folder, braces or name; image paths are relative to the folder of their table.

    kind "csv": separated by commas, or by semicolons where the header is; fields in quotation marks may hold separators
    and line breaks. "tsv": a row a line; a field wholly in quotation marks loses them, a bare one stays.
    """

    path: str
    kind: str
    caption_keys: tuple[str, ...]
    image_key: str
    allow_outside: bool

    def items(self) -> Iterator[tuple[TableItem, float]]:
        """Raises InputError for a table without a header that has the two columns, and for UTF-16."""
        files = find_inputs(self.path, f".{self.kind}")
        for number, path in enumerate(files):
            try:
                num_bytes = storage.size_of(path)
                with storage.open_binary(path) as file:
                    refuse_other_than_lines(file, path)
                    for item in self._rows(path, file):
                        yield item, (number + min(1.0, file.tell() / num_bytes)) / len(files)
            except OSError as error:
                raise InputError(f"{path}: {error.strerror or error}") from error

    def _rows(self, path, file):
        """Bytes are read as Latin-1 until a row is split; then each field is decoded on its own."""
        text = io.TextIOWrapper(file, "latin-1")  # its newline=None ends a line as Unix, Windows and old Macs do
        try:
            lines = _lines(text, path)
            header = next(lines, "").removeprefix("\xef\xbb\xbf")
            delimiter = max(_DELIMITERS[self.kind], key=header.count)
            names = self._names(path, header, delimiter)
            is_csv = self.kind == "csv"
            rows = _csv_rows(lines, delimiter, len(names)) if is_csv else _tsv_rows(lines, delimiter)
            for line, fields, damage in rows:
                if not damage and len(fields) != len(names):
                    damage = f"{len(fields)} fields where the header has {len(names)}; {_REMEDY[self.kind]}"
                values = () if damage else tuple(field.encode("latin-1") for field in fields)
                yield TableItem(path, line, names, values, damage)
        finally:
            text.detach()  # the file is closed by who opened it

    def _names(self, path, header, delimiter):
        rows = (_csv_rows if self.kind == "csv" else _tsv_rows)(iter([header]), delimiter)
        _, fields, damage = next(rows, (0, [], "there is none"))
        if damage:
            raise InputError(f"{path}, line 1: the header cannot be read: {damage}")
        names = tuple(_decoded(field).strip() for field in fields)
        for flag, key in (*(("caption_key", key) for key in self.caption_keys), ("image_key", self.image_key)):
            if names.count(key) != 1:
                wrong = "several columns" if key in names else "no column"
                raise InputError(f"{path}, line 1: {wrong} {key!r} (--{flag}); the header has {list_names(names)}")
        return names

    @staticmethod
    def position(item: TableItem) -> dict:
        return {"file": item.path, "line": item.line}

    @contextmanager
    def open(self) -> Iterator["TableLoader"]:
        yield TableLoader(self)


_REMEDY = {
    "csv": "put fields that hold a separator into quotation marks",
    "tsv": "take tabs and line breaks out of its fields, or write CSV",
}


def _lines(text, path):
    number = 0
    while line := text.readline(MAX_LINE_CHARS):
        number += 1
        if len(line) == MAX_LINE_CHARS and not line.endswith("\n"):
            raise InputError(f"{path}, line {number}: longer than {MAX_LINE_CHARS >> 20} MiB; not a table?")
        yield line


class _RowLines:
    """Lines for a csv.reader, of which those of the row it reads, `taken`, can be given back but for the first."""

    def __init__(self, lines):
        self._lines, self._ahead, self.taken = lines, deque(), []

    def __iter__(self):
        return self

    def __next__(self):
        self.taken.append(self._ahead.popleft() if self._ahead else next(self._lines))
        return self.taken[-1]

    def give_back(self):
        self._ahead.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def _csv_rows(lines, delimiter, num_fields=None):
    """(line, fields, damage) of each row that is not blank; line counts from 2, behind the header.

    Of a row that cannot be read, or has not `num_fields`, the first line alone is lost: a quotation mark that is left
    open takes in thousands of good rows behind it, which are read again.
    """
    source, line = _RowLines(lines), 2
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        source.taken.clear()
        fields, damage = [], ""
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            damage = f"{first_line(error)}: is a quotation mark left open or not doubled?"
        if damage or (fields and num_fields not in (None, len(fields))):
            source.give_back()
        if fields or damage:
            yield line, fields, damage
        line += len(source.taken)


def _tsv_rows(lines, delimiter):
    for line, text in enumerate(lines, 2):
        if text.strip():
            yield line, [unquoted(field) for field in text.rstrip("\n").split(delimiter)], ""


def _decoded(field):
    try:
        return decode_text(field.encode("latin-1"))
    except TextError:
        return field


class TableLoader:
    """Looks at all rows of a part first, then reads their images, remote ones several at a time."""

    def __init__(self, source: TableSource):
        self._source, self._folders = source, {}
        self._ahead = {}  # (path of the table, line) -> image path, of rows that are not loaded yet

    def signature(self, items: list[TableItem]) -> str:
        """CRC-32 over the rows, and over size and time of change of the images they name."""
        for item in items:
            if name := self.image_name(item):
                self._ahead[item.path, item.line] = name
        versions = {}
        for path in {item.path for item in items}:
            positions = [position for position in self._ahead if position[0] == path]
            own_versions = self._folder(path).versions([self._ahead[position] for position in positions])
            versions |= dict(zip(positions, own_versions, strict=True))
        named = [
            (storage.base_name(item.path), item.line, item.names, item.fields, versions.get((item.path, item.line)))
            for item in items
        ]
        return f"{isal_zlib.crc32(ascii(named).encode()):08x}"

    def image_name(self, item: TableItem) -> str:
        """The path of an item's image as the table has it, empty if there is none."""
        with suppress(BadRow):
            return _row(item)[self._source.image_key]
        return ""

    def load(self, item: TableItem) -> Loaded:
        row = _row(item)
        image = row[self._source.image_key]
        if not image:
            raise_if_not_downloaded(row)
            raise BadRow("no image in the row", f"{self._source.image_key!r} is empty")
        self._ahead.pop((item.path, item.line), None)
        folder = self._folder(item.path)
        if not folder.is_prefetched(image):
            following = (name for (path, _), name in self._ahead.items() if path == item.path)
            folder.prefetch([image, *islice(following, _PREFETCH - 1)])
        return Loaded(captions_of(row, self._source.caption_keys), folder.read(image), row, has_types=False)

    def _folder(self, path):
        if path not in self._folders:
            self._folders[path] = folder_at(storage.folder_of(path), self._source.allow_outside)
        return self._folders[path]


def _row(item: TableItem) -> dict[str, str]:
    """Text by column; the row is decoded as a whole, since more text makes its encoding surer. Raises BadRow."""
    if item.damage:
        raise BadRow("not a row of the table", item.damage)
    try:
        texts = decode_text(_BETWEEN.join(item.fields)).split(_BETWEEN.decode())
        if len(texts) != len(item.names):  # a field holds the separator
            texts = [decode_text(field) for field in item.fields]
    except TextError as error:
        raise BadRow("text of another encoding", str(error)) from error
    return dict(zip(item.names, texts, strict=True))
