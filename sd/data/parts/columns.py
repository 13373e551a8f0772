"""Columns of a part: a typed value for each row, or none, in `part-000001.gz.columns` beside it.

The file is a header, a directory in JSON, and a block for each column, so that one column is read by one seek:

    header      magic SDCOLUMN, version, bytes of the directory, rows, bytes and CRC-32 of the part, XXH3 of the rest of
                the header and of the directory; little-endian
    directory   for each column its name, type, place, bytes, missing values, the block's XXH3, what it was made from
    block       a bit for each row that has a value (absent where all have one), then the values: float64 or int64, bits
                for bool, for text n + 1 offsets (int64) and UTF-8; each piece starts at a multiple of 8 bytes

The blocks are laid out as Arrow's buffers are. NaN counts as missing and is never stored.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash

from sd.data.parts import storage
from sd.data.parts.index import PartError, PartHeader, PartIndex
from sd.errors import first_line

SUFFIX = ".columns"
FLOAT, INT, BOOL, TEXT = TYPES = ("float64", "int64", "bool", "text")
INT_MIN, INT_MAX = -(2**63), 2**63 - 1
_MAGIC, _VERSION = b"SDCOLUMN", 1
_FIXED = struct.Struct("<8sIIQQI4xQ")
_FIRST_READ = 4096  # header and directory of about thirty columns
_MAX_DIRECTORY = 16 << 20
_MAX_NAME = 200


@dataclass(frozen=True)
class Column:
    """The values of one column.

    values: float64 [n], int64 [n], bool [n], or for text a pyarrow.LargeStringArray of n; what stands where there is no
    value means nothing. present: bool [n], None where no value is missing. origin: names what it was made from, "" if
    not recorded.
    """

    type: str
    values: Any
    present: np.ndarray | None = None
    origin: str = ""

    @property
    def num_missing(self) -> int:
        if self.type == TEXT:
            return self.values.null_count
        return 0 if self.present is None else int(np.count_nonzero(~self.present))

    def to_arrow(self) -> Any:
        """The column as a pyarrow.Array of float64, int64, bool or large_string, with nulls for what is missing."""
        import pyarrow as pa

        if self.type == TEXT:
            return self.values
        return pa.array(self.values, mask=None if self.present is None else ~self.present)


class ColumnsFile:
    """The columns file of a part, open for reading; each column is read and checked by itself.

    Raises FileNotFoundError where there is none, PartError where it is damaged or belongs to other rows.
    """

    def __init__(self, part: PartHeader | PartIndex):
        self._part, self._name = part, storage.base_name(part.path) + SUFFIX
        self._file = storage.open_binary(part.path + SUFFIX)
        try:
            self._entries = self._read_directory()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def types(self) -> dict[str, str]:
        """Name -> type, in the order in which the columns were written."""
        return {name: entry["type"] for name, entry in self._entries.items()}

    @property
    def num_bytes(self) -> int:
        """The bytes of the whole file, as its directory says."""
        return max((entry["place"] + entry["bytes"] for entry in self._entries.values()), default=0)

    @property
    def num_missing(self) -> dict[str, int]:
        """Name -> rows without a value."""
        return {name: entry["missing"] for name, entry in self._entries.items()}

    @property
    def origins(self) -> dict[str, str]:
        """Name -> what the column was made from, "" if not recorded."""
        return {name: entry.get("origin", "") for name, entry in self._entries.items()}

    def read(self, name: str) -> Column:
        """The column of a name that stands in `types`. Raises PartError."""
        entry = self._entries[name]
        try:
            self._file.seek(entry["place"])
            block = self._file.read(entry["bytes"])
        except OSError as error:
            raise PartError(f"{self._name}: cannot be read: {error.strerror or error}") from error
        if len(block) != entry["bytes"] or xxhash.xxh3_64_intdigest(block) != entry["xxh3"]:
            raise self._damaged(f"column {name!r}")
        try:
            column = _unpack(block, entry["type"], entry["missing"], self._part.num_rows)
            return replace(column, origin=entry["origin"]) if "origin" in entry else column
        except ValueError as error:  # pyarrow's are of this kind
            raise self._damaged(f"column {name!r}: {first_line(error)}") from error

    def _read_directory(self):
        head = self._file.read(_FIRST_READ)
        if len(head) < _FIXED.size or not head.startswith(_MAGIC):
            raise self._damaged("not a file of columns")
        _, version, num_bytes, num_rows, part_bytes, part_crc, checksum = _FIXED.unpack_from(head)
        if version != _VERSION:
            raise PartError(f"{self._name}: version {version}, this program reads {_VERSION}; {_REMEDY}")
        end = _FIXED.size + num_bytes
        if num_bytes <= _MAX_DIRECTORY and len(head) < end:
            head += self._file.read(end - len(head))
        if len(head) < end or _checksum(head[: _FIXED.size], head[_FIXED.size : end]) != checksum:
            raise self._damaged("its directory")
        if (num_rows, part_bytes, part_crc) != (self._part.num_rows, self._part.part_bytes, self._part.part_crc):
            raise PartError(
                f"{self._name}: of {num_rows} rows of a part of {part_bytes} bytes (CRC-32 {part_crc:08x}), but the "
                f"part has {self._part.num_rows} rows and {self._part.part_bytes} bytes ({self._part.part_crc:08x}); "
                f"{_REMEDY}"
            )
        return {entry["name"]: entry for entry in json.loads(head[_FIXED.size : end])}

    def _damaged(self, detail):
        return PartError(f"{self._name}: damaged ({detail}); {_REMEDY}")


_REMEDY = "delete it and pack again, or add its columns again (python -m sd.data.columns add)"


def read_columns(part: PartHeader | PartIndex, names: Iterable[str] | None = None) -> dict[str, Column] | None:
    """Name -> Column of a part, of those of `names` that it has or of all; None where the part has no columns.

    Raises PartError for a damaged file, or one of other rows.
    """
    try:
        with ColumnsFile(part) as file:
            chosen = file.types if names is None else [name for name in names if name in file.types]
            return {name: file.read(name) for name in chosen}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PartError(f"{part.path}{SUFFIX}: cannot be read: {error.strerror or error}") from error


def column_types(part: PartHeader | PartIndex) -> dict[str, str]:
    """Name -> type of a part's columns; empty where it has none. Raises PartError as `read_columns`."""
    try:
        with ColumnsFile(part) as file:
            return file.types
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PartError(f"{part.path}{SUFFIX}: cannot be read: {error.strerror or error}") from error


