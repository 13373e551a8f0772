"""How a test meets a run in the middle: it waits at a chosen moment, however fast the machine is."""

import json
import os
import random
import socket
import time
from pathlib import Path

import psutil

HOLDER = Path(__file__).resolve().parent / "hold"
ROOT = HOLDER.parents[1]
_LONGEST_SECONDS = 600  # far beyond what the slowest machine takes: it tells a hang, not a speed


class Hold:
    """Holds each process of a command after so many "steps" of training, "pictures", or "parts" that it has published,
    or before that one of its "commits" of checkpoints.

    folder: a new one. environ: variables of the processes meant, such as PADDLE_TRAINER_ID="1"; all, if none is named.
    """

    def __init__(self, folder, what, count, **environ):
        self._folder = Path(folder)
        self._folder.mkdir()
        self._request = {"what": what, "count": count, "folder": str(folder), "environ": environ}

    def variables(self):
        """The environment variables that the command is to be started with."""
        path = os.pathsep.join([str(HOLDER), str(ROOT)])
        return {"SD_TEST_HOLD": json.dumps(self._request), "PYTHONPATH": path}

    def wait(self, run, log=lambda: "", processes=1):
        """The ids of the processes that are held, once there are so many of them. run: the command's Popen."""

        def held_ranks():
            actual = [int(path.name) for path in self._folder.glob("[0-9]*")]
            return actual if len(actual) >= processes else None

        return wait_for(held_ranks, "a process is held", run, log)

    def release(self):
        """Let them go on, and hold none again."""
        (self._folder / "released").touch()


class Gate(Hold):
    """Holds each process of a training run after each step, until later steps are allowed; at first, after step 1."""

    def __init__(self, folder, **environ):
        super().__init__(folder, "gate", 0, **environ)
        self.allow(1)

    def allow(self, step):
        """Let the processes make the steps up to this one."""
        aside = self._folder / "allowed.tmp"
        aside.write_text(str(step))
        aside.replace(self._folder / "allowed")

    def wait_at(self, step, gone, run, log=lambda: "", ranks=2):
        """{rank: process id} of the ranks that are held after a step. gone: ids of processes that count no more."""

        def held_ranks():
            notes = [path.name.split("-") for path in self._folder.glob(f"step-{step}-rank-*")]
            held = {int(rank): int(pid) for *_, rank, pid in notes if int(pid) not in gone}
            return held if len(held) == ranks else None

        return wait_for(held_ranks, f"{ranks} ranks are held after step {step}", run, log)


def wait_for(condition, what, run=None, log=lambda: ""):
    """The first true value of condition(). Fails with the end of log() once `run` has ended without it."""
    end = time.monotonic() + _LONGEST_SECONDS
    while True:
        ended = run is not None and run.poll() is not None  # before the condition is looked at for the last time
        if actual := condition():
            return actual
        assert not ended, f"ended with {run.returncode} before: {what}\n{log()[-3000:]}"
        if time.monotonic() > end:
            if run is not None:
                run.kill()
            raise AssertionError(f"not within {_LONGEST_SECONDS} s: {what}\n{log()[-3000:]}")
        time.sleep(0.02)


def wait_until_ended(pids):
    """Until none of the processes runs any more; what only its parent has not yet asked after has ended."""

    def ended(pid):
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_for(lambda: all(map(ended, pids)), f"processes {pids} ended")


def free_port():
    """A port of 127.0.0.1 that nobody listens at, of those that the kernel gives to nobody by itself."""
    while True:
        port = random.randrange(20000, 32768)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
