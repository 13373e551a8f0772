"""Rows of a source part -> the crops that the VAE is to see. NumPy and Pillow, no Paddle: runs in worker processes."""

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from sd.data.images.resize import RESIZER
from sd.data.parts.part import PartError, PartReader, load_index
from sd.data.parts.record import RowError, decode_row
from sd.data.streaming.local_copies import LocalCopies
from sd.data.streaming.order import CROP, rng
from sd.data.streaming.sample import bucket_crop, centre_crop, decode_covering, decode_for, random_crop
from sd.latents.options import CacheOptions

_MAX_OPEN = 32  # source parts of a thread
_readers: dict[int, OrderedDict] = {}  # of each thread, since a file has one place to read at


@dataclass(frozen=True)
class Chunk:
    """Rows of one source part that go through the VAE together; `checksum` names its bytes. sizes: (width, height) of
    each row's bucket, nothing for squares. resizer: see `sd.data.images.decode.decode`."""

    task: int
    path: str
    checksum: str
    rows: tuple
    sizes: tuple = ()
    resizer: str = RESIZER


@dataclass
class Decoded:
    """A Chunk's good rows, their captions and crops, uint8 [num_crops, 3, h, w] of each; {row: why} of the others."""

    chunk: Chunk
    rows: list = field(default_factory=list)
    captions: list = field(default_factory=list)
    sources: list = field(default_factory=list)  # the names of the captions' sources
    crops: list = field(default_factory=list)
    bad: dict = field(default_factory=dict)


def decode_chunk(chunk: Chunk, options: CacheOptions) -> Decoded:
    """Read, decode and crop the rows of a Chunk. No row raises: what is wrong with it stands in `bad`."""
    decoded = Decoded(chunk)
    for row, size in zip(chunk.rows, chunk.sizes or [None] * len(chunk.rows), strict=True):
        try:
            reader, key = _opened(chunk.path, chunk.checksum, options.data_cache_bytes)
            record = decode_row(reader.read(row))
            crops = crop_record(record, key, row, options, size, chunk.resizer)
        except RowError as error:
            decoded.bad[row] = str(error)
            continue
        decoded.crops.append(crops)
        decoded.rows.append(row)
        decoded.captions.append(record.captions)
        decoded.sources.append(record.sources)
    return decoded


def decode_alone(chunk: Chunk, options: CacheOptions) -> Decoded:
    """`decode_chunk` in a process of its own, one of as many as there are cores."""
    threadpool_limits(1)
    return decode_chunk(chunk, options)


def crop_record(
    record: Any,
    part_key: int,
    row: int,
    options: CacheOptions,
    size: tuple[int, int] | None = None,
    resizer: str = RESIZER,
) -> np.ndarray:
    """The crops of a row, uint8 [num_crops, 3, h, w]: drawn from seed, part and row, whoever cuts them and when.

    size: (width, height) of its bucket; without it they are squares of the resolution. Raises RowError.
    """
    draws = (rng(options.seed, CROP, part_key, row, number) for number in range(options.num_crops))
    if size is not None:
        picture = decode_covering(record.image, size, resizer=resizer)
        generators = [None] if options.crop == "centre" else draws
        return np.stack([bucket_crop(picture, size, options.interpolation, draw) for draw in generators])
    picture = decode_for(record.image, options.resolution, 1 if options.enlarge else None, resizer)
    if options.crop == "centre":
        return centre_crop(picture, options.resolution, options.interpolation)[None]
    return np.stack([random_crop(picture, options.resolution, options.interpolation, draw) for draw in draws])


def _opened(path: str, checksum: str, cache_bytes: int) -> tuple[PartReader, int]:
    """(PartReader, key of the part's bytes) of a source part, for this thread. Raises RowError.

    The last ones stay open until `close_readers`.
    """
    readers = _readers.setdefault(get_ident(), OrderedDict())
    if (path, checksum) not in readers:
        try:
            index = load_index(path)
            readers[path, checksum] = LocalCopies(cache_bytes).open(path, index), part_key(index)
        except PartError as error:
            raise RowError(f"part unreadable: {error}") from error
        if len(readers) > _MAX_OPEN:
            readers.popitem(last=False)[1][0].close()
    readers.move_to_end((path, checksum))
    return readers[path, checksum]


def close_readers() -> None:
    """Close the source parts that the threads of this process have open; none of them may be decoding."""
    while _readers:
        _, readers = _readers.popitem()
        for reader, _ in readers.values():
            reader.close()


def part_key(index: Any) -> int:
    """An integer that stands for a part's bytes, wherever in a list they are named."""
    return index.part_crc << 32 | index.part_bytes % 2**32