def write_columns(part: PartHeader | PartIndex, columns: Mapping[str, Column]) -> None:
    """Write the columns file of a part, in place of one that may be there; atomic. Without columns it is removed.

    Raises ValueError for a name or a number of values that does not fit, OSError for a file that cannot be written.
    """
    path = part.path + SUFFIX
    if columns:
        storage.write_atomic(path, columns_bytes(part, columns))
    elif storage.exists(path):
        storage.remove(path)


def merge_columns(part: PartHeader | PartIndex, columns: Mapping[str, Column]) -> None:
    """As `write_columns`, keeping the part's columns of other names, unless its file is damaged or stale."""
    with suppress(PartError):
        columns = {**(read_columns(part) or {}), **columns}
    write_columns(part, columns)


def columns_bytes(part: PartHeader | PartIndex, columns: Mapping[str, Column]) -> bytes:
    """The bytes of a columns file; the same for the same values."""
    blocks, entries, offset = [], [], 0
    for name, column in columns.items():
        check_name(name)
        block, num_missing = _pack(name, column, part.num_rows)
        entry = {"name": name, "type": column.type, "place": offset, "bytes": len(block), "missing": num_missing}
        entries.append(entry | {"xxh3": xxhash.xxh3_64_intdigest(block)} | _origin(column))
        blocks.append(block)
        offset += len(block)
    # The places are of the file, so they count the directory, whose length depends on them: room for ten digits more.
    reserved = len(json.dumps(entries, ensure_ascii=False).encode()) + 10 * len(entries)
    start = _padded(_FIXED.size + reserved)
    for entry in entries:
        entry["place"] += start
    directory = json.dumps(entries, ensure_ascii=False).encode().ljust(start - _FIXED.size)
    fixed = (_MAGIC, _VERSION, len(directory), part.num_rows, part.part_bytes, part.part_crc)
    checksum = _checksum(_FIXED.pack(*fixed, 0), directory)
    return b"".join([_FIXED.pack(*fixed, checksum), directory, *blocks])


def check_name(name: str) -> None:
    """Raise ValueError for what cannot be the name of a column."""
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise ValueError(f"column name {name!r}; expected 1 to {_MAX_NAME} printable characters")


