"""Watchdog of a data worker: logs the current step when it stalls, and exits the worker after a timeout."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

REPORT_SECONDS = 30.0  # a row takes milliseconds, a part from a slow store some seconds
GIVE_UP_SECONDS = 900.0
STALLED_EXIT_CODE = 71


class Watchdog:
    """Watches steps announced with `doing`. One thread, started in the process that first announces something.

    may_exit: end this process after GIVE_UP_SECONDS, so that the DataLoader notices; only right in a worker.
    """

    def __init__(
        self,
        *,
        may_exit: bool = False,
        report_seconds: float = REPORT_SECONDS,
        give_up_seconds: float = GIVE_UP_SECONDS,
    ):
        self._may_exit, self._report, self._give_up = may_exit, report_seconds, give_up_seconds
        self._step, self._since, self._reported = "", 0.0, 0.0
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    @contextmanager
    def doing(self, step: str) -> Iterator[None]:
        """Announce a step, for example `reading s3://bucket/part-000001.gz`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="data watchdog", daemon=True)
            self._thread.start()
        outer, self._step, self._since = self._step, step, time.monotonic()
        try:
            yield
        finally:
            self._step, self._since = outer, time.monotonic()

    def close(self) -> None:
        self._closed.set()

    def _watch(self):
        while not self._closed.wait(self._report / 4):
            step, since = self._step, self._since
            waited = time.monotonic() - since
            if not step or waited < self._report or time.monotonic() - max(since, self._reported) < self._report:
                continue
            self._reported = time.monotonic()
            logger.warning("data worker %d has been %s for %.0f s", os.getpid(), step, waited)
            if self._may_exit and waited > self._give_up:
                logger.error("data worker %d gives up %s after %.0f s", os.getpid(), step, waited)
                os._exit(STALLED_EXIT_CODE)
