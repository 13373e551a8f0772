"""The loss on held-out records with fixed draws: comparable from step to step and from run to run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle

from sd.data.parts import storage
from sd.data.streaming.dataset import raise_if_failed
from sd.diffusion.schedule import TIMESTEP_BANDS
from sd.flags.aspect import format_size

_FIRST_TIMESTEPS = [first for first, _ in TIMESTEP_BANDS]
_BANDS = len(TIMESTEP_BANDS)
_BUCKET, _SOURCE = "_bucket_", "_source_"


def evaluate_loss(
    model: Any,
    dataset: Any,
    collate: Callable[..., Any],
    batch_size: int,
    prefix: str = "eval",
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, float]:
    """Mean squared error over a map-style dataset, all, by timestep band, by bucket and by source, over all ranks.
    Returns name -> value.

    Each record counts once; rank r takes the records r, r + world_size, ... A dataset with buckets has `sizes`, the
    (width, height) of each, and `bucket(index)`. The sources are those of the dataset's Catalog, if it has one of
    several.
    """
    sizes: Any = getattr(dataset, "sizes", None) or ()
    catalog: Any = getattr(dataset, "catalog", None)
    names = _source_names(catalog.names) if catalog is not None and len(catalog.names) > 1 else []
    first_source = _BANDS + len(sizes)
    sums: Any = np.zeros([first_source + len(names), 2])  # loss, count; of the bands, then of buckets and sources
    model.eval()
    with paddle.no_grad():
        for bucket, indices in _batches(dataset, range(rank, len(dataset), world_size), batch_size, bool(sizes)):
            batch = collate([dataset[index] for index in indices])
            raise_if_failed(batch)
            outputs = model(**{name: paddle.to_tensor(value) for name, value in batch.items()})
            bands = np.searchsorted(_FIRST_TIMESTEPS, batch["timestep"], side="right") - 1
            losses = outputs["sample_loss"].numpy().astype(np.float64)
            np.add.at(sums, (bands, 0), losses)
            np.add.at(sums, (bands, 1), 1)
            if bucket is not None:
                sums[_BANDS + bucket] += losses.sum(), len(losses)
            if names:
                sources: Any = np.array(
                    [first_source + catalog.source_of(part) for part, _ in np.asarray(batch["position"])]
                )
                np.add.at(sums, (sources, 0), losses)
                np.add.at(sums, (sources, 1), 1)
    if world_size > 1:
        total = paddle.to_tensor(sums)
        paddle.distributed.all_reduce(total)
        sums = total.numpy()
    labels = [f"{_BUCKET}{format_size(size)}" for size in sizes] + [f"{_SOURCE}{name}" for name in names]
    return _metrics(sums, prefix, labels)


def _batches(dataset, indices, batch_size, by_bucket):
    """(bucket or None, indices of a batch): batches of one bucket, each bucket's in order."""
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(dataset.bucket(index) if by_bucket else 0, []).append(index)
    for bucket in sorted(groups):
        for start in range(0, len(groups[bucket]), batch_size):
            yield bucket if by_bucket else None, groups[bucket][start : start + batch_size]


def _source_names(paths):
    """File names of the lists without their ending; of equal ones the second is `name-2`."""
    names = []
    for path in paths:
        stem = storage.base_name(path).removesuffix(".list").removesuffix(".filelist")
        number = sum(name == stem or name.startswith(f"{stem}-") for name in names)
        names.append(f"{stem}-{number + 1}" if stem in names else stem)
    return names


def describe_metrics(metrics: dict[str, float], prefix: str = "eval") -> str:
    """`eval_loss 0.1234567 over 33 records | timesteps 0000-0249 0.25 | ... | buckets 320x192 0.2 | ... | sources a
    0.2 | b 0.3` of what
    `evaluate_loss` returned."""
    head = f"{prefix}_loss"
    groups: dict[str, list[str]] = {"timesteps": [], "buckets": [], "sources": []}
    kinds = {"buckets": head + _BUCKET, "sources": head + _SOURCE, "timesteps": head + "_"}
    for name, value in metrics.items():
        kind = next((kind for kind, start in kinds.items() if name.startswith(start)), None)
        if kind is not None:
            groups[kind].append(f"{name.removeprefix(kinds[kind])} {value:.7g}")
    first = f"{head} {metrics[head]:.7g} over {metrics[f'{prefix}_records']:.0f} records"
    return " | ".join([first, *(f"{group} {' | '.join(values)}" for group, values in groups.items() if values)])


def _metrics(sums, prefix, others):
    bands = sums[:_BANDS]
    metrics = {f"{prefix}_loss": bands[:, 0].sum() / max(bands[:, 1].sum(), 1), f"{prefix}_records": bands[:, 1].sum()}
    names = [f"_{first:04d}-{last:04d}" for first, last in TIMESTEP_BANDS] + others
    for name, (loss, count) in zip(names, sums, strict=True):
        if count:
            metrics[f"{prefix}_loss{name}"] = loss / count
    return {name: float(value) for name, value in metrics.items()}
