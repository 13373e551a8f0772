"""Holds a process under test at a moment that its test chose: after so many steps, or so many published parts.

Python imports this module at the start of each process whose PYTHONPATH names this folder; see tests/holding.py.
"""

import functools
import json
import os
import time
from pathlib import Path

_LONGEST_SECONDS = 600  # a test that died lets nobody wait for ever


def _hold_after(owner, name, counts, count, folder):
    """Have owner.name wait after the `count`-th of its calls for whose object counts(object) holds."""
    own, calls = getattr(owner, name), [0]

    @functools.wraps(own)
    def holding(self, *arguments):
        result = own(self, *arguments)
        calls[0] += counts(self)
        if calls[0] == count:
            _wait(folder / str(os.getpid()), folder / "released")
        return result

    setattr(owner, name, holding)


def _wait(held, released):
    held.touch()
    end = time.monotonic() + _LONGEST_SECONDS
    while not released.exists():
        if time.monotonic() > end:
            os._exit(1)
        time.sleep(0.01)


def _hold(what, count, folder, environ):
    folder = Path(folder)
    if any(os.environ.get(name) != value for name, value in environ.items()) or (folder / "released").exists():
        return
    if what == "steps":
        from sd.processes.hang_watch import HangWatch

        _hold_after(HangWatch, "beat", lambda watch: True, count, folder)
    else:
        from sd.data.parts.storage import NewFile

        _hold_after(NewFile, "_publish", lambda file: file._path.endswith(".gz"), count, folder)


if "SD_TEST_HOLD" in os.environ:
    _hold(**json.loads(os.environ["SD_TEST_HOLD"]))
