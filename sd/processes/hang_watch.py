"""Hang detection: ends a training process that makes no progress, after dumping the stacks of all its threads."""

import contextlib
import faulthandler
import logging
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sd.processes.progress import report_end

logger = logging.getLogger(__name__)

HANG_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: trying again may help
_MEDIANS = 20  # of the last steps
_TIMED_STEPS = 50
_BACKSTOP_SECONDS = 10
_HEADER = b"rank %6d, process %8d: no step after step %12d\n"
_HEADER_BYTES = len(_HEADER % (0, 0, 0))


class HangError(RuntimeError):
    """No step for too long."""


class HangWatch:
    """Within the context, a step that does not come writes all Python stacks and ends the process.

    A step is late after `timeout` seconds or 20 times the median of the last 50, whichever is longer; 0 turns the
    watch off. The stacks go to output_dir/hang-STEP/rank-RANK.txt; every rank waits for the one that hangs, so every
    rank writes. A collective operation may keep Python's threads from running: then faulthandler, which needs none,
    writes a few seconds later into a file that was opened before, and the next start gives that file its name.
    """

    def __init__(self, output_dir: str | Path, rank: int, timeout: float, step: int = 0):
        self._output_dir, self._rank, self._timeout = Path(output_dir), rank, timeout
        self._step, self._factor = step, 1.0
        self._last = time.monotonic()
        self._seconds: deque[float] = deque(maxlen=_TIMED_STEPS)
        self._early = self._output_dir / f".stacks-rank-{rank}.txt"
        self._file: BinaryIO | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)

    def __enter__(self) -> "HangWatch":
        if self._timeout > 0:
            try:
                self._rename_stale_dump()
                self._file = self._early.open("wb", buffering=0)
            except OSError as error:  # a full disk does not keep a run from starting
                logger.warning("%s cannot be written (%s): a hang may end without stacks", self._early, error.strerror)
            self._last = time.monotonic()
            self._thread.start()
            self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._early.unlink(missing_ok=True)

    def _rename_stale_dump(self) -> None:
        """Give the stacks that an earlier process left the name of the step after which it hung."""
        if not self._early.exists() or self._early.stat().st_size <= _HEADER_BYTES:
            return
        step = int(self._early.read_bytes()[:_HEADER_BYTES].split()[-1])
        path = self._path(step)
        path.parent.mkdir(exist_ok=True)
        self._early.replace(path)
        logger.warning("an earlier process of this rank made no step after step %d; its stacks: %s", step, path)

    def _path(self, step: int) -> Path:
        return self._output_dir / f"hang-{step}" / f"rank-{self._rank}.txt"

    def beat(self, step: int) -> None:
        """A step was made."""
        now = time.monotonic()
        self._seconds.append(now - self._last)
        self._step, self._last = step, now
        self._arm()

    @contextlib.contextmanager
    def allowing(self, factor: float) -> Iterator[None]:
        """Within the context something is done that may take so many times as long: saving, drawing, validation."""
        self._factor, self._last = factor, time.monotonic()
        try:
            self._arm()
            yield
        finally:
            self._factor, self._last = 1.0, time.monotonic()

    def limit(self) -> float:
        """Seconds without a step that count as a hang now."""
        median = statistics.median(self._seconds) if self._seconds else 0.0
        return self._factor * max(self._timeout, _MEDIANS * median)

    def _arm(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk
                os.pwrite(self._file.fileno(), _HEADER % (self._rank, os.getpid(), self._step), 0)
            self._file.seek(_HEADER_BYTES)
            faulthandler.dump_traceback_later(self.limit() + _BACKSTOP_SECONDS, exit=True, file=self._file)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout / 4)):
            waited = time.monotonic() - self._last
            if waited > self.limit():
                self._end(waited)

    def _end(self, waited: float) -> None:
        path = self._path(self._step)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(_HEADER % (self._rank, os.getpid(), self._step))
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            self._early.unlink(missing_ok=True)
        except OSError as error:
            logger.error("the stacks cannot be written to %s: %s", path, error.strerror)
        message = f"no step for {waited:.0f} s after step {self._step}; see {path}"
        logger.error("%s; this process ends, and the same command resumes from the last checkpoint", message)
        report_end(HangError(message), "no step for too long")
        sys.stderr.flush()
        os._exit(HANG_EXIT_CODE)
