"""Caption truncation: how many captions exceed the text encoder's tokens, estimated from a sample of rows."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

import numpy as np

from sd.data.parts.record import Record, RowError
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.local_copies import LocalCopies
from sd.data.streaming.stream import RowReader
from sd.processes.watchdog import Watchdog

SAMPLED = 200
_ENDS = 2  # tokens that mark begin and end of the text
_CHARS_PER_TOKEN = 40  # characters read for each token: a caption may have a hundred thousand
# CLIP splits a text into these pieces before it makes one or more tokens of each.
_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|[^\s\w]+|_+")


def sample_captions(catalog: Catalog, limit: int = SAMPLED) -> list[str]:
    """First captions of the rows that `sample_records` reads."""
    return [record.captions[0] for record in sample_records(catalog, limit)]


def sample_records(catalog: Catalog, limit: int = SAMPLED) -> list[Record]:
    """Up to `limit` usable rows spread over a catalog's parts, without their images.

    Parts that would have to be copied here first are left out, and so are bad rows.
    """
    records = []
    with closing(Watchdog()) as watchdog, closing(RowReader(catalog, LocalCopies(), watchdog)) as reader:
        for row in np.unique(np.linspace(0, catalog.num_usable - 1, min(limit, catalog.num_usable)).astype(int)):
            part, ordinal = catalog.position(row)
            if part in catalog.copied:
                continue
            with suppress(RowError):
                _, record = reader.read(part, ordinal)
                records.append(Record(record.captions, b"", record.sources))
    return records


def by_source(records: Iterable[Record]) -> dict[str, list[str]]:
    """Source -> all its captions in the records, in the order in which the sources come."""
    captions: dict[str, list[str]] = {}
    for record in records:
        for source, caption in zip(record.sources, record.captions, strict=True):
            captions.setdefault(source, []).append(caption)
    return captions


def num_tokens(caption: str, max_length: int, tokenizer: Any = None) -> int:
    """Tokens of a caption with its two ends, or at least more than `max_length`; without a tokenizer a lower bound, the
    pieces that CLIP's tokenizer starts from."""
    head = caption[: _CHARS_PER_TOKEN * max_length]
    return _ENDS + len(tokenizer.tokenize(head) if tokenizer else _PIECE.findall(head))


def num_truncated_words(caption: str, max_length: int, tokenizer: Any = None) -> int:
    """Words of a caption, split at blanks, of which at least one token is truncated; a lower bound
    without a tokenizer."""
    words = caption.split()
    if len(caption) <= max_length - _ENDS:  # no token has less than a letter
        return 0
    left = max_length - _ENDS
    for number, word in enumerate(words):
        left -= num_tokens(word, max_length, tokenizer) - _ENDS
        if left < 0:
            return len(words) - number
    return 0


def describe_truncation(captions: Mapping[str, Sequence[str]], max_length: int, tokenizer: Any = None) -> list[str]:
    """A line for each source of which captions are longer than `max_length` tokens; with more than one it is named."""
    bound, lines = "" if tokenizer else "at least ", []
    for source, texts in captions.items():
        cut = [text for text in texts if num_tokens(text, max_length, tokenizer) > max_length]
        if not cut:
            continue
        lost = sum(num_truncated_words(text, max_length, tokenizer) for text in cut)
        share = lost / max(1, sum(len(text.split()) for text in texts))
        named = f"{source}: " if len(captions) > 1 else ""
        lines.append(
            f"{named}{bound}{len(cut) / len(texts):.0%} of {len(texts)} captions read are longer than the {max_length} "
            f"tokens of --model_max_length and are truncated, {lost} words ({share:.1%})"
        )
    return lines
