"""Progress file from a training process to its supervisor: the last step, and how the process ended.

The environment variable VARIABLE names the file; without it nothing is written.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sd.errors import InputError

VARIABLE = "SD_PROGRESS_FILE"
RESTARTED = "SD_RESTARTED"  # set where an earlier attempt of the same command has made steps


@dataclass(frozen=True)
class Progress:
    """step: the last optimizer step, None before the first; stopped: ended on request; error: (kind, first line)."""

    step: int | None = None
    stopped: bool = False
    error: tuple[str, str] | None = None


def report_step(step: int, environ: Mapping[str, str] = os.environ) -> None:
    """Note the number of the last optimizer step. Called by rank 0 after each step: one small write."""
    if path := environ.get(VARIABLE):
        with contextlib.suppress(OSError):  # a full disk costs the note, not the run
            file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(file, b"%20d" % step, 0)
            finally:
                os.close(file)


def report_end(error: BaseException | None, message: str = "", environ: Mapping[str, str] = os.environ) -> None:
    """Note how the process ends: with an error (of all ranks the first one counts), or stopped on request (None)."""
    if path := environ.get(VARIABLE):
        kind = "InputError" if isinstance(error, InputError) else type(error).__name__  # of any kind of wrong input
        note = {"stopped": True} if error is None else {"error": [kind, message]}
        with contextlib.suppress(OSError), Path(path + ".end").open("x") as file:
            json.dump(note, file)


def read_progress(path: Path) -> Progress:
    """What the process has noted so far. A note cut by a kill counts as none."""
    step = path.read_text() if path.exists() else ""
    end = Path(f"{path}.end")
    try:
        note = json.loads(end.read_text()) if end.exists() else {}
    except ValueError:
        note = {}
    error = tuple(note["error"]) if "error" in note else None
    return Progress(int(step) if step.strip() else None, note.get("stopped", False), error)
