"""Parquet files with a column of captions and one of images: bytes, a struct with bytes, or paths."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from isal import isal_zlib

from sd.data.packing.outcomes import BadRow
from sd.data.packing.sources.find import find_inputs
from sd.data.packing.sources.folders import check_size, folder_at
from sd.data.packing.sources.inputs import raise_if_not_downloaded
from sd.data.packing.sources.loaded import Loaded
from sd.data.parts import storage
from sd.errors import InputError, first_line
from sd.text import TextError, decode_text

DEFAULT_IMAGE_KEY, IMG2DATASET_KEYS = "image", ("jpg", "png", "webp")
_STATUS_COLUMNS = ("status", "error_message")  # img2dataset's
_BATCH_ROWS = 64  # what a worker holds unpacked at a time


@dataclass(frozen=True)
class ParquetItem:
    """A row: its row group, its place there from 0, and its number in the file from 1; or why a file has none."""

    path: str
    group: int = 0
    row_in_group: int = 0
    row: int = 0
    damage: str = ""


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files by glob, folder, braces or name.

    Where there is no column of the default image key, img2dataset's of the format is taken.
    """

    path: str
    caption_keys: tuple[str, ...]
    image_key: str
    allow_outside: bool
    column_keys: tuple[str, ...] = ()  # columns that a row's `fields` have besides

    def items(self) -> Iterator[tuple[ParquetItem, float]]:
        """Raises InputError where the first readable file lacks a column, or the only one is not readable."""
        files = find_inputs(self.path, ".parquet")
        columns_checked = False
        for number, path in enumerate(files):
            try:
                names, groups = _read_footer(path)
            except BadRow as bad:
                if len(files) == 1:
                    raise InputError(f"{path}: {bad.reason}: {bad.detail}") from None
                yield ParquetItem(path, damage=bad.detail), (number + 1) / len(files)
                continue
            if not columns_checked:
                self._check_columns(path, names)
                columns_checked = True
            num_rows, row = sum(groups), 0
            for group, num_in_group in enumerate(groups):
                for row_in_group in range(num_in_group):
                    row += 1
                    yield ParquetItem(path, group, row_in_group, row), (number + row / num_rows) / len(files)

    def image_column(self, names: list[str]) -> str | None:
        """Which of a file's columns has the images, None if there is none."""
        keys = (self.image_key, *(IMG2DATASET_KEYS if self.image_key == DEFAULT_IMAGE_KEY else ()))
        return next((key for key in keys if key in names), None)

    def _check_columns(self, path, names):
        for flag, key, column in (
            *(("caption_key", key, key if key in names else None) for key in self.caption_keys),
            ("image_key", self.image_key, self.image_column(names)),
        ):
            if column is None:
                raise InputError(f"{path}: no column {key!r} (--{flag}); it has {', '.join(names)}")

    @staticmethod
    def position(item: ParquetItem) -> dict:
        return {"file": item.path} | ({"row": item.row} if item.row else {})

    @contextmanager
    def open(self) -> Iterator["ParquetLoader"]:
        loader = ParquetLoader(self)
        try:
            yield loader
        finally:
            loader.close()


