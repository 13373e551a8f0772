"""A bounded process pool with results in order and no orphans; and the signal handling of a run."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from sd.errors import RunError, StopError

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` (its process id) ends, however it ends. Linux; else nothing."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def die_with_launcher() -> None:
    """In a rank of paddle.distributed.launch: a launcher that is killed leaves no orphan."""
    if "PADDLE_TRAINER_ID" in os.environ:
        die_with_parent(os.getppid())


def _start_worker(parent, environments, prepare):
    die_with_parent(parent)
    if environments:
        number = next(iter(multiprocessing.current_process()._identity), 1)
        os.environ.update(environments[(number - 1) % len(environments)])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if prepare:
        prepare()


def run_local(
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    num_workers: int,
    environments: Sequence[Mapping[str, str]] = (),
    prepare: Callable[[], None] | None = None,
) -> Generator[Any, None, None]:
    """Yield `function(task)` for each task, in order, at most 2 * num_workers of them in hand.

    environments: dicts of environment variables, dealt out to the workers in turn before they import the function.
    prepare: what each worker calls after that, and before it imports the function.

    Raises RunError if a worker is killed. Leaving the loop early kills the workers at once.
    """
    context = multiprocessing.get_context("spawn")  # forking beside threads (progress bar, S3) may deadlock
    earlier = set(multiprocessing.active_children())
    start: dict[str, Any] = {"initializer": _start_worker, "initargs": (os.getpid(), environments, prepare)}
    executor = ProcessPoolExecutor(num_workers, context, **start)
    try:
        pending = deque()
        for task in tasks:
            pending.append(executor.submit(function, task))
            if len(pending) >= 2 * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - earlier:
            process.kill()
        if isinstance(error, BrokenProcessPool | MemoryError):
            raise RunError(
                "a worker was killed, most likely out of memory; use fewer processes (--num_workers, "
                "--processes), the same command resumes"
            ) from error
        raise
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def stopped_by_signals(when_stopped: str) -> Iterator[Callable[[], None]]:
    """SIGTERM ends the run as Ctrl-C does: the workers first, then the line of a StopError. Yields a function to be
    called often.

    Python loses an exception that a signal raises within a destructor; that function raises it again. A second SIGTERM
    raises nothing: Paddle's launcher sends three of them, into the tidying up.
    """
    received = []

    def stop(number, frame):
        again = number == signal.SIGTERM and number in received
        received.append(number)
        if not again:
            raise KeyboardInterrupt

    def raise_if_stopped():
        if received:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield raise_if_stopped
    except KeyboardInterrupt:
        raise StopError(received[0] if received else signal.SIGINT, when_stopped) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
