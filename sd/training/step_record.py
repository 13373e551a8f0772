"""Records of the steps since the last log: losses, times, skipped steps."""

import logging
import statistics
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
import psutil

from sd.errors import RunError
from sd.runs.checkpoint import list_checkpoints
from sd.training.step import StepOutcome

if TYPE_CHECKING:
    from sd.flags.training import SDTrainingArguments

logger = logging.getLogger(__name__)

_MAX_BATCHES = 2000
MEDIAN_STEPS, MIN_STEPS = 100, 20  # whose median loss bounds the next one; fewer say too little


class BadStepsError(RunError):
    """Too many consecutive steps with a NaN or infinite loss or gradient, or a loss far above the last ones."""


class StepRecords:
    """Collects the outcomes of steps for the log, and ends the run after too many consecutive skipped ones.

    recent: losses of the applied steps before, the newest last.
    """

    def __init__(self, args: "SDTrainingArguments", dataset: Any, recent: Iterable[float] = ()):
        self.args, self.dataset = args, dataset
        self.recent = deque(recent, maxlen=MEDIAN_STEPS)
        self._consecutive_skipped = 0
        self._timestep_losses = deque(maxlen=_MAX_BATCHES)
        self._all_losses = [0.0, 0]
        self._start_interval()
        self._begin = time.perf_counter()

    def _start_interval(self):
        self._losses, self._gradient_norms, self._steps = [], [], 0
        self._busy_seconds = self._waited_seconds = 0.0
        self._interval_begin = time.perf_counter()

    def add(self, step: int, outcome: StepOutcome) -> None:
        """Record step number `step`. Raises BadStepsError after more than max_bad_steps consecutive skipped ones and,
        with --rollback_on_nonfinite, for a loss above its bound."""
        self._timestep_losses.extend((timestep, loss) for loss, timestep, _ in outcome.micro_batches)
        self._steps += 1
        self._busy_seconds += outcome.busy_seconds
        self._waited_seconds += outcome.waited_seconds
        if outcome.applied:
            self._consecutive_skipped = 0
            self._losses.append(outcome.loss)
            self._gradient_norms.append(outcome.gradient_norm)
            self._check_loss(step, outcome.loss)
        else:
            self._consecutive_skipped += 1
            self._report_skipped(step, outcome)

    def forget(self, recent: Iterable[float]) -> None:
        """Resume from the losses of an earlier step, after a rollback."""
        self._consecutive_skipped = 0
        self.recent = deque(recent, maxlen=MEDIAN_STEPS)
        self._timestep_losses.clear()
        self._start_interval()

    def _check_loss(self, step, loss):
        if self.args.rollback_on_nonfinite and len(self.recent) >= MIN_STEPS:
            bound = self.args.rollback_loss_factor * statistics.median(self.recent)
            if loss > bound:
                raise BadStepsError(
                    f"step {step}: loss {loss:.6g}, above {bound:.6g}, {self.args.rollback_loss_factor:g} times the "
                    f"median of the {len(self.recent)} steps before (--rollback_loss_factor)"
                )
        self.recent.append(loss)

    def _report_skipped(self, step, outcome):
        rows = []
        for sample_loss, _, positions in outcome.micro_batches:
            bad = ~np.isfinite(sample_loss.numpy())
            if positions is not None and bad.any():
                rows += self.dataset.name_rows(np.asarray(positions)[bad])
        if self.args.world_size > 1:
            gathered = []
            paddle.distributed.all_gather_object(gathered, rows)
            rows = [row for each in gathered for row in each]
        named = ", ".join(rows) or "none with a NaN or infinite loss of its own"
        logger.warning("step %d skipped: %s; samples: %s", step, outcome.non_finite, named)
        if self._consecutive_skipped > self.args.max_bad_steps:
            last = next(reversed(list_checkpoints(self.args.output_dir)), None)
            raise BadStepsError(
                f"step {step}: {self._consecutive_skipped} consecutive steps were skipped for a NaN or infinite loss "
                f"or gradient (--max_bad_steps {self.args.max_bad_steps}); the latest: {outcome.non_finite}; last "
                f"checkpoint: {last.name if last else 'none'}; samples: {named}"
            )

    def pop_logs(self, learning_rates: Any, samples_seen: int, step: int, max_steps: int) -> dict[str, Any]:
        """Scalars of the steps since the last call, over all ranks; times are without saving, drawing, validation."""
        samples = self._steps * self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        samples *= self.args.dataset_world_size
        wall = time.perf_counter() - self._interval_begin
        first, *others = learning_rates.items()
        logs = {
            "global_step": step,
            "loss": _mean(self._losses),
            "gradient_norm": _mean(self._gradient_norms),
            "learning_rate": first[1],
            **{f"learning_rate_{part}": rate for part, rate in others},
            "samples_per_second": samples / max(self._busy_seconds, 1e-9),
            "seconds_per_step": self._busy_seconds / max(self._steps, 1),
            "data_wait_seconds_per_step": self._waited_seconds / max(self._steps, 1),
            "data_wait_percent": 100 * self._waited_seconds / max(self._busy_seconds, 1e-9),
            "memory_gb": memory_bytes(self.args.device) / 1e9,
            "samples_seen": samples_seen,
            "seconds_left": wall / max(self._steps, 1) * (max_steps - step),
            "progress": step / max_steps,
        }
        self._all_losses[0] += float(np.sum(self._losses))
        self._all_losses[1] += len(self._losses)
        self._start_interval()
        return logs

    def pop_timestep_losses(self) -> tuple[np.ndarray, np.ndarray]:
        """(timesteps int64 [N], losses float32 [N]) of this rank's samples since the last call."""
        losses = list(self._timestep_losses)
        self._timestep_losses.clear()
        if not losses:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return tuple(np.concatenate([each[i].numpy() for each in losses]) for i in (0, 1))

    def totals(self, steps: int) -> Any:
        """Mean loss and rates of this start, over `steps` steps."""
        seconds = time.perf_counter() - self._begin
        mean = self._all_losses[0] / self._all_losses[1] if self._all_losses[1] else float("nan")
        return {"train_loss": mean, "train_steps": steps, "train_seconds": seconds}


def _mean(values):
    return float(np.mean(values)) if values else float("nan")


def memory_bytes(device: str | None) -> int:
    """Memory in use: the peak allocated on a GPU, this process's resident set on a CPU."""
    if device == "gpu":
        return paddle.device.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
