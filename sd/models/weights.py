"""Weights of one model between a local folder's safetensors and a Paddle layer."""

import json
from pathlib import Path

import paddle
from safetensors import SafetensorError, safe_open

from sd.errors import InputError

# Names under which ppdiffusers, diffusers, paddlenlp and transformers keep weights.
WEIGHT_NAMES = ("diffusion_paddle_model", "diffusion_pytorch_model", "model", "model_state")
PICKLED = (".pdparams", ".bin", ".pt", ".pth", ".ckpt")
# Buffers that other libraries save and Paddle's models compute.
NOT_WEIGHTS = ("position_ids",)


def read_config(path):
    """A model's configuration, a JSON object, as a dict."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable model configuration ({error}); expected a JSON file") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a model configuration; expected a JSON object")
    return config


def find_weights(folder, variant=None):
    """The safetensors file in a model's folder, of one variant (such as `ema`)."""
    folder = Path(folder)
    ending = f".{variant}.safetensors" if variant else ".safetensors"
    for name in WEIGHT_NAMES:
        if (folder / (name + ending)).is_file():
            return folder / (name + ending)
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise InputError(
            f"{folder}: only {pickled[0]}, a pickle, which can run code when it is loaded; convert it to {ending[1:]} "
            "with ppdiffusers' save_pretrained(safe_serialization=True)"
        )
    raise InputError(f"{folder}: no weights; expected one of {', '.join(name + ending for name in WEIGHT_NAMES)}")


def load_weights(model, path):
    """Copy the weights of one safetensors file into `model`, tensor by tensor; every weight must be there and fit.

    Files of PyTorch libraries (format `pt`) keep the matrix of a linear layer transposed, and some keep older names.
    """
    path = Path(path)
    parameters = model.state_dict()
    linear = {f"{name}.weight" for name, layer in model.named_sublayers() if isinstance(layer, paddle.nn.Linear)}
    try:
        with safe_open(str(path), framework="np") as file:
            from_torch = (file.metadata() or {}).get("format", "pt") == "pt"
            names = _current_names(model, [name for name in file.keys() if not name.endswith(NOT_WEIGHTS)])  # noqa: SIM118
        _check_names(path, set(parameters), set(names))
        for name, stored_name in names.items():
            # Opened anew for each tensor: one mapping of the whole file would count as memory of this process.
            with safe_open(str(path), framework="np") as file:
                value = file.get_tensor(stored_name)
            value = value.T if from_torch and name in linear else value
            if list(value.shape) != list(parameters[name].shape):
                raise InputError(
                    f"{path}: {name} has shape {list(value.shape)}, the configuration beside it asks for "
                    f"{list(parameters[name].shape)}; weights and config.json do not belong together"
                )
            parameters[name].set_value(value.astype("float32", copy=False))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: unreadable weights ({error}); copy or download the file again") from error


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


def _check_names(path, expected, found):
    for names, what in ((expected - found, "lacks"), (found - expected, "has the unknown")):
        if names:
            raise InputError(
                f"{path}: {what} {len(names)} of {len(expected)} weights (first: {min(names)}); "
                "weights and config.json do not belong together"
            )
