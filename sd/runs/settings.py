"""The settings that decide a run's result, and `run.json`, which is enough to reproduce it."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from sd.data.parts import storage
from sd.diffusion.schedule import ZERO_SNR_FLOOR
from sd.errors import InputError
from sd.runs.checkpoint import read_json
from sd.runs.skipped import SkippedSamples

# What decides the numbers, given the same data. Ranks do not, since the order is counted in samples.
_MODEL = [
    "prediction_type",
    "noise_offset",
    "snr_gamma",
    "input_perturbation",
    "rescale_betas_zero_snr",
    "train_text_encoder",
    "model_max_length",
]
_DATA = ["resolution", "enlarge", "interpolation", "caption_dropout"]
_DATA += ["caption_shares", "shuffle_tags", "keep_tags", "tag_dropout"]
_TRAINING = [
    "seed",
    "learning_rate",
    "unet_learning_rate",
    "text_encoder_learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "fp16",
    "bf16",
    "fp16_opt_level",
    "optim",
    "use_ema",
    "ema_decay",
    "ema_start_step",
]
_RESIZER_CHANGES = (
    "pixels of photographs differ by up to 3 of 255, at hard edges by more; those of JPEGs of 2.3 times the resolution "
    "and more by 1 in the mean"
)
_SCHEDULE_LENGTH = ("max_steps", "num_cycles", "lr_end", "power")
_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddlenlp", "ppdiffusers", "numpy", "visualdl")
# Names that may hold a secret are not written down.
_ENVIRONMENT = ("FLAG_", "FLAGS_", "PADDLE_TRAINERS_NUM", "MKL_", "OMP_", "CUDA_VISIBLE_DEVICES")


# Values of checkpoints of earlier versions, which did not record them.
_EARLIER = {"snr_weight_floor": 0.0, "resizer": "matrix products", "enlarge": False, "data_filter": None}
_EARLIER |= {"caption_shares": None, "shuffle_tags": None, "keep_tags": 0, "tag_dropout": 0.0}
_EARLIER |= {"aspect_buckets": None, "group_size": None}
_HASH_DIGITS = 16


def result_settings(
    model_args: Any,
    data_args: Any,
    training_args: Any,
    fingerprint: str,
    buffer_size: int,
    hashes: dict[str, str],
    resizer: str | None,
    data_filter: str | None = None,
) -> dict[str, Any]:
    """The settings that decide the result of a run, as plain JSON values.

    buffer_size: the rows of a shuffle window as they came out. hashes: component that is not trained -> hash of it.
    resizer: name of what resizes the images; None for training from a cache. data_filter: all filters in normal form.
    """
    settings = {"file_list_fingerprint": fingerprint, "buffer_size": buffer_size, "data_filter": data_filter}
    if resizer:
        settings["resizer"] = resizer
    settings.update({component: f"sha256 {value[:_HASH_DIGITS]}" for component, value in hashes.items()})
    constant = str(_plain(training_args.lr_scheduler_type)).startswith("constant")
    training_names = _TRAINING if constant else (*_TRAINING, *_SCHEDULE_LENGTH)
    for arguments, names in ((model_args, _MODEL), (data_args, _DATA), (training_args, training_names)):
        settings.update({name: _plain(getattr(arguments, name)) for name in names})
    micro_batch = training_args.per_device_train_batch_size * training_args.dataset_world_size
    settings["global_batch_size"] = micro_batch * training_args.gradient_accumulation_steps
    if model_args.snr_gamma is not None and model_args.rescale_betas_zero_snr:
        settings["snr_weight_floor"] = ZERO_SNR_FLOOR
    return settings


def checkpoint_settings(checkpoint: str | Path) -> dict[str, Any]:
    """The settings that a checkpoint keeps, with those that earlier versions did not write as far as they are known."""
    stored = read_json(checkpoint, "settings.json")
    return {**_EARLIER, "use_ema": (Path(checkpoint) / "ema_state.json").exists(), **stored}


def check_same_run(
    before: dict[str, Any], now: dict[str, Any], checkpoint: str | Path, allow_changed: bool, file_list: str = ""
) -> str:
    """Raise InputError if a resumed run's settings differ from the checkpoint's. Returns the differences as text.

    file_list: the list that is read now; that of the checkpoint's run stands in its run.json.
    """
    changed = [name for name in sorted(before.keys() & now.keys()) if before[name] != now[name]]
    lines = [f"{name}: {before[name]!r} -> {now[name]!r}" for name in changed if name != "file_list_fingerprint"]
    if "file_list_fingerprint" in changed:
        old, new = (settings["file_list_fingerprint"][:8] for settings in (before, now))
        earlier = _file_list_of(Path(checkpoint).parent / "run.json")
        text = f"{earlier or 'the list'} -> {file_list}" if earlier != file_list else f"the parts of {file_list}"
        lines.insert(0, f"data: {text} (fingerprint {old} -> {new})")
    text = ", ".join(lines)
    if "resizer" in changed:
        text += f"; {_RESIZER_CHANGES}"
    if changed and not allow_changed:
        raise InputError(
            f"{checkpoint} was made with other settings ({text}); restore them, choose another --output_dir, "
            "or resume with --allow_changed_resume"
        )
    return text


def _file_list_of(run_json: Path) -> str | None:
    try:
        return json.loads(run_json.read_text())["arguments"]["SDDataArguments"]["file_list"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_run_json(
    output_dir: str | Path,
    arguments: Iterable[Any],
    fingerprint: str,
    resumed_from: str | Path | None = None,
    skipped: Any = (),
) -> None:
    """Keep arguments, versions, commit, data fingerprint and skipped samples (SkippedSamples) in output_dir/run.json;
    earlier starts stay listed."""
    path = Path(output_dir) / "run.json"
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "resumed_from": str(resumed_from) if resumed_from else None,
        "command": [sys.executable, *sys.argv],
        "folder": str(Path.cwd()),
        "environment": {key: os.environ[key] for key in sorted(os.environ) if key.startswith(_ENVIRONMENT)},
        "python": platform.python_version(),
        "machine": platform.platform(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "git_commit": _git_commit(),
        "file_list_fingerprint": fingerprint,
        "arguments": {
            type(group).__name__: {field.name: _plain(getattr(group, field.name)) for field in _fields(group)}
            for group in arguments
        },
        "skipped_samples": [entry.plain() for entry in skipped],
    }
    try:
        _write(path, {**start, "earlier_starts": _earlier_starts(path)})
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; free some space or choose another folder"
        ) from None


def record_skipped(output_dir: str | Path, entries: Iterable[SkippedSamples]) -> None:
    """Record in run.json the samples that the run skips. skipped.json decides: a failure here is ignored."""
    path = Path(output_dir) / "run.json"
    with suppress(OSError, ValueError):
        _write(path, json.loads(path.read_text()) | {"skipped_samples": [entry.plain() for entry in entries]})


def _write(path, run):
    storage.write_atomic(path, (json.dumps(run, indent=2) + "\n").encode())


def _earlier_starts(path):
    try:
        before = json.loads(path.read_text())
        earlier = before.pop("earlier_starts", [])
    except (OSError, ValueError, AttributeError):
        return []
    return [*earlier, before]


def _fields(group):
    return [field for field in dataclasses.fields(group) if hasattr(group, field.name) and "_key" not in field.name]


def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = getattr(value, "value", value)
    return value if isinstance(value, (str, int, float, bool, type(None), dict)) else str(value)


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git_commit():
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
