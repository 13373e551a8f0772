"""Restarts training after a crash: `python -m sd.processes.supervisor SCRIPT ... --restarts N`.

The command resumes from its newest intact checkpoint by itself. Standard library alone: this process stays small.
"""

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sd.errors import InputError, run_script
from sd.processes.pool import die_with_parent
from sd.processes.progress import RESTARTED, VARIABLE, Progress, read_progress

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0
_COST, _COST_WITHOUT_STEP = 1, 2


@dataclass
class Budget:
    """The restarts left: an attempt without a step costs two, the same error at the same step twice ends the run."""

    left: int
    attempts_without_step: int = 0
    _last: tuple | None = field(default=None, repr=False)

    def reason_to_end(self, progress: Progress, started_at: int | None) -> str | None:
        """Charge an attempt that failed. Returns why there is no further one, or None.

        progress: the progress file of the attempt; started_at: the last step of the previous attempt.
        """
        error = (progress.error, progress.step) if progress.error else None
        if progress.error and progress.error[0] == "InputError" and progress.step is None:
            return "wrong arguments or input do not mend themselves"
        if error and error == self._last:
            return f"the same error came twice at the same step ({progress.step})"
        self._last = error
        made_steps = progress.step is not None and progress.step != started_at
        self.attempts_without_step = 0 if made_steps else self.attempts_without_step + 1
        self.left -= _COST if made_steps else _COST_WITHOUT_STEP
        return "no restart is left" if self.left < 0 else None

    def pause(self, first: float) -> float:
        """Seconds to wait before the next attempt: doubled with each consecutive attempt without a step."""
        return min(first * 2**self.attempts_without_step, LONGEST_PAUSE_SECONDS)


class Supervisor:
    """Runs a command until it succeeds, is stopped on request or has used up its restarts."""

    def __init__(self, command: list[str], restarts: int, first_pause: float = FIRST_PAUSE_SECONDS):
        self._command, self._budget, self._first_pause = command, Budget(restarts), first_pause
        self._stop: int | None = None
        self._stopped = threading.Event()
        self._child: subprocess.Popen | None = None

    def run(self) -> int:
        """The exit code: that of the last attempt."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        last_step = None
        while True:
            start = time.monotonic()
            code, progress = self._run_once(last_step)
            if code == 0 or self._stop or progress.stopped:
                return code
            reason = _describe_end(code, progress, time.monotonic() - start)
            if ending := self._budget.reason_to_end(progress, last_step):
                _print_status(f"{reason}; not started again: {ending}")
                return code
            last_step = progress.step if progress.step is not None else last_step
            pause = self._budget.pause(self._first_pause)
            _print_status(f"{reason}; starting again in {pause:.0f} s, {self._budget.left} restarts left")
            self._stopped.wait(pause)
            if self._stop:
                return 128 + self._stop

    def _run_once(self, last_step: int | None) -> tuple[int, Progress]:
        parent = os.getpid()
        # Once a step was made, the newest checkpoint counts, not the one named or the order to begin anew.
        later = {RESTARTED: "1"} if last_step is not None else {}
        with tempfile.TemporaryDirectory(prefix="sd-progress-") as folder:
            path = Path(folder) / "step"
            self._child = subprocess.Popen(
                self._command,
                env=os.environ | {VARIABLE: str(path)} | later,
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
                preexec_fn=lambda: die_with_parent(parent),
            )
            if self._stop:  # a signal that came before there was a child
                self._child.send_signal(self._stop)
            code = self._child.wait()
            return 128 - code if code < 0 else code, read_progress(path)

    def _forward(self, number: int, _frame: object) -> None:
        self._stop = signal.Signals(number)
        self._stopped.set()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


def _describe_end(code: int, progress: Progress, seconds: float) -> str:
    progress_text = "before the first step" if progress.step is None else f"after step {progress.step}"
    if progress.error:
        cause = ": ".join(filter(None, progress.error))
    elif code > 128 and code - 128 in set(signal.Signals):
        cause = f"killed by {signal.Signals(code - 128).name}"
    else:
        cause = f"exit code {code}"
    return f"training ended {progress_text}, {seconds:.0f} s after its start ({cause})"


def _print_status(text: str) -> None:
    print(f"supervisor: {text}", file=sys.stderr, flush=True)


def split_restarts(words: list[str], default: str | None) -> tuple[list[str], int]:
    """(the command without --restarts, their number). default: of the environment. Raises InputError."""
    command, value = [], default
    words = list(words)
    while words:
        word = words.pop(0)
        if word == "--restarts":
            value = words.pop(0) if words else ""
        elif word.startswith("--restarts="):
            value = word.partition("=")[2]
        else:
            command.append(word)
    if value is None or not value.isdecimal():
        raise InputError(f"--restarts {value or ''}: expected how often to start again, a whole number of 0 or more")
    return command, int(value)


def first_pause(environ: Mapping[str, str]) -> float:
    """Seconds of RESTART_PAUSE. Raises InputError."""
    text = environ.get("RESTART_PAUSE", str(FIRST_PAUSE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise InputError(f"RESTART_PAUSE={text}; expected seconds, 0 or more")
    return seconds


def main() -> None:
    """Supervise Python with the arguments given; RESTARTS and RESTART_PAUSE (seconds) may stand in the environment."""
    words, restarts = split_restarts(sys.argv[1:], os.environ.get("RESTARTS"))
    if not words:
        raise InputError("no script; expected `python -m sd.processes.supervisor SCRIPT ... --restarts N`")
    sys.exit(Supervisor([sys.executable, "-u", *words], restarts, first_pause(os.environ)).run())


if __name__ == "__main__":
    run_script(main)
