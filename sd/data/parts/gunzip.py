"""Unpacking gzip files of many members forward, in pieces of bounded size, as far as they are whole."""

from collections.abc import Callable, Iterator
from typing import BinaryIO

from isal import isal_zlib

PIECE_BYTES = 1 << 20
_GZIP = 31  # window bits: a gzip header and trailer


class DamageError(ValueError):
    """The file is cut or damaged from here on. The message says how."""


def unpack(next_chunk: Callable[[], bytes]) -> Iterator[tuple[bytes, int | None]]:
    """Yield (piece, packed) where `packed` is the member's bytes in the file if it ends with this piece, else None.

    `next_chunk()` gives bytes of the file, b"" at its end. Raises DamageError after the last piece that is whole.
    """
    chunk = next_chunk()
    while chunk:
        member, num_read = isal_zlib.decompressobj(_GZIP), len(chunk)
        while not member.eof:
            if not chunk:
                chunk = next_chunk()
                num_read += len(chunk)
            try:
                piece = member.decompress(chunk, PIECE_BYTES)
            except isal_zlib.error as error:  # type: ignore[misc]
                raise DamageError(f"damaged gzip data: {error}") from error
            if not (chunk or piece or member.eof):  # with no input left, output may still be held back
                raise DamageError("cut in the middle of gzip data")
            chunk = member.unconsumed_tail
            yield piece, num_read - len(member.unused_data) if member.eof else None
        chunk = member.unused_data or next_chunk()


class ForwardReader:
    """Reads ranges of the unpacked bytes of a gzip file; cheap when offsets ascend, from the start again otherwise."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._restart()

    def _restart(self):
        self._file.seek(0)
        self._pieces = unpack(lambda: self._file.read(PIECE_BYTES))
        self._offset, self._buffer = 0, b""  # `_held` are the bytes from `_offset` on

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Up to `num_bytes` at `offset`; fewer where the file ends. Raises DamageError."""
        if offset < self._offset:
            self._restart()
        try:
            while self._offset + len(self._buffer) <= offset:
                self._offset += len(self._buffer)
                self._buffer, _ = next(self._pieces)
            pieces = [self._buffer]
            missing = offset + num_bytes - self._offset - len(self._buffer)
            while missing > 0:
                piece, _ = next(self._pieces)
                pieces.append(piece)
                missing -= len(piece)
            self._buffer = b"".join(pieces)
        except StopIteration:
            self._restart()
            return b""
        except DamageError:
            self._restart()
            raise
        start = offset - self._offset
        line = self._buffer[start : start + num_bytes]
        self._buffer, self._offset = self._buffer[start:], offset
        return line
