"""The ways in which a script ends early: InputError, RunError and stopping, with exit codes and one-line messages."""

import contextlib
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_LAUNCHER_SECONDS = 15  # Paddle's launcher looks at its processes every few seconds


class InputError(ValueError):
    """Wrong arguments or input. The message names the value, the place and the remedy; exit code 2."""


class ArgumentError(InputError):
    """A wrong value of an argument: `name=value; what is expected`. Command lines and pages name it in their own way.

    rest: what follows name and value, with its `; ` or blank.
    """

    def __init__(self, name: str, value: object, rest: str) -> None:
        super().__init__(name, value, rest)  # what a process that hands it over puts it together from
        self.name, self.value, self.rest = name, value, rest

    def __str__(self) -> str:
        return f"{self.name}={self.value!r}{self.rest}"

    def named(self, label: str) -> str:
        """The same under another name: `--seed -1; expected at least 0`."""
        shown = "''" if self.value == "" else self.value
        return f"{label} {shown}{self.rest}"


class RunError(RuntimeError):
    """A failure on the way. The message names what failed and what to do; exit code 1."""


class StopError(RunError):
    """The run was stopped by a signal, as asked; exit code 128 and its number, and no `error:` before the line.

    when_stopped: what is saved, and how to resume.
    """

    def __init__(self, number: int, when_stopped: str) -> None:
        super().__init__(number, when_stopped)
        self.number, self.when_stopped = number, when_stopped

    def __str__(self) -> str:
        return f"stopped by {signal_name(self.number)}; {self.when_stopped}"


def signal_name(number: int) -> str:
    """`Ctrl-C`, `SIGTERM`: what a person calls it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, cut to about 200 characters; its type's name if the text is empty."""
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[0])


def last_line(error: BaseException) -> str:
    """As `first_line`, the last line of the text, where Paddle puts the reason, after its stack."""
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[-1])


def one_line(text: str, limit: int = 200) -> str:
    """Text of at most `limit` characters unchanged; a longer one is cut after a word and ends in an ellipsis."""
    if len(text) <= limit:
        return text
    cut = text[: limit + 1]
    return cut[: cut.rfind(" ") if " " in cut[limit // 2 :] else limit].rstrip() + " ..."


def run_script(main: Callable[[], object], when_stopped: str = "the same command starts again") -> None:
    """Call `main()` and leave the process: exit code 0, 2 after an `InputError`, 1 after a `RunError`, 128 and the
    signal's number after a `StopError`.

    Ctrl-C and SIGTERM end it with exit codes 130 and 143 and one line: `stopped by Ctrl-C; ` and `when_stopped`, which
    says what is saved and how to resume. Where the reader of the output is gone (`--help | head -1`), it ends without a
    message.
    """
    code = 0
    interrupt = _Interrupt(when_stopped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of letters that the console's encoding lacks
    try:
        try:
            with interrupt:
                main()
        except InputError as error:
            code = _report(error, 2)
        except StopError as stop:
            print(stop, file=sys.stderr, flush=True)
            code = 128 + stop.number
        except RunError as error:
            code = _report(error, 1)
        except BaseException as error:  # libraries make errors of their own of a KeyboardInterrupt
            if not (interrupt.received or isinstance(error, KeyboardInterrupt)):
                raise
            code = interrupt.report()
        finally:
            if sys.stdout:  # None if it was closed before the start
                sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        code = code or 128 + signal.SIGPIPE
    if code:
        sys.exit(code)


class _Interrupt:
    """Within the context SIGINT and SIGTERM raise KeyboardInterrupt, and end the process at once while modules are
    imported: Paddle's import would print errors of its own."""

    def __init__(self, when_stopped: str) -> None:
        self.received: signal.Signals | None = None
        self._when_stopped, self._process = when_stopped, os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        # A launcher may have set one to be ignored, and threads may not set any.
        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) is default and threading.current_thread() is threading.main_thread():
                self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, of which its parent speaks
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)
            return
        self.received = signal.Signals(number)
        while frame:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(self.report())
            frame = frame.f_back
        raise KeyboardInterrupt(number)

    def report(self) -> int:
        """Print the line; returns the exit code."""
        number = self.received or signal.SIGINT  # a KeyboardInterrupt of another's making
        print(StopError(number, self._when_stopped), file=sys.stderr, flush=True)
        return 128 + number


def _reader_closed():
    """Whether standard output is a pipe whose reader has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _report(error: Exception, code: int) -> int:
    print(f"error: {as_typed(error)}", file=sys.stderr, flush=True)
    return code


def as_typed(error: Exception) -> str:
    """What an error says, with an argument named as it is typed on a command line."""
    return error.named(f"--{error.name}") if isinstance(error, ArgumentError) else str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of Python or of Paddle, is an out-of-memory error (OOM) of the host or the device."""
    text = str(error)
    return isinstance(error, MemoryError) or "ResourceExhausted" in text or "out of memory" in text.lower()


@contextlib.contextmanager
def explain_paddle_errors() -> Iterator[None]:
    """Turn Paddle's exceptions in training into one-line RunErrors: lost data workers, lost ranks, out of memory."""
    try:
        yield
    except (SystemError, RuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, RunError):
            raise
        if "DataLoader" in text:
            raise RunError(
                "a data worker was killed, most often because it ran out of memory; fewer --dataloader_num_workers or "
                "a smaller --buffer_size need less, and the same command resumes from the last checkpoint"
            ) from error
        if "gloo/transport" in text or "NCCL" in text:
            time.sleep(_LAUNCHER_SECONDS)  # the launcher finds the rank that ended, names it and ends this one
            raise RunError(
                f"the connection to another rank broke ({first_line(error)}); the log of the rank that ended says why, "
                "and the same command resumes from the last checkpoint"
            ) from error
        if is_out_of_memory(error):
            raise RunError(
                "out of memory; a smaller --per_device_train_batch_size with more --gradient_accumulation_steps, or "
                "--recompute, needs less, and the same command resumes from the last checkpoint"
            ) from error
        raise
