"""The outcome counts of all input rows: report.json, progress bar, warnings and errors."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from sd.data.packing.outcomes import BAD, FILTERED
from sd.data.packing.part import PartResult
from sd.data.parts import storage
from sd.errors import InputError, RunError
from sd.logs import bar_seconds

_BY_FILTER = "data_filter"
_MIN_ROWS_TO_WARN = 1000
_SAME_IN_ALL = ("outcome", "reason", "detail")  # the other keys of a rejected row say where it is


class Tally:
    """Outcomes of all rows so far, by reason. `done` is the word for a good row's."""

    def __init__(self, done: str = "packed"):
        self._done = done
        self.num_packed, self.num_bytes = 0, 0
        self.all_parts, self.parts = [], []  # `parts` have rows
        self.listed = []  # `parts` as the file lists name them, each as often as it is to be repeated
        self.rejected = Counter()  # (outcome, reason) -> rows
        self.captions = Counter()  # rows that have a caption of a key, where there are several keys
        self.columns = {}  # name -> {types: of the parts, missing, unfit}
        self._first, self._warned = {}, False

    def add(self, result: PartResult) -> None:
        self.all_parts.append(result.path)
        if result.num_packed:
            self.parts.append(result.path)
            self.listed += [result.path] * getattr(result, "repeat", 1)
        self.captions.update(getattr(result, "captions", {}))
        if result.num_packed:
            for name, column in result.columns.items():
                self._add_column(name, column, result.num_packed)
        self.num_packed += result.num_packed
        self.num_bytes += result.num_bytes
        if result.num_filtered:
            self.rejected[FILTERED, _BY_FILTER] += result.num_filtered
            self._first.setdefault((FILTERED, _BY_FILTER), {"part": result.path, "detail": ""})
        for row in result.rejected:
            key = row["outcome"], row["reason"]
            self.rejected[key] += 1
            self._first.setdefault(key, row)

    def _add_column(self, name, part_column, num_rows):
        column = self.columns.setdefault(name, {"types": [], "missing": 0, "unfit": 0})
        column["missing"] += part_column["missing"]
        column["unfit"] += part_column["unfit"]
        if part_column["type"] not in column["types"] and part_column["missing"] < num_rows:
            column["types"] = sorted([*column["types"], part_column["type"]])

    def empty_columns(self) -> Iterator[str]:
        """A line on each column of which no row has a value, once there are enough rows to tell."""
        if self._warned or self.num_packed < _MIN_ROWS_TO_WARN:
            return
        self._warned = True
        for name, column in self.columns.items():
            if column["missing"] == self.num_packed:
                yield f"none of {self.num_packed} rows has a value for the column {name!r}; is its key right?"

    @property
    def num_rows(self) -> int:
        return self.num_packed + self.rejected.total()

    @property
    def num_bad(self) -> int:
        return sum(count for (outcome, _), count in self.rejected.items() if outcome == BAD)

    def report(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The content of report.json: the outcomes add up to the rows."""
        outcomes = {self._done: self.num_packed}
        for (outcome, reason), count in sorted(self.rejected.items()):
            outcomes[f"{outcome}: {reason}"] = count
        return {
            "rows": self.num_rows,
            "outcomes": outcomes,
            "parts": len(self.parts),
            "bytes": self.num_bytes,
            "settings": settings,
            **({"columns": self.columns} if self.columns else {}),
        }

    def check(self, source: str, options: Any) -> None:
        """Raise InputError if nothing was good, RunError if more than `max_bad_fraction` was bad. source: its name."""
        rejected = storage.join(options.output_path, "rejected.jsonl")
        if self.num_packed == 0:
            reason = self._most_frequent({outcome for outcome, _ in self.rejected})
            raise InputError(f"{source}: none of {self.num_rows} rows was {self._done}; {reason}; see {rejected}")
        if self.num_bad > options.max_bad_fraction * self.num_rows:
            raise RunError(
                f"{source}: {self.num_bad} of {self.num_rows} rows are bad, more than --max_bad_fraction "
                f"{options.max_bad_fraction}; {self._most_frequent((BAD,))}; see {rejected}, then mend the input or "
                "raise the limit"
            )

    def _most_frequent(self, outcomes):
        counts = {key: count for key, count in self.rejected.items() if key[0] in outcomes}
        key = max(counts, key=lambda key: counts[key])
        first = self._first[key]
        position = " ".join(f"{name} {value}" for name, value in first.items() if name not in _SAME_IN_ALL)
        detail = f": {first['detail']}" if first["detail"] else ""
        return f"most often: {key[1]} ({counts[key]} rows, first {position}{detail})"


class Progress:
    """A bar that counts images; how many there will be is estimated from the share of the input that is done."""

    def __init__(self):
        self._bar = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._bar is not None:
            if error[0] is None:  # how many there are is known now: texts beside images were counted as input too
                self._bar.total = self._bar.n
            self._bar.close()

    def update(self, result: PartResult) -> None:
        """Take in the rows of a part. The bar appears with the first, which says how long the input may be."""
        rows = result.num_packed + len(result.rejected)
        before = self._bar.n if self._bar else 0
        total = round((before + rows) / result.done_fraction)
        if self._bar is None:
            self._bar = tqdm(desc="packing", unit=" images", mininterval=bar_seconds(), total=total, initial=rows)
        else:
            self._bar.total = total
            self._bar.update(rows)
