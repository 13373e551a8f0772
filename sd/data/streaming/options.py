"""What a TextImagePair is asked for: which rows are used, who reads which of them, and what is made of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sd.data.images.resize import RESIZER
from sd.data.streaming.bucketing import Bucketing
from sd.data.streaming.buckets import BucketTable
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.local_copies import DEFAULT_BYTES
from sd.data.streaming.skipped import Interval
from sd.errors import InputError
from sd.flags.captions import CaptionFlags


@dataclass(frozen=True)
class StreamOptions:
    """The options of a TextImagePair. Raises InputError where ranks, batch and groups do not fit each other.

    - resolution, enlarge, data_filter, max_bad_fraction, buckets: which rows are used, see Catalog.
    - batch_size, num_workers, rank, world_size: of the DataLoaders; all ranks have the same but `rank`.
    - seed, lanes, deal_size, buffer_size, group_size, start_sample, skipped: the order, and where it resumes. lanes,
      deal_size and group_size are filled in where they are left open.
    - interpolation, resizer, caption_dropout, captions, draw: what is made of a row. cache_bytes: of the copies of
      remote parts.
    """

    resolution: int = 512
    batch_size: int = 1
    num_workers: int = 0
    rank: int = 0
    world_size: int = 1
    seed: int = 23
    start_sample: int = 0
    skipped: Sequence[Interval] = ()
    lanes: int | None = None
    deal_size: int | None = None
    buffer_size: int | None = None
    interpolation: str = "lanczos"
    resizer: str = RESIZER
    caption_dropout: float = 0.1
    max_bad_fraction: float = 0.05
    cache_bytes: int = DEFAULT_BYTES
    draw: Callable[..., dict[str, np.ndarray]] | None = None
    enlarge: bool = False
    data_filter: str | None = None
    captions: CaptionFlags | None = None
    buckets: BucketTable | None = None
    group_size: int | None = None

    def __post_init__(self):
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"rank={self.rank} of world_size={self.world_size}; expected 0 <= rank < world_size")
        lanes = self.lanes or self.world_size * max(1, self.num_workers)
        deal_size = self.deal_size or self.batch_size
        filled: dict[str, Any] = {"lanes": lanes, "deal_size": deal_size}
        if self.buckets is not None:
            filled["group_size"] = self.group_size or math.lcm(self.batch_size * self.world_size, lanes * deal_size)
            self._check_round(filled["group_size"])
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    def _check_round(self, group_size: int) -> None:
        """Raise InputError unless the rounds of all ranks, from `start_sample` on, lie each within a group."""
        round_size = self.batch_size * self.world_size
        product = f"{self.world_size} rank(s) x {self.batch_size} samples = {round_size}"
        if group_size % round_size:
            fitting = [size for size in range(1, group_size + 1) if group_size % size == 0]
            raise InputError(
                f"{product} in a micro-batch of all ranks do not divide the group of {group_size} samples, which are "
                f"of one bucket; use ranks and a batch whose product is one of {', '.join(map(str, fitting))} (and of "
                "another run set the group by --aspect_group_size)"
            )
        edges = [edge for interval in self.skipped for edge in interval]
        for number in (self.start_sample, *edges):
            if number % round_size:
                raise InputError(
                    f"the run resumes from sample {number}, no multiple of {product}, so that a micro-batch would be "
                    "of two buckets; use ranks and a batch whose product divides it"
                )

    def catalog(self, file_list: str) -> Catalog:
        """The Catalog of a file list, of the rows that are used. Raises InputError."""
        bucketing = None
        if self.buckets is not None and self.group_size is not None:
            bucketing = Bucketing(self.buckets, self.group_size, self.enlarge)
        return Catalog(
            file_list,
            self.resolution,
            max_bad_fraction=self.max_bad_fraction,
            enlarge=self.enlarge,
            data_filter=self.data_filter,
            bucketing=bucketing,
        )
