"""Which of a record's captions a sample sees, and in which order its tags: functions of the seed and its number."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sd.data.parts.record import Record
from sd.data.streaming.order import CAPTION, rng
from sd.errors import InputError
from sd.flags.captions import CaptionFlags


class CaptionDraw:
    """Draws captions with probability `dropout` of none.

    Without shares every caption of a record is as likely. With them a source is drawn first, by the shares of those
    that the record has, made to add up to 1, then one of its captions; a record with none of them is drawn from as
    without shares.
    """

    def __init__(self, seed: int, dropout: float, flags: CaptionFlags | None = None):
        self._seed, self._dropout, self._flags = seed, dropout, flags or CaptionFlags()

    def text(self, record: Record, sample: int) -> str:
        """The caption of a sample, "" where it is dropped."""
        chosen, draw = self._choose(record.sources, sample)
        if chosen is None:
            return ""
        caption = record.captions[chosen]
        return self._shuffled(caption, draw) if record.sources[chosen] in self._flags.shuffled else caption

    def state(self, record: Record, states: Sequence[Any], sample: int, empty: Any) -> Any:
        """As `text`, of the texts' states in the order of the captions; `empty` where the caption is dropped."""
        chosen, _ = self._choose(record.sources, sample)
        return empty if chosen is None else states[chosen]

    def _choose(self, sources, sample):
        """(number of a caption, None where it is dropped; the generator for what else is drawn)."""
        draw = rng(self._seed, CAPTION, sample)
        dropped = draw.random() < self._dropout
        shares = [(source, share) for source, share in self._flags.shares if source in sources]
        numbers = [*range(len(sources))]
        if shares:
            ends = np.cumsum([share for _, share in shares])
            index = int(np.searchsorted(ends, draw.random() * ends[-1], side="right"))
            source, _ = shares[min(index, len(shares) - 1)]
            numbers = [number for number in numbers if sources[number] == source]
        chosen = numbers[int(draw.integers(len(numbers)))]
        return None if dropped else chosen, draw

    def _shuffled(self, caption, draw):
        tags = [tag for tag in (piece.strip() for piece in caption.split(",")) if tag]
        rest = tags[self._flags.keep :]
        order = draw.permutation(len(rest))
        keep = draw.random(len(rest)) >= self._flags.tag_dropout
        return ", ".join(tags[: self._flags.keep] + [rest[number] for number in order if keep[number]])


def check_sources(row_sources: Sequence[Sequence[str]], flags: CaptionFlags) -> list[str]:
    """Lines on rows that lack a source with a share. row_sources: of each row that was read.

    Raises InputError for a source that no row has.
    """
    present = sorted({source for sources in row_sources for source in sources})
    for source in flags.named if row_sources else ():
        if source not in present:
            name = "caption_shares" if source in dict(flags.shares) else "shuffle_tags"
            raise InputError(
                f"{name}: none of {len(row_sources)} rows read has a caption named {source!r}; they have "
                f"{', '.join(present)}"
            )
    lines = []
    for source, _ in flags.shares:
        if num_lacking := sum(source not in sources for sources in row_sources):
            lines.append(
                f"{num_lacking} of {len(row_sources)} rows read have no {source!r}; they draw from their other sources"
            )
    return lines
