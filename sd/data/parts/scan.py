"""One walk through a part without an index: where its rows lie, how large the images are, where it is damaged."""

from itertools import chain
from pathlib import Path

import numpy as np
from isal import isal_zlib

from sd.data.images.open import image_size
from sd.data.parts import storage
from sd.data.parts.gunzip import PIECE_BYTES, DamageError, unpack
from sd.data.parts.index import LINES, MEMBERS, STREAM, PartIndex
from sd.data.parts.record import RowError, decode_row

# Ours start each gzip member so: deflate, an extra field named SD of no bytes, no time, unknown system.
MEMBER_HEAD = bytes.fromhex("1f8b0804 00000000 00ff 0400") + b"SD\0\0"
MAX_ROW_BYTES = 64 << 20  # a longer line is no image that anyone trains on, but what a decompression bomb looks like
_MAX_ROWS = 4_000_000  # of empty lines a bomb makes billions


class _Rows:
    """Cuts a stream of pieces into lines and keeps what the index needs of each."""

    def __init__(self):
        self.lengths, self.sizes, self.crcs = [], [], []
        self._pieces, self._pending = [], 0

    def feed(self, piece):
        start = 0
        while (end := piece.find(b"\n", start) + 1) > 0:
            self._append(piece[start:end])
            self._close()
            start = end
        if start < len(piece):
            self._append(piece[start:])

    def finish(self):
        """The last line may lack its newline."""
        if self._pending:
            self._close()

    @property
    def between_lines(self):
        return not self._pending

    def _append(self, piece):
        self._pending += len(piece)
        if self._pending > MAX_ROW_BYTES:
            raise DamageError(f"row {len(self.lengths) + 1} is longer than {MAX_ROW_BYTES >> 20} MiB")
        self._pieces.append(piece)

    def _close(self):
        line = b"".join(self._pieces)
        self._pieces, self._pending = [], 0
        if len(self.lengths) == _MAX_ROWS:
            raise DamageError(f"more than {_MAX_ROWS} rows")
        self.lengths.append(len(line))
        self.crcs.append(isal_zlib.crc32(line))
        self.sizes.append(_size_or_zero(line))


def _size_or_zero(line):
    try:
        return image_size(decode_row(line).image)
    except RowError:
        return 0, 0


class _Source:
    """Chunks of a file, with the count and the CRC-32 of all bytes read."""

    def __init__(self, file):
        self._file = file
        self.num_bytes, self.crc = 0, 0

    def chunk(self):
        data = self._file.read(PIECE_BYTES)
        self.num_bytes += len(data)
        self.crc = isal_zlib.crc32(data, self.crc)
        return data

    def drain(self):
        while self.chunk():
            pass


def scan_part(path: str | Path) -> PartIndex:
    """PartIndex of a part of any origin. Damage does not raise: rows before it count. Raises OSError if unreadable."""
    with storage.open_binary(path) as file:
        source, rows, members = _Source(file), _Rows(), _Members()
        first = source.chunk()
        is_gzip, damage = first.startswith(b"\x1f\x8b"), "" if first else "the file is empty"
        try:
            if is_gzip:
                _walk_gzip(source, first, rows, members)
            else:
                _walk_lines(source, first, rows)
        except DamageError as reason:
            damage = f"{reason}, after row {len(rows.lengths)}"
        source.drain()
    by_member = is_gzip and members.are_single_rows and len(members.lengths) == len(rows.lengths)
    sizes = np.array(rows.sizes, np.int32).reshape(-1, 2)
    return PartIndex(
        path=str(path),
        layout=MEMBERS if by_member else STREAM if is_gzip else LINES,
        lengths=np.array(members.lengths if by_member else rows.lengths, np.uint32),
        widths=sizes[:, 0],
        heights=sizes[:, 1],
        row_crcs=np.array(rows.crcs, np.uint32),
        part_bytes=source.num_bytes,
        part_crc=source.crc,
        notes={"damage": damage} if damage else {},
    )


class _Members:
    """Whether each gzip member holds one row, and their packed bytes."""

    def __init__(self):
        self.lengths, self.are_single_rows = [], True

    def add(self, num_bytes, num_rows, ends_row):
        self.lengths.append(num_bytes)
        self.are_single_rows &= num_rows == 1 and ends_row


def _walk_lines(source, chunk, rows):
    while chunk:
        rows.feed(chunk)
        chunk = source.chunk()
    rows.finish()


def _walk_gzip(source, first, rows, members):
    is_ours = first.startswith(MEMBER_HEAD)
    chunks = chain([first], iter(source.chunk, b""))
    num_rows, num_unpacked = 0, 0
    for piece, num_packed in unpack(lambda: next(chunks, b"")):
        rows.feed(piece)
        num_unpacked += len(piece)
        if num_packed is None:
            continue
        if num_unpacked:
            members.add(num_packed, len(rows.lengths) - num_rows, rows.between_lines)
        has_end_mark = not num_unpacked
        num_rows, num_unpacked = len(rows.lengths), 0
    rows.finish()
    if is_ours and not has_end_mark:
        raise DamageError("cut between rows: the end mark is missing")
