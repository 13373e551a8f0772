"""A part: rows in a file, one gzip member a row, with an index beside it. Write, read, seek."""

import logging
import struct
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip_lib, isal_zlib

from sd.data.parts import storage
from sd.data.parts.columns import Column, merge_columns
from sd.data.parts.gunzip import DamageError, ForwardReader
from sd.data.parts.index import (
    HEADER_BYTES,
    LINES,
    MEMBERS,
    STREAM,
    SUFFIX,
    PartError,
    PartHeader,
    PartIndex,
    parse_header,
    parse_index,
)
from sd.data.parts.record import RowError
from sd.data.parts.scan import MAX_ROW_BYTES, MEMBER_HEAD, scan_part
from sd.errors import first_line

logger = logging.getLogger(__name__)

__all__ = ["PartError", "PartHeader", "PartIndex", "PartReader", "PartWriter", "load_header", "load_index"]

# Base64 of a JPEG repeats nothing, so all there is to gain is in the code of single characters. isal's level 1 with its
# smallest window packs it 0.5% smaller than zlib's level 9, 26 times as fast; the full window gains 0.1% more and takes
# 1.7 times as long, level 2 gains nothing and level 3 takes twice as long again (bench/packing.py).
_LEVEL, _WINDOW_BITS = 1, 9
_GZIP = 31  # window bits for reading: a gzip header and trailer
_unsaved_indexes = {}  # name -> bytes of indexes of this process that the cache folder did not take


def pack_member(line: bytes) -> bytes:
    """One gzip member that holds `line`; the same bytes for the same line, deterministic."""
    trailer = struct.pack("<II", isal_zlib.crc32(line), len(line))
    deflated = igzip_lib.compress(line, _LEVEL, igzip_lib.COMP_DEFLATE, igzip_lib.MEM_LEVEL_DEFAULT, _WINDOW_BITS)
    return MEMBER_HEAD + deflated + trailer


class PartWriter:
    """Writes a part, its index and columns; they get their names only when the `with` block ends without an error.

    `add(line, width, height)` takes whole rows with their newline. `notes`, a dict for JSON, goes into the index, which
    is at `index` after the block. `columns`, name -> Column of all rows, go beside it; where there are columns of just
    this part already, those of other names stay.
    """

    def __init__(self, path: str | Path, *, save_gzip: bool = True, kind: str = "image"):
        self.path, self._gzip, self._kind = str(path), save_gzip, kind
        self._lengths, self._sizes, self._crcs = [], [], []
        self._num_bytes, self._crc = 0, 0
        self._file = storage.AtomicFile(path)
        self.notes: dict[str, Any] = {}
        self.index: PartIndex | None = None
        self.columns: dict[str, Column] = {}

    def __enter__(self):
        self._file.__enter__()
        return self

    def add(self, line: bytes, width: int = 0, height: int = 0) -> None:
        stored = pack_member(line) if self._gzip else line
        self._write(stored)
        self._lengths.append(len(stored))
        self._sizes.append((width, height))
        self._crcs.append(isal_zlib.crc32(line))

    def _write(self, data):
        self._file.write(data)
        self._num_bytes += len(data)
        self._crc = isal_zlib.crc32(data, self._crc)

    def __exit__(self, error_type, error, traceback):
        try:
            if error_type is None:
                self._write_index()
        except BaseException as failure:
            error_type, error = type(failure), failure
            raise
        finally:
            self._file.__exit__(error_type, error, traceback)

    def _write_index(self):
        if self._gzip:
            self._write(pack_member(b""))  # the end mark: without it the part was cut between two rows
        sizes = np.array(self._sizes, np.int32).reshape(-1, 2)
        self.index = index = PartIndex(
            path=self.path,
            layout=MEMBERS if self._gzip else LINES,
            lengths=np.array(self._lengths, np.uint32),
            widths=sizes[:, 0],
            heights=sizes[:, 1],
            row_crcs=np.array(self._crcs, np.uint32),
            part_bytes=self._num_bytes,
            part_crc=self._crc,
            kind=self._kind,
            notes=self.notes,
        )
        merge_columns(index, self.columns)
        storage.write_atomic(self.path + SUFFIX, index.to_bytes())


