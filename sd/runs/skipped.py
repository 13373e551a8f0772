"""skipped.json, in output_dir and in each checkpoint: samples that a run skips since a rollback."""

import dataclasses
import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sd.data.parts import storage
from sd.data.streaming.skipped import Gaps
from sd.errors import InputError, RunError
from sd.runs.checkpoint import DAMAGED, find_problem, list_checkpoints, read_json

logger = logging.getLogger(__name__)

SKIPPED = "skipped.json"


@dataclass(frozen=True)
class SkippedSamples:
    """Numbers [first_sample, stop_sample) of the order. step: after which the run rolled back; back_to: the step of
    the checkpoint; reason: why, in a line."""

    first_sample: int
    stop_sample: int
    step: int | None = None
    back_to: int | None = None
    reason: str = ""

    def plain(self) -> dict:
        """As JSON."""
        return dataclasses.asdict(self)


def gaps_of(entries: Iterable[SkippedSamples]) -> Gaps:
    """The order without what the entries name."""
    return Gaps((entry.first_sample, entry.stop_sample) for entry in entries)


def read_skipped(folder: str | Path | None) -> list[SkippedSamples]:
    """The entries of a folder's skipped.json, none if there is no such file. Raises InputError if it is unreadable."""
    path = Path(folder or "") / SKIPPED
    if folder is None or not path.exists():
        return []
    try:
        entries = [SkippedSamples(**entry) for entry in json.loads(path.read_text())]
        gaps_of(entries)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: {error}; expected a list of objects with first_sample and stop_sample, restore it from the "
            "newest checkpoint or move it away"
        ) from None
    return entries


def skipped_samples(output_dir: str | Path, checkpoint: str | Path | None) -> list[SkippedSamples]:
    """What a start leaves out: the entries of the checkpoint and those of output_dir that it lacks."""
    entries = read_skipped(checkpoint)
    return entries + [entry for entry in read_skipped(output_dir) if entry not in entries]


def write_skipped(output_dir: str | Path, entries: Iterable[SkippedSamples]) -> None:
    """Keep the entries in output_dir. Raises RunError where that fails."""
    path = Path(output_dir) / SKIPPED
    try:
        storage.write_atomic(path, (json.dumps([entry.plain() for entry in entries], indent=2) + "\n").encode())
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}; free some space, the same command resumes"
        ) from None


def abandoned_by(checkpoint: str | Path, entries: Iterable[SkippedSamples]) -> SkippedSamples | None:
    """The first of the entries whose samples the checkpoint was trained on, or None."""
    own = gaps_of(read_skipped(checkpoint))
    stop = own.number(read_json(checkpoint, "data_state.json")["samples_seen"] - 1) + 1
    for entry in entries:
        if entry.first_sample < stop and not own.contains(entry.first_sample, min(stop, entry.stop_sample)):
            return entry
    return None


def mark_abandoned(output_dir: str | Path) -> None:
    """Mark the checkpoints that were trained on samples which the run leaves out by now, so that none resumes from
    them. A start does it under the lock: a kill may have come between the entry and the marks."""
    entries = read_skipped(output_dir)
    for folder in list_checkpoints(output_dir) if entries else []:
        if find_problem(folder, thorough=False) is None and (entry := abandoned_by(folder, entries)):
            reason = f"rolled back: samples from {entry.first_sample} on, of its training, are left out by {SKIPPED}"
            with suppress(OSError):
                (folder / DAMAGED).write_text(reason + "\n")
            logger.warning("%s: %s", folder.name, reason)
