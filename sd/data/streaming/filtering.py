"""What the filters of a catalog exclude: counts by clause, columns that parts lack, log lines and errors."""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sd.data.filters.rows import SIZES, RowFilter, RowRule, add_types
from sd.data.filters.tree import names_in
from sd.data.parts import storage
from sd.errors import InputError

if TYPE_CHECKING:
    from sd.data.streaming.catalog import Catalog, PartSummary

logger = logging.getLogger(__name__)


@dataclass
class Filtering:
    """Of `num_large` rows whose picture is large enough the filters leave `num_left`.

    removed: (filter, clause's number) -> large rows that the clause removes, counted by itself. emptied: names of the
    sources of which nothing is left. types: name -> type of the columns of all parts that were judged.
    """

    size: str
    num_large: int = 0
    num_left: int = 0
    removed: Counter = field(default_factory=Counter)
    emptied: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    def clauses(self) -> list[str]:
        """`aesthetic > 5 removes 900` for each clause, with the label of its filter where there are several."""
        several = len({one for one, _ in self.removed}) > 1
        return [
            f"{one.label + ': ' if several else ''}{one.clauses[number]} removes {count}"
            for (one, number), count in self.removed.items()
        ]

    def lines(self) -> list[str]:
        """Log lines about the filters; none without filters."""
        if not self.removed:
            return []
        share = self.num_left / max(1, self.num_large)
        counts = f"{self.num_left} of the {self.num_large} rows {self.size} pass the filter ({share:.1%})"
        return [f"{counts}; each by itself: {', '.join(self.clauses())}"]

    def check(self) -> None:
        """Raise InputError where a filter leaves nothing of the whole, or of a source."""
        if not self.removed or not self.num_large:
            return
        counts = f"of {self.num_large} rows {self.size} {', '.join(self.clauses())}"
        if not self.num_left:
            raise InputError(f"no row passes the filter: {counts}; use a less restrictive one")
        for name, text in self.emptied.items():
            raise InputError(f"{name}: no row passes {text}; take it out of the list, or use a less restrictive filter")


def total_filtering(catalog: "Catalog", parts: Sequence["PartSummary"], log: bool = True) -> Filtering:
    """The Filtering of a Catalog's PartSummaries, all of them.

    Raises FilterError for a column that no part has; log: warn of one that some parts lack.
    """
    large = sum(part.large for part in parts)
    size = f"of {catalog.min_side} px or more" if catalog.bucketing is None else "as large as a bucket"
    filtering = Filtering(size, large, sum(part.usable for part in parts))
    parts_of = defaultdict(list)  # filter -> the parts that it judged
    for number, rule in enumerate(catalog.rules):
        own = parts[catalog.first_part[number] : catalog.first_part[number + 1]]
        if rule.filters and not any(part.usable for part in own) and any(part.large for part in own):
            filtering.emptied[catalog.names[number]] = " and ".join(
                _joinable(one, rule.filters) for one in rule.filters
            )
        _count_removed(filtering.removed, rule, own)
        numbers = range(catalog.first_part[number], catalog.first_part[number + 1])
        for one in rule.filters:
            parts_of[one] += [(catalog.paths[at], parts[at]) for at in numbers if parts[at].digest]
    for one, selected in parts_of.items():
        for _, part in selected:
            add_types(filtering.types, part.types)
        _check_names(one, selected, catalog.manifest is not None, log)
    return filtering


def _count_removed(removed, rule: RowRule, parts):
    at = 0
    for one in rule.filters:
        for number in range(len(one.clauses)):
            removed[one, number] += sum(part.removed[at] for part in parts if part.removed)
            at += 1


def _check_names(one: RowFilter, selected: Sequence[tuple[str, "PartSummary"]], is_cache: bool, log: bool) -> None:
    types: dict[str, str] = {}
    for _, part in selected:
        add_types(types, part.types)
    for name in names_in(one.tree):
        if (name.name in SIZES and not is_cache) or not selected:
            continue
        parts_without = [(path, part.num_rows) for path, part in selected if name.name not in part.types]
        if len(parts_without) == len(selected):
            raise one.error(name.at, f"no part has a column {name.name!r}", types)
        if parts_without and log:
            logger.warning(
                "%s: %d of %d parts, with %d rows, have no column %r, so that it is missing there; the first is %s",
                one.label,
                len(parts_without),
                len(selected),
                sum(rows for _, rows in parts_without),
                name.name,
                storage.base_name(parts_without[0][0]),
            )


def describe_filters(rules: Sequence[RowRule], names: Sequence[str]) -> str | None:
    """The filters of all sources in normal form, as a run's settings keep them; None where there is none."""
    if len({rule.filters for rule in rules}) == 1:
        texts = [" and ".join(_joinable(one, rules[0].filters) for one in rules[0].filters)]
    else:
        texts = [
            f"{storage.base_name(name)} where " + " and ".join(_joinable(one, rule.filters) for one in rule.filters)
            for name, rule in zip(names, rules, strict=True)
            if rule.filters
        ]
    return "; ".join(filter(None, texts)) or None


def _joinable(one, filters):
    return f"({one})" if len(filters) > 1 and " or " in str(one) else str(one)
