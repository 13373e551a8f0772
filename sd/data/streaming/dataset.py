"""The datasets that paddle.io.DataLoader reads: TextImagePair for training, EvalPairs for validation."""

import ctypes
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from paddle.io import Dataset, IterableDataset, get_worker_info
from threadpoolctl import threadpool_limits

from sd.data.parts.record import RowError
from sd.data.streaming.bucket_order import BucketOrder
from sd.data.streaming.bucketing import Bucketing
from sd.data.streaming.buckets import BucketTable
from sd.data.streaming.cached_sample import CachedSampleMaker
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.local_copies import DEFAULT_BYTES, LocalCopies
from sd.data.streaming.order import EVAL, Order, rng, worker_samples
from sd.data.streaming.sample import SampleMaker
from sd.data.streaming.skipped import Gaps, Interval
from sd.data.streaming.stream import RowReader, SampleSource, collate, failure, raise_if_failed
from sd.errors import InputError, RunError
from sd.processes.pool import die_with_parent
from sd.processes.watchdog import Watchdog

__all__ = ["EvalPairs", "TextImagePair", "collate", "raise_if_failed", "worker_init_fn"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NICENESS = 10  # of 19; a tenth of a core that another process wants
_EVAL_ATTEMPTS = 100
_EVAL_STEPS = 100_000  # over rows of other buckets
WINDOW_ROWS, MIN_WINDOW_ROWS = 20_000, 100


class TextImagePair(IterableDataset):
    """An endless stream of samples for one rank, in an order that one number, `start_sample`, stands for.

    Use it with `DataLoader(dataset, batch_size=batch_size, num_workers=..., collate_fn=collate,
    worker_init_fn=worker_init_fn)`, and call `raise_if_failed` on each batch. A batch holds `pixel_values` uint8
    [B,3,H,W], `input_ids` int64 [B,L], `position` int64 [B,2] (part number, row), `sample` int64 [B] (the number in the
    run), and what `draw(rng)` returned for each sample. From a cache of latents it holds `moments` float16 [B,2C,h,w]
    in the place of the pixels, and if the cache has the text, `text_states` float16 [B,L,D] in that of the ids.

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

    Attributes: fingerprint (str), num_usable, num_rows, lanes, deal_size (int). Raises InputError at once if the file
    list is unusable or there are fewer usable records than one batch for each lane.
    """

    def __init__(
        self,
        file_list: str,
        tokenize: Callable[[str], Any],
        *,
        resolution: int = 512,
        batch_size: int = 1,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 23,
        start_sample: int = 0,
        skipped: Any = (),
        lanes: int | None = None,
        deal_size: int | None = None,
        buffer_size: int | None = None,
        interpolation: str = "lanczos",
        caption_dropout: float = 0.1,
        max_bad_fraction: float = 0.05,
        cache_bytes: int = DEFAULT_BYTES,
        draw: Callable[..., dict[str, np.ndarray]] | None = None,
        enlarge: bool = False,
        data_filter: Any = None,
        captions: Any = None,
        buckets: BucketTable | None = None,
        group_size: int | None = None,
    ):
        super().__init__()
        if not 0 <= rank < world_size:
            raise InputError(f"rank={rank} of world_size={world_size}; expected 0 <= rank < world_size")
        self.lanes = lanes or world_size * max(1, num_workers)
        self.deal_size = deal_size or batch_size
        bucketing = None
        if buckets is not None:
            group_size = group_size or math.lcm(batch_size * world_size, self.lanes * self.deal_size)
            _check_round(batch_size, world_size, group_size, start_sample, skipped)
            bucketing = Bucketing(buckets, group_size, enlarge)
        self.catalog = Catalog(
            file_list,
            resolution,
            max_bad_fraction=max_bad_fraction,
            enlarge=enlarge,
            data_filter=data_filter,
            bucketing=bucketing,
        )
        self.fingerprint = self.catalog.fingerprint
        self.num_usable, self.num_rows = self.catalog.num_usable, self.catalog.num_rows
        dealing = {
            "seed": seed,
            "lanes": self.lanes,
            "deal_size": self.deal_size,
            "buffer_size": buffer_size or default_window(self.catalog, cache_bytes),
        }
        self.order = (
            BucketOrder(self.catalog.sources, group_size=bucketing.group_size, **dealing)
            if bucketing
            else Order(self.catalog.sources, **dealing)
        )
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._max_bad_fraction, self._cache_bytes = max_bad_fraction, cache_bytes
        self.move(start_sample, skipped)
        self._maker = _sample_maker(
            self.catalog,
            tokenize,
            interpolation=interpolation,
            caption_dropout=caption_dropout,
            seed=seed,
            draw=draw,
            captions=captions,
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

    def name_rows(self, positions: Any) -> Any:
        """int64 [B,2] (part number, row from 0) -> ["part-000001.gz row 17", ...], rows counted from 1."""
        return [self.catalog.name(int(part), int(row)) for part, row in np.asarray(positions)]

    def __iter__(self):
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        watchdog = Watchdog(may_exit=worker is not None)
        reader = RowReader(self.catalog, LocalCopies(self._cache_bytes), watchdog)
        source = SampleSource(
            self.catalog,
            self.order,
            reader,
            self._maker,
            watchdog,
            max_bad_fraction=self._max_bad_fraction,
            worker=self._rank * num_workers + number,
            num_workers=self._world_size * num_workers,
        )
        samples = worker_samples(
            self._start_sample, self._batch_size, self._rank, self._world_size, number, num_workers
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


def _check_round(batch_size, world_size, group_size, start_sample, skipped):
    """Raise InputError unless the rounds of all ranks, from `start_sample` on, lie each within a group."""
    round_size = batch_size * world_size
    product = f"{world_size} rank(s) x {batch_size} samples = {round_size}"
    if group_size % round_size:
        fitting = [size for size in range(1, group_size + 1) if group_size % size == 0]
        raise InputError(
            f"{product} in a micro-batch of all ranks do not divide the group of {group_size} samples, which are of "
            f"one bucket; use ranks and a batch whose product is one of {', '.join(map(str, fitting))} (and of another "
            "run set the group by --aspect_group_size)"
        )
    edges = [edge for interval in skipped for edge in interval]
    for number in (start_sample, *edges):
        if number % round_size:
            raise InputError(
                f"the run resumes from sample {number}, no multiple of {product}, so that a micro-batch would be of "
                "two buckets; use ranks and a batch whose product divides it"
            )


def default_window(catalog: Catalog, cache_bytes: int) -> int:
    """Rows in a shuffle window: WINDOW_ROWS, or where parts are read through local copies, as many as let two windows,
    the one in use and the one that is being fetched, fit into `cache_bytes`; a part that is begun counts whole."""
    if not catalog.copied:
        return WINDOW_ROWS
    row_bytes, part_rows = catalog.copied_bytes / max(1, catalog.copied_rows), catalog.copied_rows / len(catalog.copied)
    return max(MIN_WINDOW_ROWS, min(WINDOW_ROWS, int(cache_bytes / 2 / max(1, row_bytes) - 2 * part_rows)))


class EvalPairs(Dataset):
    """`limit` records spread evenly over a file list: centre crop, first caption, draws that never change.

    Gives the same keys as TextImagePair, `sample` being the number of the record among the `len`. A bad row is
    replaced by the next good one of its bucket. buckets: as of a TextImagePair, a batch is then to be made of items of
    one `bucket`. Use `collate`, `worker_init_fn` and `raise_if_failed` with it too. file_list: its
    path, or the Catalog that a TextImagePair has read.
    """

    def __init__(
        self,
        file_list: str | Catalog,
        tokenize: Callable[[str], Any],
        *,
        resolution: int = 512,
        draw: Callable[..., dict[str, np.ndarray]] | None = None,
        seed: int = 23,
        interpolation: str = "lanczos",
        limit: int | None = 1000,
        max_bad_fraction: float = 0.05,
        cache_bytes: int = DEFAULT_BYTES,
        enlarge: bool = False,
        buckets: BucketTable | None = None,
    ):
        super().__init__()
        if not isinstance(file_list, Catalog):
            bucketing = Bucketing(buckets, 1, enlarge) if buckets is not None else None
            file_list = Catalog(
                file_list, resolution, max_bad_fraction=max_bad_fraction, enlarge=enlarge, bucketing=bucketing
            )
        self.catalog = file_list
        self._ends = np.cumsum(self.catalog.usable)
        self._num_records = min(limit or self.catalog.num_usable, self.catalog.num_usable)
        self._seed, self._cache_bytes = seed, cache_bytes
        self._maker = _sample_maker(
            self.catalog, tokenize, interpolation=interpolation, caption_dropout=0, seed=seed, draw=draw
        )
        self._reader, self._reader_pid = None, None

    def __len__(self):
        return self._num_records

    def __getitem__(self, number):
        try:
            return self._make(number)[0]
        except Exception as error:
            return failure(error)

    @property
    def sizes(self) -> Any:
        """(width, height) of each bucket; None without buckets."""
        rows = self.catalog.bucket_rows
        return None if rows is None else rows.bucketing.table.sizes

    def bucket(self, number: int) -> int | None:
        """The bucket of item `number`; None without buckets."""
        return self._bucket(*self._position(self._first(number)))

    def caption(self, number: int) -> str:
        """The caption of item `number`, as text."""
        return self._make(number)[1].captions[0]

    def _make(self, number):
        """(arrays, Record) of an item."""
        if self._reader_pid != os.getpid():  # file positions are shared over a fork
            watchdog = Watchdog(may_exit=get_worker_info() is not None)
            self._reader = RowReader(self.catalog, LocalCopies(self._cache_bytes), watchdog)
            self._reader_pid = os.getpid()
        first = self._first(number)
        bucket = self._bucket(*self._position(first))
        attempts = 0
        for step in range(min(_EVAL_STEPS, self.catalog.num_usable)):
            position = self._position((first + step) % self.catalog.num_usable)
            if self._bucket(*position) != bucket:
                continue
            attempts += 1
            if attempts > _EVAL_ATTEMPTS:
                break
            try:
                row, record = self._reader.read(*position)
                arrays = self._maker.evaluate(record, number, rng(self._seed, EVAL, number), bucket)
            except RowError:
                continue
            return arrays | {"position": np.array([position[0], row], np.int64)}, record
        raise RunError(f"{self.catalog.file_list}: no good row among {_EVAL_ATTEMPTS} from usable row {first} on")

    def _first(self, number):
        """Number among the usable rows of the one that item `number` is, if it is good."""
        return number * self.catalog.num_usable // self._num_records

    def _position(self, at):
        """(part, ordinal) of usable row number `at`."""
        part = int(np.searchsorted(self._ends, at, side="right"))
        return part, at - int(self._ends[part] - self.catalog.usable[part])

    def _bucket(self, part, ordinal):
        rows = self.catalog.bucket_rows
        return None if rows is None else rows.bucket(part, ordinal)


def _sample_maker(catalog, tokenize, *, interpolation, **options):
    """The SampleMaker of a catalog of images, the CachedSampleMaker of one of cached parts."""
    manifest, rows = catalog.manifest, catalog.bucket_rows
    if manifest is None:
        shapes = {"min_side": catalog.min_side}
        if rows is not None:
            shapes = {"sizes": rows.bucketing.table.sizes, "covered": rows.covered}
        return SampleMaker(tokenize, resolution=catalog.resolution, interpolation=interpolation, **shapes, **options)
    table = None if rows is None else str(rows.bucketing.table)
    if lines := manifest.differences(resolution=catalog.resolution, aspect_buckets=table):
        raise InputError(f"{catalog.file_list}: the cache does not fit: {'; '.join(lines)}")
    return CachedSampleMaker(tokenize, manifest, **options)


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