def from_arrow(array: Any) -> Column:
    """Column of a pyarrow Array of numbers, bool or text. Raises ValueError for another type."""
    import pyarrow as pa
    from pyarrow import compute

    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        return Column(FLOAT, np.zeros(len(array)), np.zeros(len(array), bool))
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return Column(TEXT, array.cast(pa.large_string()))
    present = None if array.null_count == 0 else array.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_boolean(array.type):
        return Column(BOOL, compute.fill_null(array, False).to_numpy(zero_copy_only=False), present)
    is_uint64 = array.type == pa.uint64() and (compute.max(array).as_py() or 0) > INT_MAX
    if pa.types.is_integer(array.type) and not is_uint64:
        return Column(INT, compute.fill_null(array.cast(pa.int64()), 0).to_numpy(), present)
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        return floats(compute.fill_null(array.cast(pa.float64(), safe=False), float("nan")).to_numpy())
    raise ValueError(f"{array.type}; expected numbers, bool or text")


def floats(values: np.ndarray) -> Column:
    """The Column of float64 [n] in which NaN stands for what is missing."""
    missing = np.isnan(values)
    return Column(FLOAT, np.where(missing, 0.0, values), ~missing) if missing.any() else Column(FLOAT, values)


def _pack(name, column, num_rows):
    if column.type not in TYPES:
        raise ValueError(f"column {name!r}: type {column.type!r}; expected one of {TYPES}")
    if len(column.values) != num_rows:
        raise ValueError(f"column {name!r}: {len(column.values)} values, the part has {num_rows} rows")
    present = column.present
    if column.type == TEXT:
        present = column.values.is_valid().to_numpy(zero_copy_only=False)
        pieces = _text_pieces(column.values)
    elif column.type == BOOL:
        values = np.asarray(column.values, bool)
        pieces = [np.packbits(values if present is None else values & present, bitorder="little")]
    else:
        values = np.asarray(column.values, "<f8" if column.type == FLOAT else "<i8")
        if column.type == FLOAT and (nan := np.isnan(values)).any():
            present = ~nan if present is None else present & ~nan
        pieces = [values if present is None else np.where(present, values, np.zeros(1, values.dtype))]
    num_missing = 0 if present is None else int(np.count_nonzero(~present))
    valid = [np.packbits(present, bitorder="little")] if num_missing else []
    block = b"".join(piece.ljust(_padded(len(piece)), b"\0") for piece in map(bytes, (*valid, *pieces)))
    return block, num_missing


def _origin(column):
    return {"origin": column.origin} if column.origin else {}


def _text_pieces(array):
    """[offsets int64 [n + 1], UTF-8] of a LargeStringArray; a missing text takes no bytes."""
    from pyarrow import compute

    array = compute.fill_null(array, "")
    _, offsets, data = array.buffers()
    offsets = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1] if offsets else np.zeros(1)
    text = bytes(memoryview(data)[offsets[0] : offsets[-1]]) if data else b""
    return [(offsets - offsets[0]).astype("<i8"), text]


def _unpack(block, kind, num_missing, num_rows):
    present, start = None, 0
    if num_missing:
        start = _padded(-(-num_rows // 8))
        if kind != TEXT:
            present = _bits(block[:start], num_rows)
    if kind == BOOL:
        return Column(kind, _bits(block[start:], num_rows), present)
    if kind != TEXT:
        return Column(kind, np.frombuffer(block, "<f8" if kind == FLOAT else "<i8", num_rows, start), present)
    import pyarrow as pa

    buffer = pa.py_buffer(block)
    text = start + 8 * (num_rows + 1)
    if len(block) < text:
        raise ValueError(f"{len(block)} bytes of at least {text}")
    buffers = [buffer[:start] if num_missing else None, buffer[start:text], buffer[text:]]
    array = pa.Array.from_buffers(pa.large_string(), num_rows, buffers, num_missing)
    array.validate(full=True)  # offsets within the text, which is UTF-8
    return Column(kind, array)


def _bits(data, count):
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little").view(bool)


def _padded(num_bytes):
    return -(-num_bytes // 8) * 8


def _checksum(fixed, directory):
    """XXH3 of header and directory; the header's last field, the checksum itself, left out."""
    return xxhash.xxh3_64_intdigest(fixed[:-8] + directory)
