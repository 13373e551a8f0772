"""The index of a part: where each row lies, how large its image is, and the checksums. NumPy and bytes only."""

import functools
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from isal import isal_zlib

from sd.data.parts import storage
from sd.data.parts.record import RowError

SUFFIX = ".idx"
MEMBERS, LINES, STREAM = "members", "lines", "stream"
_LAYOUTS = (MEMBERS, LINES, STREAM)
_KINDS = ("image", "moments")
_MAGIC = b"SDPARTIX"
_VERSION = 1
# magic, version, kind, layout, rows, bytes of the part, CRC-32 of the part, CRC-32 of the body
_FIXED = struct.Struct("<8sHBBQQII")
_SIDE_STEP = 8
_NUM_SIDES = 256  # short sides 0, 8, ..., 2040
HEADER_BYTES = _FIXED.size + 4 * _NUM_SIDES + 4
_MAX_ROWS = 1 << 31


class PartError(RowError):
    """A part, or its index, that cannot be read. The message names it and the remedy."""


@dataclass(frozen=True)
class PartHeader:
    """What is known of a part without reading its index whole: 1,064 bytes, enough to plan a run over 60,000 parts."""

    path: str
    kind: str
    layout: str
    num_rows: int
    part_bytes: int
    part_crc: int
    side_counts: np.ndarray  # rows whose short side is at least 8 * k

    @property
    def checksum(self) -> str:
        """Names the bytes of the part: CRC-32 and size as text."""
        return f"{self.part_crc:08x}-{self.part_bytes}"

    def num_usable(self, resolution: int) -> int | None:
        """Rows with a short side of `resolution` or more; None where only the whole index knows."""
        step, rest = divmod(resolution, _SIDE_STEP)
        return int(self.side_counts[step]) if rest == 0 and 0 < step < _NUM_SIDES else None


@dataclass(frozen=True)
class PartIndex:
    """Places and sizes of the rows of one part.

    `layout` says how a row is reached: "members", a gzip member of its own at `offsets[row]` of the file; "lines", a
    plain line there; "stream", `offsets` count unpacked bytes of a gzip file that is only readable forward.
    `lengths` are in the same bytes; `widths` and `heights` are of the image as shown, 0 where the row is bad;
    `row_crcs` are of the unpacked line with its newline. `notes` is what the maker of the index has to say, as JSON.
    """

    path: str
    layout: str
    lengths: np.ndarray  # uint32[n]
    widths: np.ndarray  # int32[n]
    heights: np.ndarray  # int32[n]
    row_crcs: np.ndarray  # uint32[n]
    part_bytes: int
    part_crc: int
    kind: str = "image"
    notes: dict = field(default_factory=dict)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Where each row begins, and where the last one ends: int64[n + 1]."""
        offsets = np.zeros(len(self.lengths) + 1, np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        return offsets

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    @property
    def checksum(self) -> str:
        return f"{self.part_crc:08x}-{self.part_bytes}"

    @property
    def damage(self) -> str:
        """Why a scan found no further rows, else ""."""
        return self.notes.get("damage", "")

    @property
    def short_sides(self) -> np.ndarray:
        return np.minimum(self.widths, self.heights)

    def num_usable(self, resolution: int) -> int:
        return int(np.count_nonzero(self.short_sides >= max(1, resolution)))

    def to_bytes(self) -> bytes:
        """The `.idx` file. Raises ValueError for a kind or layout that is not known."""
        columns = (self.lengths, self.widths, self.heights, self.row_crcs)
        body = b"".join(np.asarray(column).astype("<u4").tobytes() for column in columns)
        body += json.dumps(self.notes, separators=(",", ":")).encode()
        sides = np.arange(_NUM_SIDES) * _SIDE_STEP
        counts = self.num_rows - np.searchsorted(np.sort(self.short_sides), sides)
        head = _FIXED.pack(
            _MAGIC,
            _VERSION,
            _KINDS.index(self.kind),
            _LAYOUTS.index(self.layout),
            self.num_rows,
            self.part_bytes,
            self.part_crc,
            isal_zlib.crc32(body),
        )
        head += counts.astype("<u4").tobytes()
        return head + struct.pack("<I", isal_zlib.crc32(head)) + body


def parse_header(data: bytes, path: str | Path) -> PartHeader:
    """PartHeader from the first HEADER_BYTES of an `.idx` file. Raises PartError."""
    header, _ = _parse_header(data, path)
    return header


def _parse_header(data, path):
    name = f"{storage.base_name(path)}{SUFFIX}"
    if len(data) < HEADER_BYTES or not data.startswith(_MAGIC):
        raise PartError(f"{name}: not an index; delete it to have the part scanned, or pack again")
    _, version, kind, layout, num_rows, part_bytes, part_crc, body_crc = _FIXED.unpack_from(data)
    if version != _VERSION:
        raise PartError(f"{name}: version {version}, this program reads {_VERSION}; delete it to have the part scanned")
    head = data[: HEADER_BYTES - 4]
    sound = struct.unpack_from("<I", data, HEADER_BYTES - 4)[0] == isal_zlib.crc32(head)
    if not sound or kind >= len(_KINDS) or layout >= len(_LAYOUTS) or num_rows > _MAX_ROWS:
        raise PartError(f"{name}: damaged; delete it to have the part scanned, or pack again")
    counts = np.frombuffer(head, "<u4", _NUM_SIDES, _FIXED.size)
    return PartHeader(str(path), _KINDS[kind], _LAYOUTS[layout], num_rows, part_bytes, part_crc, counts), body_crc


def parse_index(data: bytes, path: str | Path) -> PartIndex:
    """PartIndex from the bytes of an `.idx` file. Raises PartError."""
    header, body_crc = _parse_header(data, path)
    body = data[HEADER_BYTES:]
    n = header.num_rows
    if len(body) < 16 * n or isal_zlib.crc32(body) != body_crc:
        raise PartError(
            f"{storage.base_name(path)}{SUFFIX}: damaged; delete it to have the part scanned, or pack again"
        )
    lengths, widths, heights, row_crcs = np.frombuffer(body, "<u4", 4 * n).reshape(4, n)
    return PartIndex(
        path=str(path),
        layout=header.layout,
        lengths=lengths,
        widths=widths.astype(np.int32),
        heights=heights.astype(np.int32),
        row_crcs=row_crcs,
        part_bytes=header.part_bytes,
        part_crc=header.part_crc,
        kind=header.kind,
        notes=json.loads(body[16 * n :]),
    )
