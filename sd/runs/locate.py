"""Names to weights: a checkpoint by any of its names, and the settings of its run."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd.data.parts import storage
from sd.errors import ArgumentError, InputError
from sd.models.single_file import is_single_file
from sd.runs.checkpoint import list_checkpoints, newest_intact_checkpoint

PUBLISHED = "CompVis/stable-diffusion-v1-4"
_MODELS = ("pretrained_model_name_or_path", "vae_name_or_path", "text_encoder_name_or_path", "tokenizer_name")
_PATHS = (*_MODELS, "file_list")


@dataclass
class Location:
    """Where a UNet lies. folder: its own, or a published name; checkpoint: the checkpoint-N around it, if any."""

    folder: str
    checkpoint: Path | None = None

    @property
    def label(self) -> str:
        return self.checkpoint.name if self.checkpoint else self.folder


def find_unet(name: str | Path) -> Location:
    """The UNet meant by `name`: its folder, a checkpoint-N, an output_dir (then its newest intact checkpoint), a model
    repository, a whole model in one file, or a published name. Raises InputError, listing the checkpoints that there
    are, if nothing fits."""
    path = Path(name)
    if is_single_file(path):
        return Location(str(path))
    if (path / "config.json").is_file():
        return Location(str(path), path.parent if list_checkpoints(path.parent.parent).count(path.parent) else None)
    if (path / "unet" / "config.json").is_file():
        return Location(str(path / "unet"), path if path.name.startswith("checkpoint-") else None)
    if list_checkpoints(path):
        newest = newest_intact_checkpoint(path)
        if newest is None:
            raise InputError(f"{name}: every checkpoint in it is damaged; name one with --unet {name}/checkpoint-N")
        return find_unet(newest)
    if not path.exists() and "checkpoint-" not in str(name) and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+){1,2}", str(name)):
        return Location(str(name))
    near = "" if path.exists() else storage.near_path(path)
    raise InputError(f"{name}: no UNet there; {f'did you mean {near}? ' if near else ''}{_list_nearby(path)}")


def list_choices(checkpoint: str | Path | None = None, output_dir: str | Path | None = None) -> dict[str, str]:
    """The checkpoints to choose from: {label: name for `find_unet`}, the newest first.

    output_dir: a run's folder, whose checkpoints are listed as they are now, none if it has not saved one yet.
    checkpoint: one model alone, unless it is such a folder; None is the published Stable Diffusion.
    Raises InputError if there is no such thing.
    """
    if output_dir is None and checkpoint is not None and list_checkpoints(checkpoint):
        output_dir = checkpoint
    if output_dir is not None:
        if not Path(output_dir).is_dir():
            raise ArgumentError("output_dir", str(output_dir), f": no such folder; {_list_nearby(Path(output_dir))}")
        return {folder.name: str(folder) for folder in reversed(list_checkpoints(output_dir))}
    if checkpoint is None:
        return {PUBLISHED: f"{PUBLISHED}/unet"}
    location = find_unet(checkpoint)
    return {location.label: location.folder}


def _list_nearby(path):
    """The checkpoints nearest to a path that does not exist, as a phrase."""
    for folder in (path, *path.parents[:3]):
        if checkpoints := list_checkpoints(folder):
            return f"{folder} has {', '.join(checkpoint.name for checkpoint in checkpoints)}"
    nearest = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path())
    return f"{nearest} holds no checkpoint-N; name output_dir/checkpoint-N/unet or a published model"


def run_settings(checkpoint: str | Path | None) -> dict[str, Any]:
    """What a checkpoint was trained with: flag -> value, from its settings.json and its run's run.json if there is one.

    Relative folders are made good against the folder in which the run was started.
    """
    if checkpoint is None:
        return {}
    run = _read_json(Path(checkpoint).parent / "run.json")
    arguments = {name: value for group in run.get("arguments", {}).values() for name, value in group.items()}
    for name in _PATHS:
        if arguments.get(name) and not Path(arguments[name]).exists():
            resolved = Path(run.get("folder", "."), arguments[name])
            arguments[name] = str(resolved) if resolved.exists() else arguments[name]
    return arguments | _read_json(Path(checkpoint) / "settings.json")


def _read_json(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); restore it, or move it away and give the flags") from None
