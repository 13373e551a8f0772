"""The dataset of validation and previews: some records of a file list, always the same and made alike."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from paddle.io import Dataset, get_worker_info

from sd.data.images.resize import RESIZER
from sd.data.parts.record import RowError
from sd.data.streaming.cached_sample import sample_maker
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.local_copies import DEFAULT_BYTES, LocalCopies
from sd.data.streaming.order import EVAL, rng
from sd.data.streaming.stream import RowReader, failure
from sd.errors import RunError
from sd.processes.watchdog import Watchdog

_ATTEMPTS = 100
_STEPS = 100_000  # over rows of other buckets


class EvalPairs(Dataset):
    """`limit` records spread evenly over a file list: centre crop, first caption, draws that never change.

    Gives the same keys as TextImagePair, `sample` being the number of the record among the `len`. A bad row is
    replaced by the next good one of its bucket; with buckets a batch is to be made of items of one `bucket`. Use
    `collate`, `worker_init_fn` and `raise_if_failed` with it too.
    """

    def __init__(
        self,
        catalog: Catalog,
        tokenize: Callable[[str], Any],
        *,
        draw: Callable[..., dict[str, np.ndarray]] | None = None,
        seed: int = 23,
        interpolation: str = "lanczos",
        resizer: str = RESIZER,
        limit: int | None = 1000,
        cache_bytes: int = DEFAULT_BYTES,
    ):
        super().__init__()
        self.catalog = catalog
        self._num_records = min(limit or self.catalog.num_usable, self.catalog.num_usable)
        self._seed, self._cache_bytes = seed, cache_bytes
        self._maker = sample_maker(
            self.catalog,
            tokenize,
            interpolation=interpolation,
            resizer=resizer,
            caption_dropout=0,
            seed=seed,
            draw=draw,
        )
        self._reader: RowReader | None = None
        self._reader_pid: int | None = None

    def __len__(self):
        return self._num_records

    def __getitem__(self, number):
        try:
            return self._make(number)[0]
        except Exception as error:
            return failure(error)

    def size(self, number: int) -> tuple[int, int] | None:
        """(width, height) of the bucket of item `number`; None without buckets."""
        bucket = self.bucket(number)
        return None if bucket is None else self.sizes[bucket]

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each bucket; none without buckets."""
        rows = self.catalog.bucket_rows
        return () if rows is None else rows.bucketing.table.sizes

    def bucket(self, number: int) -> int | None:
        """The bucket of item `number`; None without buckets."""
        return self._bucket(*self.catalog.position(self._first(number)))

    def caption(self, number: int) -> str:
        """The caption of item `number`, as text."""
        return self._make(number)[1].captions[0]

    def _make(self, number):
        """(arrays, Record) of an item."""
        reader = self._own_reader()
        first = self._first(number)
        bucket = self._bucket(*self.catalog.position(first))
        attempts = 0
        for step in range(min(_STEPS, self.catalog.num_usable)):
            position = self.catalog.position((first + step) % self.catalog.num_usable)
            if self._bucket(*position) != bucket:
                continue
            attempts += 1
            if attempts > _ATTEMPTS:
                break
            try:
                row, record = reader.read(*position)
                arrays = self._maker.evaluate(record, number, rng(self._seed, EVAL, number), bucket)
            except RowError:
                continue
            return arrays | {"position": np.array([position[0], row], np.int64)}, record
        raise RunError(f"{self.catalog.file_list}: no good row among {_ATTEMPTS} from usable row {first} on")

    def _own_reader(self):
        """The reader of this process: file positions are shared over a fork."""
        if self._reader is None or self._reader_pid != os.getpid():
            watchdog = Watchdog(may_exit=get_worker_info() is not None)
            self._reader = RowReader(self.catalog, LocalCopies(self._cache_bytes), watchdog)
            self._reader_pid = os.getpid()
        return self._reader

    def _first(self, number):
        """Number among the usable rows of the one that item `number` is, if it is good."""
        return number * self.catalog.num_usable // self._num_records

    def _bucket(self, part, ordinal):
        rows = self.catalog.bucket_rows
        return None if rows is None else rows.bucket(part, ordinal)
