"""Asynchronous checkpoints: tensors are copied to host memory, a thread writes the copy while training continues."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import psutil

from sd.runs.checkpoint import CheckpointWriter

_HEADROOM = 1.2  # times the copy that must be free: data workers keep their memory


class CopiedCheckpoint:
    """Takes what a CheckpointWriter takes, copies it to host memory, and hands it to the writer in `write`."""

    def __init__(self, writer: CheckpointWriter):
        self.folder, self.files = writer.folder, dict[str, dict]()
        self._writer = writer
        self._calls: list[Callable[[], None]] = []

    def write_tensors(self, name: str, tensors: Mapping[str, Any], metadata: dict | None = None) -> None:
        """Copy tensors to host memory."""
        copies = {key: _copy(tensor) for key, tensor in tensors.items()}
        self._later(name, lambda: self._writer.write_tensors(name, copies, metadata))

    def write_json(self, name: str, value: Any) -> None:
        """Keep a value that no longer changes."""
        self._later(name, lambda: self._writer.write_json(name, value))

    def add(self, name: str) -> None:
        """Take a file of `folder` into the manifest later."""
        self._later(name, lambda: self._writer.add(name))

    def _later(self, name, call):
        self.files[name] = {}
        self._calls.append(call)

    def write(self, then: Callable[[], None]) -> None:
        """Write what was copied, and call `then`; the copy of each file goes when it is written."""
        while self._calls:
            self._calls.pop(0)()
        then()


class BackgroundSaver:
    """One job at a time in a thread. A process that ends meanwhile leaves the checkpoint under its temporary name."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self.writer: CheckpointWriter | None = None  # of the job that was started last

    def start(self, job: Callable[[], None], writer: CheckpointWriter) -> None:
        """Start `job` in the thread; the previous one must have ended."""
        self.writer = writer
        self._thread = threading.Thread(target=self._run, args=[job], name="save checkpoint", daemon=True)
        self._thread.start()

    def _run(self, job):
        try:
            job()
        except Exception as error:
            self._failure = error

    def wait(self) -> None:
        """Wait for the job and re-raise its exception."""
        if self._thread is not None:
            self._thread.join()
        failure, self._thread, self._failure = self._failure, None, None
        if failure is not None:
            raise failure


def fits_in_host_memory(num_bytes: int) -> bool:
    """Whether host memory takes a copy of so many bytes now."""
    return psutil.virtual_memory().available > _HEADROOM * num_bytes


def _copy(tensor):
    return np.array(tensor if isinstance(tensor, np.ndarray) else tensor.numpy())
