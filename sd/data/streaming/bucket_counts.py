"""A cache of the rows of parts by bucket: counting reads the sizes of all rows, where a start needs headers alone."""

import io
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from sd.data.parts import storage
from sd.data.parts.index import PartHeader
from sd.data.streaming.bucketing import Bucketing

MIN_NEW_PARTS = 500  # fewer parts are counted in less than a second
_MAX_PARTS = 2_000_000


class BucketCountCache:
    """Counts by the bytes of a part, of one table of buckets, in the folder of kept indexes."""

    def __init__(self, bucketing: Bucketing, cache_dir: str | Path | None = None):
        name = sha256(f"{bucketing.table} {bucketing.enlarge}".encode()).hexdigest()[:32]
        self.path = Path(cache_dir or storage.cache_folder("sd_part_indexes")) / f"buckets-{name}.npz"
        self._stored: dict[tuple, np.ndarray] = {}
        self._new: dict[tuple, np.ndarray] = {}
        with (
            suppress(OSError, ValueError, KeyError, EOFError, BadZipFile),
            np.load(io.BytesIO(self.path.read_bytes())) as file,
        ):
            if file["counts"].shape[1:] == (len(bucketing.table),):
                keys = map(tuple, file["keys"].tolist())
                self._stored = dict(zip(keys, file["counts"].astype(np.int32), strict=True))

    def get(self, header: PartHeader) -> np.ndarray | None:
        """int32 [buckets] of a part; None if it was not counted yet."""
        key = _key(header)
        return self._stored.get(key, self._new.get(key))

    def add(self, header: PartHeader, counts: np.ndarray) -> None:
        """Take in what was counted."""
        self._new[_key(header)] = counts

    def save(self) -> None:
        """Write the cache if enough entries are new; a folder that cannot be written is ignored."""
        if len(self._new) < MIN_NEW_PARTS:
            return
        counts = self._new if len(self._new) + len(self._stored) > _MAX_PARTS else self._stored | self._new
        buffer = io.BytesIO()
        np.savez(buffer, keys=np.array(list(counts), np.int64), counts=np.stack(list(counts.values())))
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            storage.write_atomic(self.path, buffer.getvalue())


def _key(header):
    return header.part_crc, header.part_bytes, header.num_rows, int(header.kind == "image")
