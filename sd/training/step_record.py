"""What the steps since the last log did: losses left on the device until they are due, times, steps not applied."""

import logging
import time
from collections import deque

import numpy as np
import paddle
import psutil

from sd.errors import RunError
from sd.runs.checkpoint import list_checkpoints

logger = logging.getLogger(__name__)

_KEPT_BATCHES = 2000


class StepRecords:
    """Collects steps; `settle` reads their losses back in one go, and a step whose loss is no number is named.

    On a GPU reading back waits for the device, so it is done once every logging_steps; on a CPU at every step.
    """

    def __init__(self, args, dataset):
        self.args, self.dataset = args, dataset
        self._settle_every = 1 if args.device == "cpu" else args.logging_steps
        self._unread = []
        self._bad_in_a_row = 0
        self._timestep_losses = deque(maxlen=_KEPT_BATCHES)
        self._all_losses = [0.0, 0]
        self._start_interval()
        self._begin = time.perf_counter()

    def _start_interval(self):
        self._losses, self._steps = [], 0
        self._busy_seconds = self._waited_seconds = 0.0
        self._interval_begin = time.perf_counter()

    def add(self, step, agreed, micro_batches, busy_seconds, waited_seconds):
        """Take a step in. agreed: [loss summed over ranks, ranks asked to stop], on the device; micro_batches: of
        each its squared error per sample [B], timesteps [B] and places [B,2] in the data.
        """
        self._unread.append((step, agreed, micro_batches))
        self._timestep_losses.extend((timestep, loss) for loss, timestep, _ in micro_batches)
        self._steps += 1
        self._busy_seconds += busy_seconds
        self._waited_seconds += waited_seconds

    def settle(self, due):
        """Read back what is due. Returns whether a rank was asked to stop. Raises RunError after too many bad steps."""
        if not self._unread or not (due or len(self._unread) >= self._settle_every):
            return False
        begin = time.perf_counter()
        read = paddle.stack([agreed for _, agreed, _ in self._unread]).numpy()
        self._busy_seconds += time.perf_counter() - begin
        unread, self._unread = self._unread, []
        for (loss, _), (step, _, micro_batches) in zip(read, unread, strict=True):
            if np.isfinite(loss):
                self._losses.append(loss / self.args.world_size)
                self._bad_in_a_row = 0
            else:
                self._bad_in_a_row += 1
                self._tell_bad_step(step, loss, micro_batches)
        return bool(read[:, 1].any())

    def _tell_bad_step(self, step, loss, micro_batches):
        rows = []
        for sample_loss, _, place in micro_batches:
            bad = ~np.isfinite(sample_loss.numpy())
            if place is not None and bad.any():
                rows += self.dataset.name_rows(np.asarray(place)[bad])
        if self.args.world_size > 1:
            gathered = []
            paddle.distributed.all_gather_object(gathered, rows)
            rows = [row for each in gathered for row in each]
        named = ", ".join(rows) or "no single sample (the weighted sum overflowed)"
        logger.warning("step %d: the loss is %s, the step is not applied; samples: %s", step, loss, named)
        if self._bad_in_a_row > self.args.max_bad_steps:
            last = next(reversed(list_checkpoints(self.args.output_dir)), None)
            raise RunError(
                f"step {step}: {self._bad_in_a_row} losses in a row were no numbers (--max_bad_steps "
                f"{self.args.max_bad_steps}); last checkpoint: {last.name if last else 'none'}; samples: {named}"
            )

    def take_logs(self, learning_rates, samples_seen, step, max_steps):
        """Scalars of the steps since the last call, over all ranks; times are without saving, drawing, validation."""
        samples = self._steps * self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        samples *= self.args.dataset_world_size
        wall = time.perf_counter() - self._interval_begin
        first, *others = learning_rates.items()
        logs = {
            "global_step": step,
            "loss": float(np.mean(self._losses)) if self._losses else float("nan"),
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

    def take_timestep_losses(self):
        """(timesteps int64 [N], losses float32 [N]) of this rank's samples since the last call."""
        kept = list(self._timestep_losses)
        self._timestep_losses.clear()
        if not kept:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return tuple(np.concatenate([each[i].numpy() for each in kept]) for i in (0, 1))

    def totals(self, steps):
        """Mean loss and rates of this start, over `steps` steps."""
        seconds = time.perf_counter() - self._begin
        mean = self._all_losses[0] / self._all_losses[1] if self._all_losses[1] else float("nan")
        return {"train_loss": mean, "train_steps": steps, "train_seconds": seconds}


def memory_bytes(device):
    """Memory in use: the peak allocated on a GPU, this process's resident set on a CPU."""
    if device == "gpu":
        return paddle.device.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
