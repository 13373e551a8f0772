"""The two ways in which a script ends badly, each with one line for the person at the terminal."""

import contextlib
import os
import select
import signal
import sys


class InputError(ValueError):
    """Wrong arguments or input. The message names the value, the place and the remedy; exit code 2."""


class RunError(RuntimeError):
    """A failure on the way. The message names what failed and what to do; exit code 1."""


def first_line(error: BaseException) -> str:
    """What an exception says in one line of at most 200 letters: the first of its text, else its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def run_script(main):
    """Call `main()` and leave the process: exit code 0, 2 after an `InputError`, 1 after a `RunError`.

    Where nobody reads the output any more (`--help | head -1`), it ends without a word, as other programs do.
    """
    code = 0
    try:
        try:
            main()
        except InputError as error:
            code = _report(error, 2)
        except RunError as error:
            code = _report(error, 1)
        finally:
            if sys.stdout:  # None if it was closed before the start
                sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        code = code or 128 + signal.SIGPIPE
    if code:
        sys.exit(code)


def _nobody_reads():
    """Whether standard output is a pipe whose reader has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _report(error, code):
    print(f"error: {error}", file=sys.stderr, flush=True)
    return code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of Python or of Paddle, says that the memory of the host or the device is full."""
    text = str(error)
    return isinstance(error, MemoryError) or "ResourceExhausted" in text or "out of memory" in text.lower()


@contextlib.contextmanager
def training_told_plainly():
    """Make one clear line of what Paddle raises, wherever the trainer stands, for lost data workers and full memory."""
    try:
        yield
    except (SystemError, RuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, RunError):
            raise
        if "DataLoader" in text:
            raise RunError(
                "a data worker was killed, most often because memory ran out; fewer --dataloader_num_workers or a "
                "smaller --buffer_size need less, and the same command goes on from the last checkpoint"
            ) from error
        if is_out_of_memory(error):
            raise RunError(
                "memory ran out; a smaller --per_device_train_batch_size with more --gradient_accumulation_steps, or "
                "--recompute, needs less, and the same command goes on from the last checkpoint"
            ) from error
        raise
