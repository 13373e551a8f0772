"""The loss on held-out records with fixed draws: comparable from step to step and from run to run."""

import numpy as np
import paddle

from sd.data.parts import storage
from sd.data.streaming.dataset import raise_if_failed
from sd.diffusion.schedule import TIMESTEP_BANDS

_FIRST_TIMESTEPS = [first for first, _ in TIMESTEP_BANDS]
_BANDS = len(TIMESTEP_BANDS)
_SOURCE = "_source_"


def evaluate_loss(model, dataset, collate, batch_size, prefix="eval", rank=0, world_size=1):
    """Mean squared error over a map-style dataset, all, by timestep band and by source, over all ranks. Returns
    name -> value.

    Each record counts once; rank r takes the records r, r + world_size, ... The sources are those of the dataset's
    Catalog, if it has one of several.
    """
    catalog = getattr(dataset, "catalog", None)
    names = _source_names(catalog.names) if catalog is not None and len(catalog.names) > 1 else []
    sums = np.zeros([_BANDS + len(names), 2])  # loss, count; of the bands, then of the sources
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
            if names:
                sources = np.array([_BANDS + catalog.source_of(part) for part, _ in np.asarray(batch["place"])])
                np.add.at(sums, (sources, 0), losses)
                np.add.at(sums, (sources, 1), 1)
    if world_size > 1:
        total = paddle.to_tensor(sums)
        paddle.distributed.all_reduce(total)
        sums = total.numpy()
    return _metrics(sums, prefix, names)


def _source_names(paths):
    """File names of the lists without their ending; of equal ones the second is `name-2`."""
    names = []
    for path in paths:
        stem = storage.base_name(path).removesuffix(".list").removesuffix(".filelist")
        number = sum(name == stem or name.startswith(f"{stem}-") for name in names)
        names.append(f"{stem}-{number + 1}" if stem in names else stem)
    return names


def describe_metrics(metrics: dict[str, float], prefix: str = "eval") -> str:
    """`eval_loss 0.1234567 over 33 records | timesteps 0000-0249 0.25 | ... | sources a 0.2 | b 0.3` of what
    `evaluate_loss` returned."""
    head = f"{prefix}_loss"
    groups: dict[str, list[str]] = {"timesteps": [], "sources": []}
    for name, value in metrics.items():
        if name.startswith(head + _SOURCE):
            groups["sources"].append(f"{name.removeprefix(head + _SOURCE)} {value:.7g}")
        elif name.startswith(head + "_"):
            groups["timesteps"].append(f"{name.removeprefix(head + '_')} {value:.7g}")
    first = f"{head} {metrics[head]:.7g} over {metrics[f'{prefix}_records']:.0f} records"
    return " | ".join([first, *(f"{group} {' | '.join(told)}" for group, told in groups.items() if told)])


def _metrics(sums, prefix, names):
    sums, of_sources = sums[:_BANDS], sums[_BANDS:]
    metrics = {f"{prefix}_loss": sums[:, 0].sum() / max(sums[:, 1].sum(), 1), f"{prefix}_records": sums[:, 1].sum()}
    for (first, last), (loss, count) in zip(TIMESTEP_BANDS, sums, strict=True):
        if count:
            metrics[f"{prefix}_loss_{first:04d}-{last:04d}"] = loss / count
    for name, (loss, count) in zip(names, of_sources, strict=True):
        if count:
            metrics[f"{prefix}_loss{_SOURCE}{name}"] = loss / count
    return {name: float(value) for name, value in metrics.items()}
