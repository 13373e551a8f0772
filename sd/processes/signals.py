"""Graceful stop by Ctrl-C or SIGTERM: a flag that the training loop checks after each step."""

import os
import signal
import stat
from contextlib import suppress
from pathlib import Path

REPORTED = "SD_LAUNCH_REPORTED"  # names a file that is there once a rank has written to its launcher's terminal


class StopSignals:
    """Within the context SIGINT and SIGTERM only set `received`; a second SIGINT interrupts at once.

    A second SIGTERM does not: Paddle's launcher sends three of them, 0.2 s apart.
    """

    def __init__(self):
        self.received = None
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)


def report_early_stop() -> None:
    """In a rank of paddle.distributed.launch: SIGTERM ends this process at once, as by default; rank 0 reports it.

    Paddle's launcher answers Ctrl-C with SIGTERM to its ranks, and prints "Exit with signal 2" alone. The training loop
    has a handler of its own.
    """
    if "PADDLE_TRAINER_ID" not in os.environ:
        return
    process, writes = os.getpid(), os.environ["PADDLE_TRAINER_ID"] == "0"

    def end(number, _frame):
        if writes and os.getpid() == process:  # a data worker of it has the handler too
            write_to_launcher(
                "stopped before the first step; the same command starts again, or resumes from the last checkpoint"
            )
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def write_to_launcher(text: str) -> None:
    """Write a line to the terminal or pipe of paddle.distributed.launch, if that started this process: it shows no more
    of rank 0's log once it was stopped itself. Linux; else nothing."""
    if "PADDLE_TRAINER_ID" not in os.environ:
        return
    with suppress(OSError):
        descriptor = os.open(f"/proc/{os.getppid()}/fd/2", os.O_WRONLY | os.O_NOCTTY)
        try:
            kind = os.fstat(descriptor).st_mode
            if stat.S_ISCHR(kind) or stat.S_ISFIFO(kind):  # in a file it would be written over
                os.write(descriptor, f"{text}\n".encode())
                if note := os.environ.get(REPORTED):
                    Path(note).touch()
        finally:
            os.close(descriptor)
