"""Collective calls over the ranks that pass exceptions on, so that no rank waits for one that has failed."""

from collections.abc import Callable
from typing import Any

from sd.errors import InputError, RunError


def error_line(error: BaseException) -> str:
    """An exception in one line: its own words, after its type where that is not ours."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return lines[0] if isinstance(error, InputError | RunError) else f"{type(error).__name__}: {lines[0]}"


def gather_failures(training_args: Any, failure: Exception | None) -> list[tuple[int, Exception | str]]:
    """(rank, what failed there) for each rank that calls this with an exception: its own as it is, others' as text.

    All ranks must call it; none goes on before all have.
    """
    rank = training_args.process_index
    if training_args.world_size == 1:
        return [] if failure is None else [(rank, failure)]
    import paddle

    texts = []
    paddle.distributed.all_gather_object(texts, None if failure is None else error_line(failure))
    failures = [(number, text) for number, text in enumerate(texts) if text is not None]
    return [(number, failure if failure is not None and number == rank else text) for number, text in failures]


def on_rank_0(training_args: Any, function: Callable[[], Any]) -> Any:
    """Let rank 0 call `function` and give every rank what it returns; if it fails, all end with its message."""
    if training_args.world_size == 1:
        return function()
    import paddle

    failure, result = None, None
    if training_args.process_index == 0:
        try:
            result = function()
        except Exception as error:  # whatever it is, the others wait for this rank
            failure = error
    message = [(result, None if failure is None else error_line(failure))]
    paddle.distributed.broadcast_object_list(message, src=0)
    if failure is not None:
        raise failure
    result, failed = message[0]
    if failed is not None:
        raise RunError(f"rank 0: {failed}")
    return result
