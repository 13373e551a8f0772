"""The loss on held-out records with fixed draws: comparable from step to step and from run to run."""

import numpy as np
import paddle

from sd.data.streaming.dataset import raise_if_failed
from sd.diffusion.schedule import TIMESTEP_BANDS

_FIRST_TIMESTEPS = [first for first, _ in TIMESTEP_BANDS]


def evaluate_loss(model, dataset, collate, batch_size, prefix="eval", rank=0, world_size=1):
    """Mean squared error over a map-style dataset, all and by timestep band, over all ranks. Returns name -> value.

    Each record counts once; rank r takes the records r, r + world_size, ...
    """
    sums = np.zeros([len(TIMESTEP_BANDS), 2])  # loss, count
    indices = range(rank, len(dataset), world_size)
    model.eval()
    with paddle.no_grad():
        for start in range(0, len(indices), batch_size):
            batch = collate([dataset[index] for index in indices[start : start + batch_size]])
            raise_if_failed(batch)
            outputs = model(**{name: paddle.to_tensor(value) for name, value in batch.items()})
            bands = np.searchsorted(_FIRST_TIMESTEPS, batch["timestep"], side="right") - 1
            losses = outputs["sample_loss"].numpy().astype(np.float64)
            np.add.at(sums, (bands, 0), losses)
            np.add.at(sums, (bands, 1), 1)
    if world_size > 1:
        total = paddle.to_tensor(sums)
        paddle.distributed.all_reduce(total)
        sums = total.numpy()
    return _metrics(sums, prefix)


def describe_metrics(metrics: dict[str, float], prefix: str = "eval") -> str:
    """`eval_loss 0.1234567 over 33 records | timesteps 0000-0249 0.25 | ...` of what `evaluate_loss` returned."""
    head = f"{prefix}_loss"
    bands = [
        f"{name.removeprefix(head + '_')} {value:.7g}" for name, value in metrics.items() if name.startswith(head + "_")
    ]
    first = f"{head} {metrics[head]:.7g} over {metrics[f'{prefix}_records']:.0f} records"
    return " | ".join([first, *([f"timesteps {bands[0]}", *bands[1:]] if bands else [])])


def _metrics(sums, prefix):
    metrics = {f"{prefix}_loss": sums[:, 0].sum() / max(sums[:, 1].sum(), 1), f"{prefix}_records": sums[:, 1].sum()}
    for (first, last), (loss, count) in zip(TIMESTEP_BANDS, sums, strict=True):
        if count:
            metrics[f"{prefix}_loss_{first:04d}-{last:04d}"] = loss / count
    return {name: float(value) for name, value in metrics.items()}