def load_index(path: str | Path, cache_dir: str | Path | None = None) -> PartIndex:
    """PartIndex of a part: from the `.idx` beside it, else from one scan, kept in `cache_dir`.

    Raises PartError where there is neither part nor index, or the index is damaged. A part that is missing or cut, but
    whose index is there, shows when its rows are read.
    """
    with suppress(FileNotFoundError):
        return parse_index(storage.read_bytes(str(path) + SUFFIX), path)
    return parse_index(_scan_cached(path, cache_dir), path)


def load_header(path: str | Path, cache_dir: str | Path | None = None) -> PartHeader:
    """PartHeader of a part, without reading the rows' arrays; otherwise as `load_index`."""
    with suppress(FileNotFoundError), storage.open_binary(str(path) + SUFFIX) as file:
        return parse_header(file.read(HEADER_BYTES), path)
    return parse_header(_scan_cached(path, cache_dir), path)


def _scan_cached(path, cache_dir):
    """The bytes of the index of a part that has none beside it: kept ones, else of a scan, which is kept if it can be.

    Cached by path, size and modification time; a damaged entry is rebuilt.
    """
    try:
        version = storage.version_of(path)
        folder = Path(cache_dir or storage.cache_folder("sd_part_indexes"))
        cached_index = folder / f"{_cache_key(path, version)}{SUFFIX}"
        with suppress(OSError, PartError):
            data = cached_index.read_bytes()
            parse_index(data, path)
            return data
        if str(cached_index) in _unsaved_indexes:
            return _unsaved_indexes[str(cached_index)]
        data = scan_part(path).to_bytes()
    except FileNotFoundError as error:
        raise PartError(f"{path}: no such part; check the path in the file list") from error
    except OSError as error:
        raise PartError(f"{path}: cannot be read: {error}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_atomic(cached_index, data)
    except OSError as error:
        if not _unsaved_indexes:
            logger.warning("%s: %s; indexes of parts are rebuilt in each run", folder, first_line(error))
        _unsaved_indexes[str(cached_index)] = data
    return data


def _cache_key(path, version):
    location = str(path) if storage.is_remote(path) else str(Path(path).resolve())
    return sha256(f"{location}\n{version}".encode()).hexdigest()[:32]


class PartReader:
    """Reads rows of a part by number; cheap in any order for our parts, in ascending order for others.

    Raises PartError if the part is missing, RowError from `read` if a row cannot be read.
    """

    def __init__(self, path: str | Path, index: PartIndex):
        self._index = index
        try:
            self._file = storage.open_binary(str(path))
        except OSError as error:
            raise PartError(f"{path}: cannot be opened: {error.strerror or error}") from error
        self._stream = ForwardReader(self._file) if index.layout == STREAM else None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self) -> None:
        self._file.close()
        self._stream = None

    def read(self, row: int) -> bytes:
        """The bytes of row `row` (from 0), without its newline."""
        return self.unpack(row, self.stored(row))

    def stored(self, row: int) -> bytes:
        """The bytes of a row as they lie in the part."""
        if not 0 <= row < self._index.num_rows:
            raise RowError(f"row {row} of {self._index.num_rows}")
        try:
            return self._stored(row)
        except (DamageError, OSError) as error:
            raise RowError(f"damaged: {error}") from error

    def unpack(self, row: int, stored: bytes) -> bytes:
        """The row's line, checked, of its stored bytes; without its newline."""
        line = stored
        if self._index.layout == MEMBERS:
            try:
                line = self._unpack(stored)
            except isal_zlib.error as error:  # type: ignore[misc]
                raise RowError(f"damaged: {error}") from error
        if isal_zlib.crc32(line) != self._index.row_crcs[row]:
            raise RowError("damaged: the checksum differs from the index")
        return line.removesuffix(b"\n")

    def _stored(self, row):
        offset, num_bytes = int(self._index.offsets[row]), int(self._index.lengths[row])
        if num_bytes > 2 * MAX_ROW_BYTES:
            raise RowError(f"{num_bytes} bytes, at most {2 * MAX_ROW_BYTES} are read")
        if self._stream is not None:
            data = self._stream.read(offset, num_bytes)
        else:
            self._file.seek(offset)
            data = self._file.read(num_bytes)
        if len(data) < num_bytes:
            raise RowError("cut: the part ends before this row does")
        return data

    @staticmethod
    def _unpack(data):
        member = isal_zlib.decompressobj(_GZIP)
        line = member.decompress(data, MAX_ROW_BYTES)
        if not member.eof:
            raise RowError(f"damaged, or longer than {MAX_ROW_BYTES >> 20} MiB")
        return line
