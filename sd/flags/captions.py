"""How the caption of a sample is drawn: shares of the sources, and lists of tags that are shuffled."""

from dataclasses import dataclass
from math import fsum, isfinite

from sd.errors import ArgumentError

_DIGITS = 12


@dataclass(frozen=True)
class CaptionFlags:
    """shares: (source, share), sorted by name, of sum 1; without them every caption of a row is as likely.

    shuffled: sources whose captions are lists of tags with commas between them: all but the first `keep` are shuffled,
    and left out with probability `tag_dropout`.
    """

    shares: tuple[tuple[str, float], ...] = ()
    shuffled: tuple[str, ...] = ()
    keep: int = 0
    tag_dropout: float = 0.0

    @property
    def named(self) -> tuple[str, ...]:
        """Every source that the flags name."""
        return tuple(dict.fromkeys([*(source for source, _ in self.shares), *self.shuffled]))


def parse_shares(text: str) -> tuple[tuple[str, float], ...]:
    """`long_caption=0.7,caption=0.3` -> pairs sorted by name whose shares add up to 1. Raises ArgumentError."""
    weights: dict[str, float] = {}
    for word in text.split(","):
        source, _, value = word.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = -1.0
        source = source.strip()
        if not source or source in weights or not (isfinite(weight) and weight > 0):
            raise ArgumentError(
                "caption_shares", text, f": {word!r}; expected a share above 0 for each source once, as a=0.7,b=0.3"
            )
        weights[source] = weight
    total = fsum(weights.values())
    # Rounded, so that the shares of a run.json are those that it was made with.
    return tuple((source, round(weights[source] / total, _DIGITS)) for source in sorted(weights))


def parse_sources(name: str, text: str) -> tuple[str, ...]:
    """Names with commas between them. Raises ArgumentError; name: of the flag."""
    sources = tuple(source.strip() for source in text.split(","))
    if not all(sources):
        raise ArgumentError(name, text, "; expected names of captions with commas between them")
    return sources
