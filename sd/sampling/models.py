"""The four models of a pipeline, loaded by name or folder, checked against each other, and the run's schedule."""

import logging
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd import devices
from sd.cpu.layers import speed_up
from sd.data.parts import storage
from sd.diffusion.model import check_components
from sd.diffusion.schedule import sampler_config
from sd.errors import InputError, first_line
from sd.flags.arguments import check_choice
from sd.models.attention import use_fastest_attention
from sd.models.hashes import content_id, tokenizer_hash
from sd.models.loading import load_component
from sd.models.single_file import SingleFile, is_single_file
from sd.models.weights import find_weights, read_config
from sd.runs.checkpoint import MANIFEST, find_problem
from sd.sampling.pipeline import Networks, make_scheduler, vae_factor
from sd.sampling.settings import SCHEDULERS
from sd.sampling.sources import find_sources

logger = logging.getLogger(__name__)
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Settings of a sampler that are the sampler's own affair, not the training's.
_SAMPLERS_OWN = ("clip_sample", "set_alpha_to_one", "steps_offset")


@dataclass
class Models(Networks):
    """A pipeline's components, ready to draw.

    schedule: the settings of training that a sampler must follow. sampler: its short name if nobody names another.
    side: pixels of the training images. label: for people. sources: component -> (name or folder, sub-folder, variant).
    versions: component -> what changes when the files of its source do.
    """

    schedule: dict
    sampler: str
    side: int
    label: str
    sources: dict
    versions: dict

    def is_stale(self) -> bool:
        """Whether the files of a component have changed since it was loaded."""
        return any(_version(source) != self.versions[component] for component, source in self.sources.items())

    def scheduler(self, name: str | None = None) -> Any:
        """A fresh scheduler by its short name."""
        return make_scheduler(name or self.sampler, **self.schedule)

    def weights_id(self) -> str:
        """Digits that stand for all weights and the tokenizer: other weights or words, other digits."""
        layers = content_id(self.unet, self.text_encoder, self.vae)
        return f"{layers}-{tokenizer_hash(self.tokenizer)[:6]}"


def load_models(
    unet: str | Path | None = None,
    *,
    variant: str | None = None,
    dtype: str = "fp32",
    shared: "Models | None" = None,
    **names: Any,
) -> Models:
    """Load the components that `sd.sampling.sources.find_sources` finds by `unet`, `variant` and `names`.

    shared: Models whose components are reused where they are the same. Raises InputError if a component cannot be
    loaded or they do not fit.
    """
    check_choice("dtype", dtype, DTYPES)
    devices.check_precision(devices.current(), dtype)
    found = find_sources(unet, variant=variant, **names)
    sources, run = found.components, found.run
    _warn_if_damaged(found.location, variant)
    versions = {component: _version(source) for component, source in sources.items()}
    components = {
        component: _load(component, source, versions[component], dtype, shared) for component, source in sources.items()
    }
    longest = min(run.get("model_max_length") or 10**9, components["text_encoder"].config.max_position_embeddings)
    components["tokenizer"].model_max_length = min(longest, components["tokenizer"].model_max_length)
    check_components(**components, max_length=2)
    _choose_kernels(components, dtype)
    schedule, sampler = _schedule(found.location, found.repository, run)
    return Models(
        **components,
        schedule=schedule,
        sampler=sampler,
        side=run.get("resolution") or components["unet"].config.sample_size * vae_factor(components["vae"]),
        label=found.location.label + (f" {variant}" if variant else ""),
        sources=sources,
        versions=versions,
    )


def _warn_if_damaged(location, variant):
    """A checkpoint that is named is taken as it is; of an output_dir the newest intact one was found.

    Weights are read for it, by the parent of several processes alone.
    """
    folder = location.checkpoint
    if folder and (folder / MANIFEST).exists() and multiprocessing.parent_process() is None:
        weights = find_weights(location.folder, variant)
        if problem := find_problem(folder, only=f"unet/{weights.name}"):
            logger.warning("%s is damaged: %s; it is used as it is", folder, problem)


def _choose_kernels(components: dict[str, Any], dtype: str) -> None:
    """The fastest attention on a GPU, sd.cpu's layers on a CPU."""
    if devices.current().kind == "gpu":
        for component in ("unet", "vae"):
            chosen = use_fastest_attention(components[component], [DTYPES[dtype]])
            logger.info(
                "attention of the %s: %s", component, ", ".join(f"{name} for {of}" for of, name in chosen.items())
            )
    else:
        for component in ("unet", "vae", "text_encoder"):
            speed_up(components[component], frozen=True)


def _version(source):
    """What changes when the files of a source do; "" for a published model."""
    name, subfolder, _ = source
    return storage.versions_below(Path(name, subfolder or ""))


def _load(component, source, version, dtype, shared):
    # A tokenizer is quick to load, and its longest text is the run's own.
    if (
        component != "tokenizer"
        and shared
        and (shared.sources[component], shared.versions[component]) == (source, version)
    ):
        return getattr(shared, component)
    loaded = load_component(component, *source)
    return loaded if component == "tokenizer" or dtype == "fp32" else loaded.to(dtype=DTYPES[dtype])


def _schedule(location, repository, run):
    """(settings of training for the sampler, the sampler's default name).

    A checkpoint of this toolkit knows its own; else the scheduler folder beside the UNet, else the repository's.
    """
    names = [*(name for name in sampler_config() if name not in _SAMPLERS_OWN), "trained_betas"]
    if "prediction_type" in run:
        return {name: run[name] for name in names if name in run}, "ddim"
    folders = [Path(location.folder).parent / "scheduler", Path(repository) / "scheduler"]
    path = next((folder / "scheduler_config.json" for folder in folders if folder.is_dir()), None)
    if is_single_file(repository):
        file = SingleFile(repository)
        config = file.configs.get("scheduler", {})
        if file.is_v2 and not config:
            logger.warning(
                "%s does not say its prediction type; epsilon is taken, right for v2 at 512 pixels; a model of 768 "
                "pixels needs its folder with scheduler/scheduler_config.json",
                repository,
            )
    else:
        config = read_config(path) if path else _published_schedule(repository)
    name = next((short for short, long in SCHEDULERS.items() if long == config.get("_class_name")), "ddim")
    return {name: config[name] for name in names if config.get(name) is not None}, name


def _published_schedule(repository):
    if Path(repository).is_dir():
        return {}
    from ppdiffusers import DDIMScheduler

    try:
        return DDIMScheduler.load_config(repository, subfolder="scheduler")
    except Exception as error:  # the libraries raise whatever the failing layer below them raised
        raise InputError(
            f"{repository}/scheduler could not be loaded ({first_line(error)}); point --pretrained_model to a local "
            "folder"
        ) from error
