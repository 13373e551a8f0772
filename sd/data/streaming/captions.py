"""How many captions are longer than the text encoder sees: judged by a sample of a data set's rows."""

import re
from contextlib import closing, suppress
from typing import Any

import numpy as np

from sd.data.parts.record import RowError
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.local_copies import LocalCopies
from sd.data.streaming.stream import RowReader
from sd.processes.watchdog import Watchdog

SAMPLED = 200
_ENDS = 2  # tokens that mark begin and end of the text
_LETTERS_A_TOKEN = 40  # no more are looked at for each place: a caption may have a hundred thousand
# CLIP splits a text into these pieces before it makes one or more tokens of each.
_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|[^\s\w]+|_+")


def sample_captions(catalog: Catalog, most: int = SAMPLED) -> list[str]:
    """First captions of up to `most` usable rows spread over a catalog's parts.

    Parts that would have to be copied here first are left out, and so are bad rows.
    """
    ends = np.cumsum(catalog.usable)
    captions = []
    with closing(Watchdog()) as watchdog, closing(RowReader(catalog, LocalCopies(), watchdog)) as reader:
        for row in np.unique(np.linspace(0, catalog.num_usable - 1, min(most, catalog.num_usable)).astype(int)):
            part = int(np.searchsorted(ends, row, side="right"))
            if part in catalog.copied:
                continue
            with suppress(RowError):
                _, record = reader.read(part, int(row - ends[part] + catalog.usable[part]))
                captions += record.captions[:1]
    return captions


def num_tokens(caption: str, max_length: int, tokenizer: Any = None) -> int:
    """Tokens of a caption with its two ends, or at least more than `max_length`; without a tokenizer a lower bound, the
    pieces that CLIP's tokenizer starts from."""
    seen = caption[: _LETTERS_A_TOKEN * max_length]
    return _ENDS + len(tokenizer.tokenize(seen) if tokenizer else _PIECE.findall(seen))


def describe_cut(captions: list[str], max_length: int, tokenizer: Any = None) -> str:
    """A line on the captions that are longer than `max_length` tokens; an empty one if there are none."""
    cut = sum(num_tokens(caption, max_length, tokenizer) > max_length for caption in captions)
    if not cut:
        return ""
    least = "" if tokenizer else "at least "
    return (
        f"{least}{cut / len(captions):.0%} of {len(captions)} captions read are longer than the {max_length} tokens "
        "of --model_max_length; what is beyond is cut"
    )
