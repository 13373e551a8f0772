"""TextImagePair, the dataset of training, as paddle.io.DataLoader reads it, and what its workers begin with."""

import ctypes
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from paddle.io import IterableDataset, get_worker_info
from threadpoolctl import threadpool_limits

from sd.data.streaming.bucket_order import BucketOrder
from sd.data.streaming.cached_sample import sample_maker
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.local_copies import LocalCopies
from sd.data.streaming.options import StreamOptions
from sd.data.streaming.order import Order, worker_samples
from sd.data.streaming.skipped import Gaps, Interval
from sd.data.streaming.stream import RowReader, SampleSource, collate, failure, raise_if_failed
from sd.processes.pool import die_with_parent
from sd.processes.watchdog import Watchdog

__all__ = ["TextImagePair", "collate", "raise_if_failed", "worker_init_fn"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NICENESS = 10  # of 19; a tenth of a core that another process wants
WINDOW_ROWS, MIN_WINDOW_ROWS = 20_000, 100

# A forked worker leaves inherited garbage alone: the destructor of one of Paddle's queues waits for ever for threads
# that waited at it in the parent.
os.register_at_fork(after_in_child=gc.freeze)


class TextImagePair(IterableDataset):
    """An endless stream of samples for one rank, in an order that one number, `start_sample`, stands for.

    Use it with `DataLoader(dataset, batch_size=batch_size, num_workers=..., collate_fn=collate,
    worker_init_fn=worker_init_fn, use_shared_memory=False)`, and call `raise_if_failed` on each batch. (With shared
    memory a worker allocates by Paddle, and may wait for ever for a lock that a thread of its parent held at the fork.)
    A batch holds `pixel_values` uint8 [B,3,H,W], `input_ids` int64 [B,L], `position` int64 [B,2] (part number, row),
    `sample` int64 [B] (the number in the run), and what `draw(rng)` returned for each sample. From a cache of latents
    it holds `moments` float16 [B,2C,h,w] in the place of the pixels, and if the cache has the text, `text_states`
    float16 [B,L,D] in that of the ids.

    The batches of all ranks in one round are the next `world_size * batch_size` samples of the run, so after k
    rounds the state is `state(start_sample + k * world_size * batch_size)`, a dict of samples_seen, lanes, deal_size,
    seed, buffer_size, resolution and fingerprint. To resume pass `start_sample=samples_seen` with the lanes, deal_size
    and seed of the state; ranks, batch size and workers may have changed. The stream is the same only if buffer_size,
    resolution and fingerprint are. With `data_filter`, an expression on columns, the rows that pass are all there is.
    captions: CaptionFlags, how captions are drawn. skipped: intervals [first, stop) of the order's numbers that the run
    leaves out; `start_sample` does not count them, the batches' `sample` does.

    buckets: the table of aspect-ratio buckets; pictures and latents then have the shape of their bucket, which is one
    for all batches of a round, and the state has `group_size` and `aspect_buckets` too. group_size: consecutive samples
    of one bucket, a multiple of `world_size * batch_size`, of which `start_sample` must be one; by default the smallest
    that lanes and ranks allow. To resume pass that of the state: a round may have any size that divides it.

    file_list: its path, or a Catalog by the same options. options: a StreamOptions, or its fields by name.

    Attributes: fingerprint (str), resizer (str; None from a cache), num_usable, num_rows, lanes, deal_size (int).
    Raises InputError at once if the file list is unusable or has fewer usable records than one batch for each lane.
    """

    def __init__(
        self,
        file_list: str | Catalog,
        tokenize: Callable[[str], Any],
        options: StreamOptions | None = None,
        **fields: Any,
    ):
        super().__init__()
        self._options = options = options or StreamOptions(**fields)
        self.catalog = file_list if isinstance(file_list, Catalog) else options.catalog(file_list)
        self.lanes, self.deal_size = options.lanes, options.deal_size
        self.fingerprint = self.catalog.fingerprint
        self.resizer = options.resizer if self.catalog.manifest is None else None
        self.num_usable, self.num_rows = self.catalog.num_usable, self.catalog.num_rows
        dealing: dict[str, Any] = {
            "seed": options.seed,
            "lanes": options.lanes,
            "deal_size": options.deal_size,
            "buffer_size": options.buffer_size or default_window(self.catalog, options.cache_bytes),
        }
        bucketing = self.catalog.bucketing
        self.order = (
            BucketOrder(self.catalog.sources, group_size=bucketing.group_size, **dealing)
            if bucketing
            else Order(self.catalog.sources, **dealing)
        )
        self.move(options.start_sample, options.skipped)
        self._maker = sample_maker(
            self.catalog,
            tokenize,
            interpolation=options.interpolation,
            resizer=options.resizer,
            caption_dropout=options.caption_dropout,
            seed=options.seed,
            draw=options.draw,
            captions=options.captions,
        )

    def move(self, start_sample: int, skipped: Iterable[Interval]) -> None:
        """Have the iterators made from now on begin at another sample and leave out other intervals."""
        self._start_sample, self._gaps = start_sample, Gaps(skipped)

    def state(self, samples_seen: int) -> dict[str, Any]:
        """What a checkpoint keeps of the data: plain numbers and strings."""
        bucketing = self.catalog.bucketing
        bucket_state = {"group_size": bucketing.group_size, "aspect_buckets": str(bucketing.table)} if bucketing else {}
        return {
            "samples_seen": int(samples_seen),
            "lanes": self.lanes,
            "deal_size": self.deal_size,
            "seed": self.order.seed,
            "buffer_size": self.order.buffer_size,
            "resolution": self.catalog.resolution,
            "fingerprint": self.fingerprint,
            **bucket_state,
        }

    def name_rows(self, positions: npt.ArrayLike) -> list[str]:
        """int64 [B,2] (part number, row from 0) -> ["part-000001.gz row 17", ...], rows counted from 1."""
        return [self.catalog.name(int(part), int(row)) for part, row in np.asarray(positions)]

    def __iter__(self):
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        options, watchdog = self._options, Watchdog(may_exit=worker is not None)
        reader = RowReader(self.catalog, LocalCopies(options.cache_bytes), watchdog)
        source = SampleSource(
            self.catalog,
            self.order,
            reader,
            self._maker,
            watchdog,
            max_bad_fraction=options.max_bad_fraction,
            worker=options.rank * num_workers + number,
            num_workers=options.world_size * num_workers,
        )
        samples = worker_samples(
            self._start_sample, options.batch_size, options.rank, options.world_size, number, num_workers
        )
        try:
            for sample in samples:
                yield source.train(self._gaps.number(sample))
        except Exception as error:
            # Endless, since a DataLoader drops what is less than a batch.
            while True:
                yield failure(error)
        finally:
            reader.close()
            watchdog.close()


def default_window(catalog: Catalog, cache_bytes: int) -> int:
    """Rows in a shuffle window: WINDOW_ROWS, or where parts are read through local copies, as many as let two windows,
    the one in use and the one that is being fetched, fit into `cache_bytes`; a part that is begun counts whole."""
    if not catalog.copied:
        return WINDOW_ROWS
    row_bytes, part_rows = catalog.copied_bytes / max(1, catalog.copied_rows), catalog.copied_rows / len(catalog.copied)
    return max(MIN_WINDOW_ROWS, min(WINDOW_ROWS, int(cache_bytes / 2 / max(1, row_bytes) - 2 * part_rows)))


def worker_init_fn(worker_id: int) -> None:
    """Make a DataLoader worker a good child: it dies with its parent, computes on one thread, keeps its memory, and
    leaves a core to the trainer's threads when they want it, since a team of threads waits for its slowest.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(parent.pid)
    # Ctrl-C goes to the whole foreground process group; the trainer writes a checkpoint before it ends.
    os.setpgid(0, 0)
    os.nice(_NICENESS)
    threadpool_limits(1)
    if "fsspec.asyn" in sys.modules:  # the event loop runs in the parent: a wait on it never returns
        sys.modules["fsspec.asyn"].reset_lock()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # giving pages back after every image costs a third of the decoding time
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 128 << 20)
