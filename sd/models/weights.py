"""Weights of one model between a local folder's safetensors and a Paddle layer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sd.errors import InputError
from sd.models.weight_file import PADDLE, SAFETENSORS, WeightFile

if TYPE_CHECKING:
    import paddle

# Names under which ppdiffusers, diffusers, paddlenlp and transformers keep weights.
WEIGHT_NAMES = ("diffusion_paddle_model", "diffusion_pytorch_model", "model", "model_state", "pytorch_model")
# safetensors first; the others are pickles, of which plain arrays are read.
WEIGHT_SUFFIXES = (SAFETENSORS, PADDLE, ".bin")
# Buffers that other libraries save and Paddle's models compute.
NOT_WEIGHTS = ("position_ids",)


def read_config(path: str | Path) -> dict[str, Any]:
    """A model's configuration, a JSON object, as a dict."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable model configuration ({error}); expected a JSON file") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a model configuration; expected a JSON object")
    return config


def find_weights(folder: str | Path, variant: str | None = None) -> Path:
    """The weight file in a model's folder, of one variant (such as `ema`). Raises InputError if there is none."""
    folder = Path(folder)
    endings = [f".{variant}{suffix}" if variant else suffix for suffix in WEIGHT_SUFFIXES]
    candidates = [folder / (name + ending) for ending in endings for name in WEIGHT_NAMES]
    for path in candidates:
        if path.is_file():
            return path
    raise InputError(f"{folder}: no weights; expected one of {', '.join(path.name for path in candidates[:4])}, ...")


def load_weights(model: "paddle.nn.Layer", path: str | Path) -> None:
    """Copy the weights of one file into `model`, tensor by tensor; every weight must be there and fit.

    Files of PyTorch libraries keep the matrix of a linear layer transposed, and some keep older names.
    """
    file = WeightFile(path)
    parameters = model.state_dict()
    linear = linear_weights(model) if file.from_torch else set()
    names = _current_names(model, [name for name in file.shapes if not name.endswith(NOT_WEIGHTS)])
    _check_names(file.path, set(parameters), set(names))
    for name, stored_name in names.items():
        value = file.array(stored_name)
        set_weight(parameters[name], value.T if name in linear else value, f"{path}: {name}")


def linear_weights(model: "paddle.nn.Layer") -> set[str]:
    """Names of the matrices of linear layers, which PyTorch and Paddle keep transposed to each other."""
    from paddle.nn import Linear

    return {f"{name}.weight" for name, layer in model.named_sublayers() if isinstance(layer, Linear)}


def set_weight(parameter: "paddle.Tensor", value: np.ndarray, location: str) -> None:
    """Give a parameter its value. Raises InputError, which begins with `where`, if the shapes differ."""
    if list(value.shape) != list(parameter.shape):
        raise InputError(
            f"{location} has shape {list(value.shape)}, the configuration beside it asks for {list(parameter.shape)}; "
            "weights and config.json do not belong together"
        )
    parameter.set_value(value)


def _current_names(model, stored_names):
    """{the model's name: the file's name} for files whose names come from older or newer libraries."""
    names = {name: name for name in stored_names}
    if hasattr(model, "_convert_deprecated_attention_blocks"):  # the VAE's attention before diffusers 0.16
        model._convert_deprecated_attention_blocks(names)
    if hasattr(model, "text_model") and not any(name.startswith("text_model.") for name in names):  # transformers 5
        names = {f"text_model.{name}": stored for name, stored in names.items()}
    renamed = getattr(model, "_deprecated_dict", None)  # paddlenlp's CLIP
    if renamed and any(renamed["key"] in name for name in names):
        for old, new in renamed["name_mapping"].items():
            names = {name.replace(old, new): stored for name, stored in names.items()}
    return names


def _check_names(path, expected, stored):
    for names, problem in ((expected - stored, "lacks"), (stored - expected, "has the unknown")):
        if names:
            raise InputError(
                f"{path}: {problem} {len(names)} of {len(expected)} weights (first: {min(names)}); "
                "weights and config.json do not belong together"
            )
