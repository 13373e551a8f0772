"""One optimizer step: gradients over micro-batches and ranks, one all-reduced NaN check, weights updated or kept."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

from sd.data.streaming.dataset import raise_if_failed
from sd.errors import RunError
from sd.training.optimizer import innermost, local_parameters

# Micro-batches go by without a look at the other ranks' signals for at most about this long.
_SIGNAL_INTERVAL_SECONDS = 2.0


@dataclass
class StepOutcome:
    """The outcome of one step, applied to or skipped by weights, schedule and average alike.

    loss: mean over the ranks. gradient_norm: Euclidean, of the gradients as the optimizer gets them. Both are host
    numbers, the same on all ranks, and not finite in a skipped step. micro_batches: of each the squared error per
    sample [B], timesteps [B] and places [B,2] in the data, of this rank.
    """

    loss: float
    gradient_norm: float
    stop: bool  # a rank has received a stop signal
    micro_batches: list = field(default_factory=list)
    busy_seconds: float = 0.0
    waited_seconds: float = 0.0
    non_finite: str = ""  # of a skipped step: what was not finite

    @property
    def applied(self) -> bool:
        """Whether the weights have moved."""
        return not self.non_finite


class StepRunner:
    """Takes the optimizer steps of a StableDiffusionTrainer. model: the trained one, as wrapped for several ranks."""

    def __init__(self, trainer: Any, model: Any):
        self.trainer, self.args, self.model = trainer, trainer.args, model
        self._micro_batch_seconds = math.inf  # mean over the ranks of the step before; unknown at first

    def run(self, batches: Iterator, stopping: Callable[[], bool] = lambda: False) -> StepOutcome | None:
        """Take one step. Returns None where a signal came in the middle of its micro-batches: nothing has moved then.

        batches: of NumPy arrays or tensors. stopping: whether this rank has received a stop signal.
        """
        accumulation = self.args.gradient_accumulation_steps
        self._seed_dropout()
        begin = time.perf_counter()
        total, waited, micro_batches = 0.0, 0.0, []
        for number in range(accumulation):
            if number and self._stops_before(number, stopping):
                self._clear_gradients()
                return None
            wait_start = time.perf_counter()
            batch = _next_batch(batches)
            waited += time.perf_counter() - wait_start
            with self._no_sync(last=number == accumulation - 1):
                outputs = self.trainer.forward(self.model, batch)
                total = total + outputs["loss"].detach().astype("float32")
                self.trainer.backward(outputs["loss"])
            micro_batches.append((outputs["sample_loss"], outputs["timestep"], batch.get("position")))
        self._reduce_gradients()
        outcome = self._reduce_outcome(total, stopping(), time.perf_counter() - begin)
        outcome.micro_batches, outcome.waited_seconds = micro_batches, waited
        self._apply() if outcome.applied else self._skip()
        outcome.busy_seconds = time.perf_counter() - begin
        return outcome

    def _reduce_outcome(self, total, stop, seconds) -> StepOutcome:
        """Agree over the ranks on loss, gradients and signals: the one value that a step reads from the device."""
        gradients = self._gradients()
        squares = sum_of_squares(gradient for _, gradient in gradients)
        if self.trainer.do_grad_scaling:
            squares = squares / self.trainer.scaler._scale.reshape([]) ** 2
        agreed = paddle.stack([total.reshape([]), squares, paddle.full([], float(stop)), paddle.full([], seconds)])
        if self.args.world_size > 1:
            paddle.distributed.all_reduce(agreed)
        loss, squares, stops, seconds = (float(value) for value in agreed.numpy())
        self._micro_batch_seconds = seconds / self.args.world_size / self.args.gradient_accumulation_steps
        # Without sharding each rank has the gradients of all weights.
        norm = math.sqrt(squares / (1 if self.args.sharding else self.args.world_size)) if squares >= 0 else math.nan
        outcome = StepOutcome(loss / self.args.world_size, norm, stop=stops > 0)
        if not math.isfinite(outcome.loss):
            outcome.non_finite = f"the loss is {outcome.loss}"
        elif not math.isfinite(outcome.gradient_norm):
            outcome.non_finite = self._name_gradient(gradients)
        return outcome

    def _gradients(self):
        """(Paddle's parameter name, gradient) of the weights that this rank moves."""
        gradients = [(parameter.name, gradient_of(parameter)) for parameter in local_parameters(self.trainer.optimizer)]
        return [(name, gradient) for name, gradient in gradients if gradient is not None]

    def _name_gradient(self, gradients):
        names = {parameter.name: name for name, parameter in self.trainer.model.named_parameters()}
        for name, gradient in gradients:
            if not bool(paddle.isfinite(gradient).all()):
                return f"the gradient of {names.get(name, name)} is NaN or infinite"
        return "the norm of the gradients is NaN or infinite"

    def _apply(self):
        """Move weights, schedule and average."""
        trainer, optimizer = self.trainer, self.trainer.optimizer
        if trainer.do_grad_scaling:
            self._divide_by_scale()
        # The scaler's own step would reduce sharded gradients a second time, and would not tell what it did.
        if hasattr(optimizer, "_hcg"):
            optimizer._step(trainer.trained_parameters)
        else:
            optimizer.step()
        if trainer.do_grad_scaling:
            self._move_scale(overflowed=False)
        trainer.lr_scheduler.step()
        if trainer.ema:
            masters = getattr(innermost(optimizer), "_master_weights", None)
            trainer.ema.update(trainer.state.global_step + 1, masters)
        self._clear_gradients()

    def _skip(self):
        """Leave weights, schedule and average as they are; a loss scale goes down, since it may have been too high."""
        if self.trainer.do_grad_scaling:
            self._move_scale(overflowed=True)
        self._clear_gradients()

    def _divide_by_scale(self):
        """Take the loss scale out of the gradients, by one call for each dtype."""
        by_dtype = {}
        for _, gradient in self._gradients():
            by_dtype.setdefault(gradient.dtype, []).append(gradient)
        for gradients in by_dtype.values():
            paddle._C_ops.check_finite_and_unscale_(gradients, self.trainer.scaler._scale)

    def _move_scale(self, overflowed):
        scaler = self.trainer.scaler
        scaler._cache_found_inf = overflowed
        scaler._update()

    def _clear_gradients(self):
        optimizer = self.trainer.optimizer
        if "stage2" in str(self.args.sharding):
            optimizer.clear_grad()  # takes no argument there
        else:
            # Freed, not filled with zeros, which would take memory and a pass over it; data parallel keeps its own.
            keeps = self.args.world_size > 1 and not self.args.amp_master_grad
            optimizer.clear_grad(set_to_zero=keeps)

    def _stops_before(self, number, stopping):
        """Whether a rank has received a stop signal, before micro-batch `number`. The flag is all-reduced every few
        seconds, counted in micro-batches so that all ranks do it at once."""
        if self.args.world_size == 1:
            return stopping()
        every = max(1, int(_SIGNAL_INTERVAL_SECONDS / max(self._micro_batch_seconds, 1e-9)))
        if number % every:
            return False
        stop = paddle.to_tensor([float(stopping())])
        paddle.distributed.all_reduce(stop)
        return float(stop) > 0

    def _seed_dropout(self):
        """Layers like dropout draw by step and rank alone, so a resumed run needs no generator state."""
        key = [self.args.seed, self.trainer.state.global_step, self.args.process_index]
        paddle.seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def _no_sync(self, last):
        """Gradients are exchanged once a step: after the backward pass with recompute, whose hooks would come twice,
        and where they are summed in float32."""
        if hasattr(self.model, "no_sync") and (self._reduces_afterwards() or not last):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _reduces_afterwards(self):
        return self.args.recompute or self.args.amp_master_grad

    def _reduce_gradients(self):
        optimizer = self.trainer.optimizer
        if hasattr(optimizer, "_hcg"):  # sharding stage 1
            if optimizer._sharding_enable:
                optimizer._inner_opt.reduce_gradients(self.trainer.trained_parameters, optimizer._hcg)
            if optimizer._dp_enable:
                fused_allreduce_gradients(self.trainer.trained_parameters, optimizer._hcg)
        elif self._reduces_afterwards() and hasattr(self.model, "no_sync"):
            fused_allreduce_gradients(list(self.model.parameters()), None)


def gradient_of(parameter: paddle.Tensor) -> paddle.Tensor | None:
    """The gradient that the optimizer takes: summed in float32 beside a weight in half precision, or the weight's."""
    return parameter.main_grad if hasattr(parameter, "main_grad") else parameter.grad


def sum_of_squares(gradients: Iterable[paddle.Tensor]) -> paddle.Tensor:
    """Float32 [], on the device; NaN or infinite if a number in the gradients is."""
    with paddle.no_grad():
        sums = [paddle._C_ops.squared_l2_norm(_float32(gradient)) for gradient in gradients]
        return paddle.add_n(sums).reshape([]) if sums else paddle.zeros([])


def _float32(gradient):
    return gradient.astype("float32") if gradient.dtype in (paddle.float16, paddle.bfloat16) else gradient


def _next_batch(batches):
    try:
        batch = next(batches)
    except StopIteration:
        raise RunError("the training data ended; a TextImagePair never does, this dataset did") from None
    raise_if_failed(batch)
    return {name: value if paddle.is_tensor(value) else paddle.to_tensor(value) for name, value in batch.items()}
