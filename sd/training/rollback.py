"""Rollback over bad samples: back to an earlier checkpoint, and on past the samples after it."""

import logging
from pathlib import Path
from typing import Any

from sd.errors import RunError
from sd.processes.ranks import on_rank_0
from sd.runs.checkpoint import checkpoint_step, find_problem, list_checkpoints, read_json
from sd.runs.settings import record_skipped
from sd.runs.skipped import SkippedSamples, gaps_of, mark_abandoned, write_skipped
from sd.training.saving import finish_saving, load_models, load_optimizer, load_recent_losses

logger = logging.getLogger(__name__)

_MAX_RETURNS = 3


def step_back(trainer: Any, error: RunError) -> None:
    """Put trainer and data back to the checkpoint that `--rollback_on_nonfinite` names, and leave out the samples of
    the steps after it. All ranks call it after the same step. Raises RunError where there is nothing to go back to, or
    the run came back to the same checkpoint three times before.

    The entry in skipped.json is durable before a checkpoint loses its standing, so a kill at any moment leaves a run
    that goes on either before the decision or after it.
    """
    args = trainer.args
    finish_saving(trainer)
    checkpoint, entry = on_rank_0(args, lambda: _decide(trainer, error))
    steps = trainer.state.global_step
    trainer.skipped.append(entry)
    load_models(trainer, checkpoint)
    load_optimizer(trainer, checkpoint)
    trainer.load_state(checkpoint, trainer.state.max_steps)
    trainer.steps_undone += steps - trainer.state.global_step
    trainer.records.forget(load_recent_losses(checkpoint))
    trainer.train_dataset.move(trainer.samples_seen, gaps_of(trainer.skipped).intervals)
    logger.warning(
        "%s; resuming from %s without samples %d to %d of the order",
        error,
        checkpoint,
        entry.first_sample,
        entry.stop_sample - 1,
    )


def _decide(trainer, error):
    """(checkpoint as text, entry), after noting the entry in output_dir and marking the checkpoints after it."""
    output_dir = trainer.args.output_dir
    checkpoint = _target(output_dir, trainer.args.rollback_on_nonfinite)
    if checkpoint is None:
        raise RunError(f"{error}; no intact checkpoint to go back to")
    back_to = checkpoint_step(checkpoint)
    if sum(entry.back_to == back_to for entry in trainer.skipped) >= _MAX_RETURNS:
        raise RunError(f"{error}; the run came back to {checkpoint.name} {_MAX_RETURNS} times already")
    gaps = gaps_of(trainer.skipped)
    first = gaps.number(read_json(checkpoint, "data_state.json")["samples_seen"])
    stop = gaps.number(trainer.samples_seen - 1) + 1
    entry = SkippedSamples(first, stop, trainer.state.global_step, back_to, str(error))
    write_skipped(output_dir, [*trainer.skipped, entry])
    record_skipped(output_dir, [*trainer.skipped, entry])
    mark_abandoned(output_dir)
    return str(checkpoint), entry


def _target(output_dir: str | Path, back: int) -> Path | None:
    """The `back`-th newest intact checkpoint, the oldest if there are fewer."""
    intact = []
    for folder in reversed(list_checkpoints(output_dir)):
        if find_problem(folder) is None:
            intact.append(folder)
        if len(intact) == back:
            break
    return intact[-1] if intact else None
