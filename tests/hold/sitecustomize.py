"""Holds a process under test at a moment that its test chose: at so many steps, pictures, commits or published parts.

Python imports this module at the start of each process whose PYTHONPATH names this folder; see tests/holding.py.
"""

import functools
import json
import os
import time
from pathlib import Path

_LONGEST_SECONDS = 600  # a test that died lets nobody wait for ever


def _hold(owner, name, counts, count, folder, after=True):
    """Have owner.name wait after, or before, the `count`-th of its calls for whose first argument counts(...) holds."""
    own, calls = getattr(owner, name), [0]

    @functools.wraps(own)
    def holding(first, *arguments):
        calls[0] += counts(first)
        due = counts(first) and calls[0] == count
        if due and not after:
            _wait(folder, str(os.getpid()), _released)
        result = own(first, *arguments)
        if due and after:
            _wait(folder, str(os.getpid()), _released)
        return result

    setattr(owner, name, holding)


def _gate(owner, name, folder):
    """Have every process wait after owner.name(step) until steps beyond it are allowed."""
    own = getattr(owner, name)

    @functools.wraps(own)
    def holding(self, step):
        own(self, step)
        note = f"step-{step}-rank-{os.environ.get('PADDLE_TRAINER_ID', '0')}-{os.getpid()}"
        _wait(folder, note, lambda folder: int((folder / "allowed").read_text()) > step)

    setattr(owner, name, holding)


def _released(folder):
    return (folder / "released").exists()


def _wait(folder, note, may_go):
    (folder / note).touch()
    end = time.monotonic() + _LONGEST_SECONDS
    while not may_go(folder):
        if time.monotonic() > end:
            os._exit(1)
        time.sleep(0.01)


def _begin(what, count, folder, environ):
    folder = Path(folder)
    if any(os.environ.get(name) != value for name, value in environ.items()) or _released(folder):
        return
    if what in ("steps", "gate"):
        from sd.processes.hang_watch import HangWatch

        if what == "gate":
            _gate(HangWatch, "beat", folder)
        else:
            _hold(HangWatch, "beat", lambda watch: True, count, folder)
    elif what == "commits":
        from sd.runs.checkpoint import CheckpointWriter

        _hold(CheckpointWriter, "commit", lambda writer: True, count, folder, after=False)
    elif what == "pictures":
        from sd.sampling import files

        _hold(files, "write_png", lambda path: True, count, folder)
    else:
        from sd.data.parts.storage import AtomicFile

        _hold(AtomicFile, "_publish", lambda file: file._path.endswith(".gz"), count, folder)


if "SD_TEST_HOLD" in os.environ:
    _begin(**json.loads(os.environ["SD_TEST_HOLD"]))
