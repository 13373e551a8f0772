"""How start and place in the data grow with the data, with and without aspect-ratio buckets.

    python -m bench order
    python -m bench order --parts 600 6000 --records 10000000

First the order alone, of made-up counts: making it, its memory, the place of a sample after 3 x 10^9 others, and
whether the records of a step of all ranks differ and have one shape. Then the start of a run over index files (17 KB
each), of which squares need the headers, and buckets the sizes of all rows: at the first start, later ones know them.
"""

import argparse
import logging
import os
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.results import Results
from sd.data.parts.index import SUFFIX
from sd.data.parts.part import PartWriter
from sd.data.streaming.bucket_order import BucketOrder
from sd.data.streaming.bucketing import Bucketing
from sd.data.streaming.buckets import BucketTable
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.order import Order

SHARES = (0.01, 0.04, 0.1, 0.15, 0.35, 0.2, 0.1, 0.04, 0.01)  # of rows in nine buckets, upright to lying
ROWS_A_PART, RESOLUTION = 1000, 512
RANKS, MACHINES, BATCH, WINDOW = 1024, 128, 2, 20_000
SEEN = 3 * 10**9


def make_order(counts, with_buckets):
    """An order over int32 [buckets, parts] counts, or over their sums."""
    dealing = {"seed": 23, "lanes": MACHINES, "deal_size": RANKS // MACHINES * BATCH, "buffer_size": WINDOW}
    if with_buckets:
        return BucketOrder([(1.0, counts)], group_size=RANKS * BATCH, **dealing)
    return Order([(1.0, counts.sum(0))], **dealing)


def of_order(results, records):
    """Rows on the order alone."""
    parts = records // ROWS_A_PART
    counts = np.random.default_rng(0).multinomial(ROWS_A_PART, SHARES, size=parts).T.astype(np.int32)
    for with_buckets in (False, True):
        seconds = []
        for start in (0, 1, 2):  # a fresh order each time, as a resumed run has
            begin = time.process_time()
            order = make_order(counts, with_buckets)
            ordered_at = time.process_time()
            order.position(SEEN + start)
            seconds.append((ordered_at - begin, time.process_time() - ordered_at))
        tracemalloc.start()
        order = make_order(counts, with_buckets)
        first = SEEN - SEEN % (RANKS * BATCH)
        step = range(first, first + RANKS * BATCH)
        places = {order.position(sample) for sample in step}
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        shapes = len({order.bucket_of(sample) for sample in step})
        begin = time.process_time()
        for sample in range(SEEN, SEEN + 20_000):
            order.position(sample)
        each = (time.process_time() - begin) / 20_000
        results.add(
            what=f"order, {records // 10**6} M records, {RANKS} ranks",
            buckets=len(SHARES) if with_buckets else "squares",
            start_s=min(ordered_at for ordered_at, _ in seconds),
            place_ms=min(place for _, place in seconds) * 1e3,
            next_us=each * 1e6,
            memory_mb=memory / 1e6,
            different=f"{len(places)} of {len(step)}, shapes: {shapes}",
        )


def of_start(results, num_parts):
    """Rows on a start over index files: the first, and one that comes again."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with PartWriter(folder / "one.gz") as part:
            for _ in range(ROWS_A_PART):
                part.add(b"a\tNONE\tYQ==\n", *(int(side) for side in rng.integers(RESOLUTION, 3 * RESOLUTION, 2)))
        names = []
        for number in range(num_parts):
            group = folder / f"{number // 1000}"
            group.mkdir(exist_ok=True)
            name = group / f"part-{number:06d}.gz"
            os.link(folder / "one.gz", name)
            Path(f"{name}{SUFFIX}").write_bytes(replace(part.index, part_crc=number).to_bytes())
            names.append(f"{name}\n")
        (folder / "a.filelist").write_text("".join(names))
        (folder / "a.filelist.list").write_text(f"{folder / 'a.filelist'}\n")
        for count, which in ((0, ""), (9, ", the first"), (9, ", a later one")):
            bucketing = Bucketing(BucketTable.from_flag(str(count), RESOLUTION, 64)) if count else None
            begin = time.process_time()
            catalog = Catalog(
                str(folder / "a.filelist.list"), RESOLUTION, bucketing=bucketing, cache_dir=folder / "kept"
            )
            results.add(
                what=f"start{which}, {num_parts} parts, {catalog.num_rows // 1000} thousand records",
                buckets=count or "squares",
                start_s=time.process_time() - begin,
            )


def main():
    parser = argparse.ArgumentParser(prog="python -m bench order", description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=int, default=400_000_000, help="of the order alone; default 400,000,000")
    parser.add_argument("--parts", type=int, nargs="*", default=[600, 6000], help="index files of a start")
    arguments = parser.parse_args()
    logging.getLogger("sd.data").setLevel(logging.WARNING)
    columns = ("what", "buckets", "start_s", "place_ms", "next_us", "memory_mb", "different")
    results = Results(
        "order", columns, "processor time, the least of three where a fresh order is made; peak of memory"
    )
    of_order(results, arguments.records)
    for num_parts in arguments.parts:
        of_start(results, num_parts)


if __name__ == "__main__":
    main()
