"""Sample number -> arrays: reads the rows that the order names, makes samples of them, replaces and counts bad ones."""

import logging
import traceback
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sd.data.parts import storage
from sd.data.parts.index import PartError
from sd.data.parts.part import load_header, load_index
from sd.data.parts.record import Record, RowError, decode_row
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.local_copies import LocalCopies
from sd.errors import InputError, RunError
from sd.processes.watchdog import Watchdog

logger = logging.getLogger(__name__)

_OPEN_PARTS = 256
_NAMED_ROWS = 20  # bad rows named one by one in a worker's log
# A worker judges the share of bad rows once it has read its share of a pass, or this many rows of it.
_MIN_COUNTED, _MAX_COUNTED = 200, 20_000


class RowReader:
    """Reads the usable rows of a catalog's parts by (part, ordinal); a few parts stay open."""

    def __init__(self, catalog: Catalog, copies: LocalCopies, watchdog: Watchdog, cache_dir: str | Path | None = None):
        self._catalog, self._copies, self._watchdog, self._cache_dir = catalog, copies, watchdog, cache_dir
        self._open = OrderedDict()  # part -> (reader, row numbers of its usable rows), or (None, why it did not open)
        self._pool: ThreadPoolExecutor | None = None
        self._prepared: set[int] = set()

    def read(self, part: int, ordinal: int) -> tuple[int, Record]:
        """(row number, Record). Raises BadRowError."""
        reader, rows = self._opened(part)
        row = int(rows[ordinal])
        with self._watchdog.doing(f"reading {self._catalog.name(part, row)}"):
            try:
                return row, decode_row(reader.read(row))
            except RowError as error:
                raise BadRowError(row, error) from error

    def prepare(self, part: int) -> None:
        """Fetch a part that is read from a local copy in the background, so that its first row need not wait."""
        if part in self._open or part in self._prepared:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="prepare parts")
        self._prepared.add(part)
        self._pool.submit(self._prepare, part)

    def retain(self, parts: set[int]) -> None:
        """Close copied parts that are not among `parts`: a copy that is open takes space even when it is removed."""
        for part in self._catalog.copied.intersection(self._open) - parts:
            self._close(part)
        self._prepared &= parts

    def _prepare(self, part):
        path = self._catalog.paths[part]
        # An exception here comes again when the part is opened, and is reported then.
        with suppress(PartError, RunError, OSError):
            self._copies.prepare(path, load_header(path, self._cache_dir))

    def _opened(self, part):
        if part not in self._open:
            self._open[part] = self._try_open(part)
            if len(self._open) > _OPEN_PARTS:
                self._close(next(iter(self._open)))
        self._open.move_to_end(part)
        reader, rows = self._open[part]
        if reader is None:
            raise BadRowError(None, rows)
        return reader, rows

    def _close(self, part):
        reader, _ = self._open.pop(part)
        self._prepared.discard(part)
        if reader is not None:
            reader.close()

    def close(self) -> None:
        for part in list(self._open):
            self._close(part)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _try_open(self, part):
        path = self._catalog.paths[part]
        with self._watchdog.doing(f"opening {path}"):
            try:
                index = load_index(path, self._cache_dir)
                reader = self._copies.open(path, index)
            except PartError as error:
                return None, error
        manifest = self._catalog.manifest
        if manifest is not None and index.notes.get("cache") not in (manifest.ids or (manifest.id,)):
            raise RunError(f"{path}: cached by other settings than {manifest.path} says; make the cache again")
        try:
            rows = self._catalog.rows(part, index)
        except PartError as error:
            reader.close()
            return None, error
        if len(rows) != self._catalog.usable[part]:
            raise RunError(f"{path}: its index or its columns have changed since the start; start again")
        return reader, rows


class BadRowError(RowError):
    """A RowError with the row that it is about; None for a part that cannot be opened."""

    def __init__(self, row: int | None, reason: object):
        super().__init__(str(reason))
        self.row = row


