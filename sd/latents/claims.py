"""Work claims of processes that share a folder: record locks, which end with the process."""

import fcntl
import os
from pathlib import Path

from sd.data.parts import storage
from sd.files import try_lock

_NAME = ".claims"
_FINISH = 1 << 40  # beyond every part's number


class Claims:
    """Locks of single bytes of one file: byte n for part n, until `close`. A dead process's are free at once.

    `shared` is False where the folder knows no such locks (an object store, some network file systems): then each rank
    keeps to its own parts.
    """

    def __init__(self, folder: str | Path):
        self.shared, self._file = not storage.is_remote(folder), -1
        if self.shared:
            self._file = os.open(Path(folder) / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self.acquire(_FINISH + 1)
            except OSError:
                self.shared = False

    def acquire(self, number: int) -> bool:
        """Claim part `number` for this process. Returns False if another process has it."""
        if not self.shared:
            return True
        return try_lock(self._file, number)

    def wait_to_finish(self) -> None:
        """Let one process at a time write the lists: from here on this one, until `close`."""
        if self.shared:
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, _FINISH)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
