"""Drawing by several processes: each loads the models once and has a card, or a share of the cores, of its own."""

import functools
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sd import devices
from sd.logs import prepare_worker
from sd.processes.pool import run_local
from sd.sampling.job import Job, describe, draw, picture_bar, unfinished
from sd.sampling.models import Models, load_models
from sd.sampling.options import SampleOptions
from sd.sampling.pipeline import Settings
from sd.sampling.sources import fixed_unet


@dataclass(frozen=True)
class Source:
    """What a process needs to load the models. models: (name, value) of load_models' arguments."""

    models: tuple[tuple[str, Any], ...]
    device: str | None

    @classmethod
    def of(cls, options: SampleOptions, unet: str | None, variant: str | None) -> "Source":
        """The models of a UNet and of the options, by names of the same weights for every process."""
        unet = fixed_unet(unet, variant=variant, **options.models)
        names = {"unet": unet, "variant": variant, "dtype": options.dtype} | options.models
        return cls(tuple(names.items()), options.device)


@functools.lru_cache(maxsize=1)
def loaded(source: Source) -> tuple[Models, str]:
    """(models, id of their weights) of this process."""
    devices.select(source.device, dict(source.models).get("dtype", "fp32"))
    models = load_models(**dict(source.models))
    return models, models.weights_id()


def run_shared(
    work: Callable[[Any], Any], tasks: Iterable[Any], processes: int, source: Source
) -> Generator[Any, None, None]:
    """Yield `work(task)` for each task, in order, from processes that share out this machine's cards or cores.

    A card that the source names is everyone's.
    """
    device = devices.current()
    named = source.device and devices.parse(source.device).index is not None
    yield from run_local(work, tasks, processes, [] if named else devices.shares(device, processes), prepare_worker)


def draw_shared(source: Source, models: Models, jobs: Sequence[Job], settings: Settings, processes: int) -> None:
    """As `draw`, by several processes; models: this process's of the source."""
    todo = unfinished(jobs, describe(models, settings, models.weights_id()))
    size = settings.batch_size
    tasks = ((source, todo[start : start + size], settings) for start in range(0, len(todo), size))
    with picture_bar(len(todo)) as bar, closing(run_shared(_draw, tasks, processes, source)) as counts:
        for count in counts:
            bar.update(count)


def _draw(task):
    source, jobs, settings = task
    models, weights_id = loaded(source)
    draw(models, jobs, settings, weights_id, quiet=True)
    return len(jobs)