class SampleSource:
    """Makes the sample of a number, from the first good one of the order's candidates.

    worker, num_workers: this one's number among those of all ranks. Raises RunError when more than `max_bad_fraction`
    of the rows that were a sample's own turned out bad.
    """

    def __init__(
        self,
        catalog: Catalog,
        order: Any,
        reader: RowReader,
        maker: Any,
        watchdog: Watchdog,
        *,
        max_bad_fraction: float,
        worker: int,
        num_workers: int,
    ):
        self._catalog, self._order, self._reader, self._maker = catalog, order, reader, maker
        self._watchdog, self._max_bad_fraction = watchdog, max_bad_fraction
        min_read = max(_MIN_COUNTED, catalog.num_usable // num_workers)
        self._min_read = min(catalog.num_usable, min_read, _MAX_COUNTED)
        self._bad_positions = set()
        self._windows = {}  # (source, lane) -> (the window that it is in, parts of that and of the next)
        # The workers that serve a lane fetch its next window between them.
        self._sharing = max(1, num_workers // order.lanes)
        self._share = worker % self._sharing
        self.num_read = self.num_bad = 0

    def train(self, sample: int) -> dict[str, Any]:
        """The arrays of training sample number `sample`."""
        self.num_read += 1
        if self._catalog.copied:
            self._prefetch_windows(sample)
        bucket = self._order.bucket_of(sample)
        for turn, position in enumerate(self._order.candidates(sample)):
            arrays = self._try(position, sample, bucket)
            if arrays is not None:
                return arrays
            if turn == 0:
                self._count()
        raise RunError(f"sample {sample}: no good row in its window, nor among those drawn instead; check the parts")

    def _prefetch_windows(self, sample):
        """On entering a window, prefetch copies of its parts and the next one's, and close earlier ones."""
        source, lane, *window, _ = self._order.coordinates(sample)
        if self._windows.get((source, lane), [None])[0] == window:
            return
        current, following = self._order.window_parts(source, lane, *window)
        self._windows[source, lane] = window, current | following
        self._reader.retain(set().union(*(parts for _, parts in self._windows.values())))
        for part in [*sorted(current), *sorted(following - current)]:
            if part in self._catalog.copied and part % self._sharing == self._share:
                self._reader.prepare(part)

    def _try(self, position, sample, bucket):
        if position in self._bad_positions:
            return None
        part, ordinal = position
        row = None
        try:
            row, record = self._reader.read(part, ordinal)
            with self._watchdog.doing(f"decoding {self._catalog.name(part, row)}"):
                arrays = self._maker.train(record, sample, bucket)
        except RowError as error:
            self._record_bad(position, getattr(error, "row", row), error)
            return None
        arrays["position"] = np.array([part, row], np.int64)
        return arrays

    def _record_bad(self, position, row, error):
        self._bad_positions.add(position)
        part = position[0]
        name = storage.base_name(self._catalog.paths[part]) if row is None else self._catalog.name(part, row)
        if len(self._bad_positions) <= _NAMED_ROWS:
            logger.warning("bad row replaced: %s: %s", name, error)
        elif len(self._bad_positions) == _NAMED_ROWS + 1:
            logger.warning("more bad rows are replaced without being named")
        self._latest = f"{name}: {error}"

    def _count(self):
        self.num_bad += 1
        if self.num_bad > self._max_bad_fraction * max(self.num_read, self._min_read):
            raise RunError(
                f"{self.num_bad} of {self.num_read} rows read by this worker are bad, more than --max_bad_fraction "
                f"{self._max_bad_fraction} allows; the latest: {self._latest}"
            )


def failure(error: BaseException) -> dict[str, Any]:
    """A sample that carries an error. An exception inside a DataLoader worker would lose its message, and without
    workers it would hang the training."""
    if isinstance(error, MemoryError):
        error = RunError(
            "a data worker ran out of memory; fewer --dataloader_num_workers need less, and the same command resumes "
            "from the last checkpoint"
        )
    is_message = isinstance(error, InputError | RunError)
    text = str(error) if is_message else "".join(traceback.format_exception(error))
    return {"error": np.frombuffer(text.encode(), np.uint8)}


def collate(samples: Sequence[Any]) -> dict[str, Any]:
    """Stack samples key by key into NumPy arrays, never Paddle tensors: those would be freed before they are sent."""
    for sample in samples:
        if "error" in sample:
            return {"error": sample["error"]}
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def raise_if_failed(batch: dict[str, Any]) -> None:
    """Raise the RunError that a data worker handed over instead of a batch. Call it on each batch."""
    if "error" in batch:
        raise RunError(bytes(np.asarray(batch["error"])).decode())
