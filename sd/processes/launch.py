"""paddle.distributed.launch, ended by Ctrl-C and SIGTERM as every script is: `python -m sd.processes.launch ...`.

By itself it prints "Exit with signal 2" and ends with 2, the exit code of wrong input; in its first second, in Paddle's
import, with a traceback.
"""

import sys

if __name__ == "__main__":  # before the imports, so that a wrong Python gets one line
    from sd.entry import launch

    launch()
    sys.exit()

import os
import tempfile
from pathlib import Path
from types import FrameType

from sd.errors import StopError
from sd.processes.signals import REPORTED

WHEN_STOPPED = "the same command starts again, or resumes from what was saved"


def main() -> None:
    """Launch with the arguments of the process. Raises StopError after a signal, SystemExit if a rank has said already
    what was saved."""
    from paddle.distributed.launch.controllers.controller import ControllerBase
    from paddle.distributed.launch.main import launch

    received: list[int] = []
    handle = ControllerBase.signal_handler

    def note(self: ControllerBase, number: int, frame: FrameType | None) -> None:
        received.append(number)
        handle(self, number, frame)

    ControllerBase.signal_handler = note
    with tempfile.TemporaryDirectory(prefix="sd-launch-") as folder:
        reported = Path(folder) / "reported"
        os.environ[REPORTED] = str(reported)
        try:
            launch()
        except SystemExit:
            if not received:
                raise
            if reported.exists():
                sys.exit(128 + received[0])
            raise StopError(received[0], WHEN_STOPPED) from None
