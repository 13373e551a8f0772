"""What fails on one rank ends the others with its message, and nobody waits: two threads stand for the ranks."""

import threading
from types import SimpleNamespace

import paddle
import pytest

from sd.errors import InputError, RunError
from sd.processes.ranks import gather_failures, on_rank_0


@pytest.fixture
def two_ranks(monkeypatch):
    """run(function) -> what function(training_args) returned or raised on each of two ranks."""
    barrier, shared, ranks = threading.Barrier(2, timeout=20), {}, {}

    def all_gather_object(into, value):
        shared[ranks[threading.get_ident()]] = value
        barrier.wait()
        into.extend(shared[rank] for rank in (0, 1))
        barrier.wait()

    def broadcast_object_list(values, src):
        gathered = []
        all_gather_object(gathered, list(values))
        values[:] = gathered[src]

    monkeypatch.setattr(paddle.distributed, "all_gather_object", all_gather_object)
    monkeypatch.setattr(paddle.distributed, "broadcast_object_list", broadcast_object_list)

    def run(function):
        results = {}

        def call(rank):
            ranks[threading.get_ident()] = rank
            try:
                results[rank] = function(SimpleNamespace(world_size=2, process_index=rank))
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=call, args=[rank]) for rank in (0, 1)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return results[0], results[1]

    return run


def test_every_rank_gets_what_rank_0_found(two_ranks):
    assert two_ranks(lambda args: on_rank_0(args, lambda: f"found by {args.process_index}")) == ("found by 0",) * 2


@pytest.mark.parametrize("error", [InputError("seed=x"), OSError(5, "Input/output error"), KeyError("settings")])
def test_any_failure_of_rank_0_ends_the_others_with_its_message(two_ranks, error):
    def fail():
        raise error

    first, second = two_ranks(lambda args: on_rank_0(args, fail))
    assert first is error
    assert isinstance(second, RunError) and str(second).startswith("rank 0: ") and str(error) in str(second)


def test_each_rank_learns_of_the_failures_of_all(two_ranks):
    error = ValueError("of rank 1")
    first, second = two_ranks(lambda args: gather_failures(args, error if args.process_index else None))
    assert first == [(1, "ValueError: of rank 1")] and second == [(1, error)]
    assert two_ranks(lambda args: gather_failures(args, None)) == ([], [])