def _read_footer(path):
    """(names of the columns, rows of each row group). Raises BadRow."""
    from pyarrow import ArrowException, parquet

    try:
        with storage.open_binary(path) as file:
            opened = parquet.ParquetFile(file)
            metadata, names = opened.metadata, opened.schema_arrow.names
            return names, [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    except (ArrowException, OSError) as error:
        raise BadRow("not readable as parquet", first_line(error)) from error


class ParquetLoader:
    """Walks the rows of a row group in batches; items of one part ascend."""

    def __init__(self, source: ParquetSource):
        self._source = source
        self._at: tuple[str, int] | None = None  # the file and row group of the batch
        self._file: BinaryIO | None = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._at = self._file = None

    @staticmethod
    def signature(items: list[ParquetItem]) -> str:
        """CRC-32 over the names of the files, their sizes and times of change, and the rows taken."""
        versions = {path: storage.version_or_error(path) for path in {item.path for item in items}}
        named = [(storage.base_name(item.path), versions[item.path], item.group, item.row) for item in items]
        return f"{isal_zlib.crc32(repr(named).encode()):08x}"

    @staticmethod
    def image_name(item: object) -> str:
        """Nothing: the item's place has file and row."""
        return ""

    def load(self, item: ParquetItem) -> Loaded:
        if item.damage:
            raise BadRow("not readable as parquet", item.damage)
        row_group = (item.path, item.group)
        if self._at != row_group or item.row_in_group < self._start:
            self._open(*row_group)
        while item.row_in_group >= self._start + self._batch.num_rows:
            self._start += self._batch.num_rows
            self._batch = self._next_batch(item.group)
        fields = {name: self._batch[name][item.row_in_group - self._start] for name in self._columns}
        image = self._image_value(fields[self._image_column])
        if image is None:
            raise_if_not_downloaded({name: _text(fields[name]) for name in _STATUS_COLUMNS if name in fields})
        keys = [key for key in self._source.caption_keys if key in fields]
        captions = tuple((key, text) for key in keys for text in _texts(fields[key]))
        if not captions:
            raise BadRow("the caption is not text", repr(fields[keys[0]].as_py()))
        return Loaded(captions, self._image(image), fields)

    def _open(self, path, group):
        from pyarrow import ArrowException, parquet

        self.close()
        try:
            self._file = storage.open_binary(path)
            opened = parquet.ParquetFile(self._file)
        except (ArrowException, OSError) as error:
            raise BadRow("not readable as parquet", first_line(error)) from error
        names = opened.schema_arrow.names
        captions = [key for key in self._source.caption_keys if key in names]
        image_column = self._source.image_column(names)
        if image_column is None or not captions:
            lacking = self._source.caption_keys[0] if image_column else self._source.image_key
            raise BadRow(f"no column {lacking!r}", f"it has {', '.join(names)}")
        self._image_column = image_column
        self._folder = folder_at(storage.folder_of(path), self._source.allow_outside)
        self._columns = [*captions, self._image_column]
        for name in (*_STATUS_COLUMNS, *self._source.column_keys):
            if name in names and name not in self._columns:
                self._columns.append(name)
        if several := [name for name in self._columns if names.count(name) > 1]:
            raise BadRow(f"several columns {several[0]!r}", f"it has {', '.join(names)}")
        self._batches = opened.iter_batches(_BATCH_ROWS, row_groups=[group], columns=self._columns)
        self._at, self._start = (path, group), 0
        self._batch = self._next_batch(group)

    def _next_batch(self, group):
        from pyarrow import ArrowException

        try:
            return next(self._batches)
        except (StopIteration, ArrowException, OSError) as error:
            self._at = None
            raise BadRow("the parquet file is damaged", f"row group {group}: {first_line(error)}") from error

    @staticmethod
    def _image_value(scalar):
        try:
            return scalar.as_py()
        except UnicodeDecodeError as error:  # of a path
            raise BadRow("image cannot be read", f"its path is not UTF-8: {error}") from error

    def _image(self, image):
        if isinstance(image, dict):  # the Image feature of the datasets library
            image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes):
            check_size(len(image), "")
            return image
        if isinstance(image, str):
            return self._folder.read(image)
        raise BadRow("no image in the row", type(image).__name__)


def _texts(scalar):
    """The texts of a column of text, or of lists of texts; none where there is something else. Raises BadRow."""
    from pyarrow import types

    is_list = types.is_list(scalar.type) or types.is_large_list(scalar.type) or types.is_fixed_size_list(scalar.type)
    texts = [_text(value) for value in scalar.values] if scalar.is_valid and is_list else [_text(scalar)]
    return texts if all(isinstance(text, str) for text in texts) else []


def _text(scalar):
    """A value as Python has it, text from its bytes: a column of text may hold what is not UTF-8. Raises BadRow."""
    from pyarrow import types

    try:
        if scalar.is_valid and (types.is_string(scalar.type) or types.is_large_string(scalar.type)):
            return decode_text(scalar.as_buffer().to_pybytes())
        value = scalar.as_py()
        return decode_text(value) if isinstance(value, bytes) else value
    except TextError as error:
        raise BadRow("text of another encoding", str(error)) from error
