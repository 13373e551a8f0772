"""The other ranks on this machine: one that dies is named, and this one does not wait for it for ever.

A rank that waits for a dead one is aborted within milliseconds at best (gloo), and waits for ever at worst (NCCL); so a
small process beside each rank watches, this file run with process ids. Linux; elsewhere nothing is watched.
"""

import os
import select
import signal
import socket
import subprocess
import sys

_PATIENCE_SECONDS = 30


class Siblings:
    """Within the context, the death of another rank on this machine is told, and ends this rank soon after."""

    def __init__(self, training_args):
        self._others = _ranks_here(training_args) if training_args.world_size > 1 else {}
        self._watcher = None

    def __enter__(self):
        if self._others and hasattr(os, "pidfd_open"):
            others = [f"{rank}:{pid}" for rank, pid in self._others.items()]
            command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), *others]
            self._watcher = subprocess.Popen(command, stdin=subprocess.PIPE)
        return self

    def __exit__(self, error_type, error, traceback):
        if self._watcher is None or error_type is not None:
            return
        self._watcher.communicate(b"done")
        import paddle

        paddle.distributed.barrier()  # nobody leaves while another is still watched


def _ranks_here(training_args):
    """Rank -> process id of the other ranks on this machine."""
    import paddle

    everyone = []
    here = socket.gethostname()
    paddle.distributed.all_gather_object(everyone, (training_args.process_index, here, os.getpid()))
    return {rank: pid for rank, host, pid in everyone if host == here and rank != training_args.process_index}


def watch(own, others):
    """Wait until `own` (process id) is done or gone, or one of `others` (rank -> process id) has died."""
    mine = _handle(own)
    if mine is None:
        return
    handles = {rank: _handle(pid) for rank, pid in others.items()}
    dead = {rank for rank, handle in handles.items() if handle is None}
    if not dead:
        gone = select.poll()
        for descriptor in (0, mine, *handles.values()):
            gone.register(descriptor, select.POLLIN)
        ended = {descriptor for descriptor, _ in gone.poll()}
        if 0 in ended and os.read(0, 4):
            return
        ended |= {descriptor for descriptor, _ in gone.poll(0)}
        dead = {rank for rank, handle in handles.items() if handle in ended}
    for rank in sorted(dead):
        told = f"error: rank {rank} (process {others[rank]}) died; the last lines of its log may say why\n"
        os.write(2, told.encode())
    if dead and not select.select([mine], [], [], _PATIENCE_SECONDS)[0]:
        os.kill(own, signal.SIGKILL)


def _handle(pid):
    """A descriptor that is readable once the process has ended, or None if it has ended already."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # the rank decides when it ends
        signal.signal(number, signal.SIG_IGN)
    watch(int(sys.argv[1]), {int(rank): int(pid) for rank, pid in (pair.split(":") for pair in sys.argv[2:])})
