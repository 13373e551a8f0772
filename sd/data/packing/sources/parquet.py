"""Parquet files with a column of captions and one of images: bytes, a struct with bytes, or paths."""

from contextlib import contextmanager
from dataclasses import dataclass

from isal import isal_zlib

from sd.data.packing.sources.folders import BadRow, check_size, folder_at
from sd.data.packing.sources.inputs import find_inputs
from sd.data.parts import storage
from sd.errors import InputError, first_line

_BATCH_ROWS = 64  # what a worker holds unpacked at a time


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files by glob, folder or name. An item is (file, row group, row in it, row in the file)."""

    path: str
    caption_key: str
    image_key: str
    allow_outside: bool

    def items(self):
        files = find_inputs(self.path, ".parquet")
        for number, path in enumerate(files):
            groups = self._row_groups(path)
            num_rows, row = sum(groups), 0
            for group, num_in_group in enumerate(groups):
                for row_in_group in range(num_in_group):
                    row += 1
                    yield (path, group, row_in_group, row), (number + row / num_rows) / len(files)

    def _row_groups(self, path):
        """Rows of each row group. Raises InputError for a file that is no parquet or lacks a column."""
        from pyarrow import ArrowException, parquet

        try:
            with storage.open_binary(path) as file:
                opened = parquet.ParquetFile(file)
                metadata, names = opened.metadata, opened.schema_arrow.names
        except (ArrowException, OSError) as error:
            raise InputError(f"{path}: not readable as parquet: {first_line(error)}") from error
        for flag, name in (("caption_key", self.caption_key), ("image_key", self.image_key)):
            if name not in names:
                raise InputError(f"{path}: no column {name!r} (--{flag}); it has {', '.join(names)}")
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    @staticmethod
    def place(item):
        return {"file": item[0], "row": item[3]}

    @contextmanager
    def open(self):
        loader = ParquetLoader(self)
        try:
            yield loader
        finally:
            loader.close()


class ParquetLoader:
    """Walks the rows of a row group in batches; items of one part ascend."""

    def __init__(self, source):
        self._source = source
        self._at = self._file = self._batches = None

    def close(self):
        if self._file is not None:
            self._file.close()
        self._at = self._file = self._batches = None

    @staticmethod
    def signature(items):
        """CRC-32 over the names and sizes of the files and the rows taken."""
        sizes = {path: storage.size_of(path) for path in {item[0] for item in items}}
        named = [(storage.base_name(path), sizes[path], *place) for path, *place in items]
        return isal_zlib.crc32(repr(named).encode())

    def load(self, item):
        path, group, row, _ = item
        if self._at != (path, group) or row < self._start:
            self._open(path, group)
        while row >= self._start + self._batch.num_rows:
            self._start += self._batch.num_rows
            self._batch = self._next_batch()
        caption = self._batch[self._source.caption_key][row - self._start].as_py()
        image = self._batch[self._source.image_key][row - self._start].as_py()
        if not isinstance(caption, str):
            raise BadRow("the caption is not text", repr(caption))
        return caption, self._image(path, image)

    def _open(self, path, group):
        from pyarrow import parquet

        self.close()
        self._file = storage.open_binary(path)
        self._folder = folder_at(storage.folder_of(path), self._source.allow_outside)
        columns = [self._source.caption_key, self._source.image_key]
        opened = parquet.ParquetFile(self._file)
        self._batches = opened.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns)
        self._at, self._start = (path, group), 0
        self._batch = self._next_batch()

    def _next_batch(self):
        from pyarrow import ArrowException

        try:
            return next(self._batches)
        except (StopIteration, ArrowException, OSError) as error:
            path, group = self._at
            self._at = None
            raise BadRow("the parquet file is damaged", f"row group {group} of {path}: {error}") from error

    def _image(self, path, image):
        if isinstance(image, dict):  # the Image feature of the datasets library
            image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes):
            check_size(len(image), "")
            return image
        if isinstance(image, str):
            return self._folder.read(image)
        raise BadRow("no image in the row", type(image).__name__)
