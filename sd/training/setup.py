"""The trainer's data loader, learning rates, schedule and optimizer."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import paddle
from paddlenlp.trainer.trainer_utils import get_scheduler

from sd.data.streaming.dataset import worker_init_fn
from sd.errors import InputError, first_line

if TYPE_CHECKING:
    from sd.flags.training import SDTrainingArguments

logger = logging.getLogger(__name__)

_WORKER_END_SECONDS = 1


def keep_global_batch(args: Any, global_batch: int | None) -> None:
    """Choose gradient_accumulation_steps so that the ranks that there are make the global batch of a checkpoint.

    global_batch: in images, None if not recorded. Raises InputError, with what would fit, if it does not divide.
    """
    micro_batch = args.per_device_train_batch_size * args.dataset_world_size
    if global_batch is None or micro_batch * args.gradient_accumulation_steps == global_batch:
        return
    if global_batch % micro_batch:
        fitting = [
            ranks
            for ranks in range(1, global_batch + 1)
            if global_batch % (ranks * args.per_device_train_batch_size) == 0
        ]
        advice = f"{', '.join(map(str, fitting))} ranks would do" if fitting else "no number of ranks does"
        raise InputError(
            f"--allow_fewer_ranks: the checkpoint's global batch of {global_batch} is no multiple of "
            f"{args.dataset_world_size} rank(s) x per_device_train_batch_size {args.per_device_train_batch_size} = "
            f"{micro_batch}; {advice}, or another --per_device_train_batch_size"
        )
    before, args.gradient_accumulation_steps = args.gradient_accumulation_steps, global_batch // micro_batch
    logger.warning(
        "%d rank(s): gradient_accumulation_steps %d -> %d keeps the global batch of %d",
        args.dataset_world_size,
        before,
        args.gradient_accumulation_steps,
        global_batch,
    )


def make_dataloader(dataset: Any, collate_fn: Callable[..., Any], args: "SDTrainingArguments") -> paddle.io.DataLoader:
    """Batches of NumPy arrays from workers that run no Paddle operation."""
    return paddle.io.DataLoader(
        dataset,
        batch_size=args.per_device_train_batch_size,
        collate_fn=collate_fn,
        num_workers=args.dataloader_num_workers,
        worker_init_fn=worker_init_fn,
        # A kill would leave its batches there, a container may have 64 MB of it, and the worker would allocate by
        # Paddle: a lock that another thread held at the fork is never released in the worker, which then hangs.
        use_shared_memory=False,
    )


@contextlib.contextmanager
def end_workers(batches: Any) -> Iterator[None]:
    """Within the context `batches`, an iterator over a DataLoader, may be used; after it none of its workers lives.
    Any other iterator has none.

    Paddle leaves them to the garbage collector, but its own reader thread holds the iterator.
    """
    try:
        yield
    finally:
        workers = getattr(batches, "_workers", ())
        if hasattr(batches, "_try_shutdown_all"):
            batches._exit_thread_expectedly()
            batches._thread.join(1)  # Paddle itself sleeps for a second before it looks again
            batches._try_shutdown_all(*[0] * bool(workers))  # tells them to end, does not wait
        end = time.monotonic() + _WORKER_END_SECONDS
        for worker in workers:
            worker.join(max(0, end - time.monotonic()))
            worker.kill()  # one that is in the middle of a read
            worker.join()


def learning_rates(args: "SDTrainingArguments", trained_components: Any) -> dict[str, float]:
    """Part -> learning rate."""
    rates: dict[str, Any] = {"unet": args.unet_learning_rate, "text_encoder": args.text_encoder_learning_rate}
    return {
        component: args.learning_rate if rates[component] is None else rates[component]
        for component in trained_components
    }


def set_learning_rates(model: Any, rates: dict[str, float]) -> list[paddle.Tensor]:
    """Give each trained weight its factor of the base rate, the largest. Returns the trained weights.

    (Groups of weights would rule out sharding.)
    """
    base = max(rates.values())
    trained = []
    for component, rate in rates.items():
        for parameter in getattr(model, component).parameters():
            parameter.optimize_attr["learning_rate"] = rate / (base or 1.0)
            trained.append(parameter)
    return trained


def make_scheduler(args: "SDTrainingArguments", base_learning_rate: float, num_training_steps: int) -> Any:
    """The schedule of the base learning rate."""
    try:
        return get_scheduler(
            args.lr_scheduler_type,
            learning_rate=base_learning_rate,
            num_warmup_steps=args.warmup_steps or int(args.warmup_ratio * num_training_steps),
            num_training_steps=num_training_steps,
            num_cycles=args.num_cycles,
            lr_end=args.lr_end,
            power=args.power,
        )
    except ValueError as error:  # a polynomial that would rise
        raise InputError(f"--lr_scheduler_type {args.lr_scheduler_type.value}: {first_line(error)}") from None


def make_optimizer(
    optimizer_class: Any, options: Any, args: "SDTrainingArguments", scheduler: Any, parameters: Any
) -> Any:
    """An optimizer over `parameters`, with clipping if --max_grad_norm asks for it."""
    if args.fp16_opt_level == "O2" and (args.fp16 or args.bf16):
        options["multi_precision"] = True
    return optimizer_class(
        learning_rate=scheduler,
        parameters=parameters,
        weight_decay=args.weight_decay,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(args.max_grad_norm) if args.max_grad_norm > 0 else None,
        **options,
    )
