"""Packing without a pool of processes, for tests of what is read."""

import pytest


@pytest.fixture
def packs_in_process(monkeypatch):
    """The parts are packed one after the other in this process: a start of the pool costs more than such a test."""

    def run_here(function, tasks, num_workers):
        yield from map(function, tasks)

    monkeypatch.setattr("sd.data.packing.packer.run_local", run_here)
