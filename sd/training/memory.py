"""Whether training fits into a card's memory as it is, or only with activations recomputed in the backward pass."""

import logging
from typing import Any

import numpy as np
import paddle

from sd import devices
from sd.data.streaming.dataset import collate
from sd.errors import is_out_of_memory

logger = logging.getLogger(__name__)

# Of a card's memory: what training may take. The rest goes to the context, to workspaces and to gaps.
USABLE = 0.92
_GIB = 2**30


def choose_recompute(trainer: Any, size: tuple[int, int]) -> bool:
    """Take a forward and backward pass on a made-up batch, and recompute activations if memory would not suffice.

    size: (width, height) of the pictures, the largest where there are several.

    Comes before the model is wrapped for several ranks; all of them decide alike. Gradients are gone afterwards.
    """
    total = devices.memory_bytes(devices.current())
    peak = trial_peak(trainer, size)
    optimizer = optimizer_bytes(trainer)
    recompute = peak is None or peak + optimizer > USABLE * total
    if trainer.args.world_size > 1:
        agreed = paddle.to_tensor([int(recompute)])
        paddle.distributed.all_reduce(agreed, op=paddle.distributed.ReduceOp.MAX)
        recompute = bool(agreed.item())
    needed = "more than there is" if peak is None else f"{(peak + optimizer) / _GIB:.1f} GiB"
    logger.info(
        "recompute: %s; a step without it takes %s of %.1f GiB (--recompute True or False decides)",
        "on" if recompute else "off",
        needed,
        total / _GIB,
    )
    return recompute


def trial_peak(trainer: Any, size: tuple[int, int]) -> int | None:
    """Peak bytes of a forward and backward pass at the run's batch size; None if it ran out of memory."""
    model, peak = trainer.model, None
    training = model.training
    model.train()
    try:
        batch = synthetic_batch(model, size, trainer.args.per_device_train_batch_size)
        trainer.backward(trainer.forward(model, batch)["loss"])
        peak = allocated_peak()
    except (MemoryError, RuntimeError, SystemError) as error:
        if not is_out_of_memory(error):
            raise
    finally:
        for parameter in trainer.trained_parameters:
            parameter.clear_gradient(False)
        if not training:
            model.eval()
        if devices.current().kind == "gpu":
            paddle.device.cuda.empty_cache()
    return peak


def allocated_peak() -> int:
    """The most bytes that Paddle's allocator of the current card has handed out at once."""
    return paddle.device.cuda.max_memory_allocated()


def optimizer_bytes(trainer: Any) -> int:
    """Bytes that the first step allocates after its backward pass and keeps: moments, masters, float32 gradients,
    all-reduce buffers."""
    args = trainer.args
    numbers = sum(parameter.size for parameter in trainer.trained_parameters)
    halves = args.precision != "fp32" and args.fp16_opt_level == "O2"
    shards = args.world_size if args.sharding else 1
    state = numbers * (8 + (4 if halves else 0)) // shards
    gradients = numbers * 2 if halves else 0  # 4 bytes a number instead of the 2 of the trial
    exchange = numbers * 4 if args.world_size > 1 and not args.sharding else 0
    return state + gradients + exchange


def synthetic_batch(model: Any, size: tuple[int, int], count: int) -> dict[str, paddle.Tensor]:
    """A batch of noise with the shapes and dtypes of a real one, as tensors. size: (width, height) in pixels; count:
    samples."""
    rng = np.random.default_rng(0)
    draw = model.draws(min(size), [size])
    (channels, *sides), (width, height) = model.latent_shapes([size])[0], size
    picture: dict[str, np.ndarray]
    if "vae" in model.deferred:
        picture = {"moments": np.zeros((2 * channels, *sides), np.float16)}
    else:
        picture = {"pixel_values": rng.integers(0, 256, (3, height, width), dtype=np.uint8)}
    ids = model.tokenize("a photo")
    if "text_encoder" in model.deferred:
        text = {"text_states": np.zeros((len(ids), model.text_config.hidden_size), np.float16)}
    else:
        text = {"input_ids": ids}
    samples = [{**picture, **text, **draw(rng, 0)} for _ in range(count)]
    return {name: paddle.to_tensor(value) for name, value in collate(samples).items()}
