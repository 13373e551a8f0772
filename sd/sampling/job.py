"""Prompts and settings -> a folder of pictures, resuming where an earlier call was cut off."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sd.logs import bar_seconds
from sd.sampling.files import read_png_text, write_png
from sd.sampling.models import Models
from sd.sampling.pipeline import Settings, check_size, default_batch_size, stream_images, truncated_text

_MAX_SHOWN_CHARS = 200
_BAR = "{l_bar}{bar}| {whole}/{total} pictures [{elapsed}<{remaining}]"
_HAIR = 1e-6  # of a picture: its shares add up to a bit less than it


@dataclass(frozen=True)
class Job:
    """One picture to be drawn, and its file."""

    prompt: str
    seed: int
    path: Path


class _PictureBar(tqdm):
    """A bar that moves with every UNet call and counts whole pictures."""

    @property
    def format_dict(self):
        values = super().format_dict
        return values | {"whole": int(values["n"] + _HAIR)}


def settings_for(
    models: Models,
    *,
    height: int | None = None,
    width: int | None = None,
    scheduler: str | None = None,
    batch_size: int | None = None,
    **others: Any,
) -> Settings:
    """Settings with what was left open chosen by the models: the training's size, the run's sampler."""
    height, width = height or models.side, width or models.side
    batch_size = batch_size or default_batch_size(models.unet, models.vae, height, width)
    scheduler = scheduler or models.sampler
    return Settings(height=height, width=width, scheduler=scheduler, batch_size=batch_size, **others)


def settings_from(options: Any, models: Models, device: str) -> Settings:
    """Settings as options ask for them: SampleOptions, or another dataclass with the fields of Settings but `device`.

    Raises InputError for a size that the VAE cannot draw.
    """
    chosen = {field.name: getattr(options, field.name) for field in fields(Settings) if field.name != "device"}
    settings = settings_for(models, device=device, **chosen)
    check_size(models.vae, settings.height, settings.width)
    return settings


def draw(
    models: Models,
    jobs: Sequence[Job],
    settings: Settings,
    weights_id: str | None = None,
    quiet: bool = False,
    on_step: Callable[[float], None] | None = None,
) -> None:
    """Draw every job's picture into its file, with a progress bar unless quiet.

    on_step: called after every UNet call with the pictures that it stands for; what it raises ends the drawing.
    A file that holds just this picture already (same prompt, settings and weights) is left as it is.
    """
    description = describe(models, settings, weights_id or models.weights_id())
    todo = unfinished(jobs, description, quiet)
    with picture_bar(len(todo), quiet) as bar:

        def step(share):
            bar.update(min(share, bar.total - bar.n))  # shares add up to a hair more than the whole
            if on_step:
                on_step(share)

        stream = stream_images(
            models,
            [job.prompt for job in todo],
            [job.seed for job in todo],
            models.scheduler(settings.scheduler),
            settings,
            step,
        )
        for job, image in zip(todo, stream, strict=True):
            write_png(job.path, image, job.prompt, description | {"seed": job.seed})
        bar.update(bar.total - bar.n)


def unfinished(jobs: Sequence[Job], description: dict[str, Any], quiet: bool = False) -> list[Job]:
    """The jobs whose file does not hold just this picture already; says how many do unless quiet.

    description: of `describe`.
    """
    todo = [job for job in jobs if read_png_text(job.path) != (job.prompt, description | {"seed": job.seed})]
    if len(todo) < len(jobs) and not quiet:
        print(f"{len(jobs) - len(todo)} of {len(jobs)} pictures are there already", flush=True)
    return todo


def picture_bar(total: int, quiet: bool = False) -> tqdm:
    """A progress bar of pictures."""
    return _PictureBar(total=total, bar_format=_BAR, mininterval=bar_seconds(), disable=quiet or not total)


def describe(models: Models, settings: Settings, weights_id: str) -> dict[str, Any]:
    """What a PNG file says of its picture, beside prompt and seed."""
    return asdict(settings) | models.schedule | {"model": models.label, "weights": weights_id}


def warn_truncated_prompts(tokenizer: Any, prompts: Iterable[str], write: Callable[[str], object] = print) -> None:
    """Warn of each prompt that is truncated, with the text that is cut off."""
    for number, prompt in enumerate(dict.fromkeys(prompts), start=1):
        if cut := truncated_text(tokenizer, prompt):
            cut = cut if len(cut) <= _MAX_SHOWN_CHARS else cut[:_MAX_SHOWN_CHARS] + "..."
            write(f"prompt {number} is truncated to the model's {tokenizer.model_max_length} tokens; cut off: {cut!r}")
