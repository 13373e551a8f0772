"""The work on one cached part: a row for each row of the source part, in its order, the same wherever it is made."""

from typing import Any

import numpy as np

from sd.data.images.resize import RESIZER
from sd.data.packing.outcomes import BAD, FILTERED
from sd.data.parts.columns import INT, Column, read_columns
from sd.data.parts.moments import KIND, Manifest, encode_payload
from sd.data.parts.part import PartWriter
from sd.data.parts.record import RowError, encode_captions_row
from sd.latents.decode import Chunk, Decoded
from sd.latents.models import Encoders
from sd.latents.options import CacheOptions
from sd.latents.plan import Task, usable_rows

_PLACEHOLDER = b"\tNONE\t\n"  # keeps the place of a row of which nothing can be made; its index says so


def chunks_of(task: Task, options: CacheOptions, resizer: str = RESIZER) -> list[Chunk]:
    """The Chunks of a Task's usable rows; one without rows where there are none."""
    _, rows, sizes = usable_rows(task)
    step = max(1, options.batch_size // (options.num_crops * (2 if options.flip else 1)))
    starts = range(0, max(1, len(rows)), step)
    return [
        Chunk(
            task.number,
            task.source,
            task.checksum,
            tuple(rows[at : at + step]),
            tuple(sizes[at : at + step]),
            resizer,
        )
        for at in starts
    ]


def write_part(
    task: Task, decoded: Any, encoders: Encoders, manifest: Manifest, progress: Any
) -> tuple[int, int, list]:
    """Write the cached part of a Task from its Decoded chunks.

    progress(rows): called as rows are done. Returns (good rows, bad rows, [report of the first bad one]); what is too
    small or does not pass the filter is neither. The columns of the source go along, width and height of its pictures
    among them. Raises OSError for an output that cannot be written, PartError for columns that cannot be read.
    """
    resolution = manifest.resolution
    index, rows, sizes = usable_rows(task)
    size_of = dict(zip(rows, sizes, strict=True)) if sizes else {}
    large = task.rule.large(index)
    rejected, num_filtered = [], 0

    def add_placeholder(row, reason):
        """A placeholder, and in the report why; rows that the filter took out are many, so they are counted alone."""
        nonlocal num_filtered
        width, height = int(index.widths[row]), int(index.heights[row])
        if reason is None and large[row]:
            num_filtered += 1
            part.add(_PLACEHOLDER, *[resolution - 1] * 2)  # smaller than any resolution that trains from the cache
            return
        outcome, size = BAD, (0, 0)
        if reason is None and min(width, height) > 0:
            outcome, reason, size = FILTERED, f"image too small: {width}x{height}", (width, height)
        reason, _, detail = (reason or "no readable image, as its index says").partition(": ")
        rejected.append({"row": row + 1, "outcome": outcome, "reason": reason, "detail": detail})
        part.add(_PLACEHOLDER, *size)

    with PartWriter(task.path, kind=KIND) as part:
        row = 0
        for done in _encoded(decoded, encoders):
            for number, line, reason in done:
                for between in range(row, number):
                    add_placeholder(between, None)
                if line is None:
                    add_placeholder(number, reason)
                else:
                    part.add(line, *size_of.get(number, (resolution, resolution)))
                row = number + 1
            progress(len(done))
        for between in range(row, index.num_rows):
            add_placeholder(between, None)
        part.notes = {
            "cache": manifest.id,
            "settings": manifest.settings(),
            "source": task.checksum,
            "rejected": rejected,
        }
        if task.digest:
            part.notes |= {"passing": task.digest, "filtered": num_filtered}
        part.columns = {**_sizes(index), **(read_columns(index) or {})}
    bad = [row for row in rejected if row["outcome"] == BAD]
    return index.num_rows - len(rejected) - num_filtered, len(bad), bad[:1]


def _sizes(index):
    """The columns that stand for the index of the source: width and height of its picture, where there is one."""
    present = None if (index.widths > 0).all() else index.widths > 0
    sides = {"width": index.widths, "height": index.heights}
    return {name: Column(INT, values.astype(np.int64), present) for name, values in sides.items()}


def _encoded(decoded, encoders):
    """Lists of (row number, line or None, why there is none), in order, a list for each chunk.

    A batch is begun on the device before the lines of the one before it are made, so that neither waits for the other.
    """
    begun: list[tuple[Decoded, Any]] = []
    for chunk in decoded:
        begun.append((chunk, encoders.start(chunk.crops, chunk.captions) if chunk.rows else None))
        if len(begun) > 1:
            yield _lines(*begun.pop(0), encoders)
    for chunk, started in begun:
        yield _lines(chunk, started, encoders)


def _lines(decoded, started, encoders):
    lines: list[tuple[int, bytes | None, Any]] = [(row, None, reason) for row, reason in decoded.bad.items()]
    arrays = encoders.finish(started) if started else []
    rows = zip(decoded.rows, decoded.captions, decoded.sources, arrays, strict=True)
    for row, captions, sources, (moments, states) in rows:
        try:
            line = encode_captions_row(captions, encode_payload(moments, states), sources)
        except RowError as error:
            lines.append((row, None, str(error)))
            continue
        lines.append((row, line, None))
    return sorted(lines, key=lambda line: line[0])
