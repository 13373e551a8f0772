"""Commands that resume where they were stopped: one line for a signal, one for storage that fails."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sd.data.parts import storage
from sd.errors import RunError
from sd.processes.pool import stopped_by_signals


@contextmanager
def resumable(subject: str, finished: str = "the finished parts") -> Iterator[Callable[[], None]]:
    """`stopped_by_signals`, but a failure of disk or store leaves it as a RunError.

    subject: what to name where the failure names no file; finished: what the same command resumes from.
    """
    try:
        with stopped_by_signals(f"the same command resumes from {finished}") as raise_if_stopped:
            yield raise_if_stopped
    except storage.failures() as error:
        location = getattr(error, "filename", None) or subject
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{location}: {reason}; mend that, and the same command resumes from {finished}") from error
