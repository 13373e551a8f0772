"""A checkpoint with everything else that its pipeline needs: a folder for ppdiffusers or diffusers, or one file."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from sd.errors import ArgumentError, InputError, RunError
from sd.files import fsync, publish, try_flock
from sd.flags.arguments import check_choice
from sd.models.single_file import CONFIGS_KEY, stored_name
from sd.models.weights import linear_weights
from sd.sampling.files import check_folder, written

if TYPE_CHECKING:
    from sd.sampling.models import Models

FORMATS = ("ppdiffusers", "diffusers")
_DTYPES = {"fp32": np.float32, "fp16": np.float16}


def check_output(output: str | Path, one_file: bool) -> Path:
    """The path of an export. Raises InputError if it holds something already, or is no name of a .safetensors file."""
    output = Path(output)
    if one_file and (output.suffix != ".safetensors" or output.exists()):
        raise InputError(f"--output {output}: expected the name of a new .safetensors file")
    if not output.name:  # `.`, in whose place no other folder can be put
        raise ArgumentError("output", str(output), "; expected the name of a new folder")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ArgumentError("output", str(output), " is there already; remove it or choose another")
    check_folder(output.parent)
    return output


def export_pipeline(models: "Models", output: str | Path, layout: str, scheduler: str | None = None) -> Path:
    """Write UNet, VAE, text encoder, tokenizer and scheduler to `output`, which appears only when it is whole.

    models: sd.sampling.models.Models. layout: `ppdiffusers`, or `diffusers` for PyTorch (matrices transposed, its own
    names of files). The weights are float32 safetensors. Raises InputError if output holds something already.
    """
    from ppdiffusers import StableDiffusionPipeline

    check_choice("format", layout, FORMATS)
    output = check_output(output, one_file=False)
    pipeline = StableDiffusionPipeline(
        vae=models.vae,
        text_encoder=models.text_encoder,
        tokenizer=models.tokenizer,
        unet=models.unet,
        scheduler=models.scheduler(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # What paddlenlp saves is what it once loaded, and the run may have cut captions shorter.
    models.tokenizer.init_kwargs["model_max_length"] = models.tokenizer.model_max_length
    try:
        with _exclusive(output.with_name(f".{output.name}.tmp")) as temporary:
            pipeline.save_pretrained(str(temporary), safe_serialization=True, to_diffusers=layout == "diffusers")
            for weights in temporary.rglob("*.safetensors"):  # which safetensors lets its owner alone read
                shutil.copymode(temporary / "model_index.json", weights)
            if output.exists():
                output.rmdir()
            for path in [*temporary.rglob("*"), temporary]:
                fsync(path)
            publish(temporary, output)
    except RunError:
        raise
    except (OSError, RuntimeError) as error:  # safetensors' error for a full disk is its own
        raise RunError(f"{output} not written: {error}; free space or choose another --output") from error
    return output


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[Path]:
    """Within the context an empty folder that another export to the same place neither fills nor removes; what is left
    of it at the end, or by a kill, is removed. Raises RunError if another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        free = True
        with contextlib.suppress(OSError):  # of a file system without locks
            free = try_flock(descriptor)
        if not free:
            raise RunError(f"{folder}: another export is writing it; wait for it or choose another --output")
        try:
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def export_single_file(models: "Models", output: str | Path, dtype: str = "fp32") -> Path:
    """Write UNet, VAE and text encoder as one safetensors file in the CompVis v1 layout, as ComfyUI, A1111 and
    diffusers' `from_single_file` read it. The tokenizer is v1's and not in the file.

    models: sd.sampling.models.Models. dtype: `fp32` or `fp16`. The configurations and the schedule stand in the
    file's metadata, beside the fields of ModelSpec 1.0 (https://github.com/Stability-AI/ModelSpec).
    Raises InputError if output is there already, is no .safetensors, or the model is not of v1's layout.
    """
    check_choice("dtype", dtype, _DTYPES)
    output = check_output(output, one_file=True)
    if getattr(models.unet.config, "use_linear_projection", False) or models.text_encoder.config.hidden_act == "gelu":
        raise InputError(f"{models.label} has v2's layout; one file takes v1's; use --format diffusers")
    tensors: dict[str, np.ndarray] = {}
    configs = {"scheduler": dict(models.scheduler().config)}
    for component in ("unet", "vae", "text_encoder"):
        layer = getattr(models, component)
        config = layer.config.to_dict() if hasattr(layer.config, "to_dict") else dict(layer.config)
        configs[component] = {key: value for key, value in config.items() if not key.startswith("_")}
        tensors |= _compvis_tensors(component, layer, configs[component], _DTYPES[dtype])
    longest = models.text_encoder.config.max_position_embeddings
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    tensors[positions] = np.arange(longest, dtype=np.int64)[None]
    prediction = "v" if configs["scheduler"]["prediction_type"] == "v_prediction" else "epsilon"
    metadata = {
        "format": "pt",
        CONFIGS_KEY: json.dumps(configs),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": models.label,
        "modelspec.resolution": f"{models.side}x{models.side}",
        "modelspec.prediction_type": prediction,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with written(output) as temporary:
        save_file(tensors, temporary, metadata)
        temporary.chmod(0o666 & ~_umask())  # safetensors lets its owner alone read it
    return output


def _compvis_tensors(component: str, layer, config: dict, dtype) -> dict[str, np.ndarray]:
    """{name in the file: values} of one component, matrices as PyTorch keeps them."""
    linear, tensors = linear_weights(layer), {}
    for name, tensor in layer.state_dict().items():
        value = tensor.astype("float32").numpy().astype(dtype, copy=False)
        value = value.T if name in linear else value
        if component == "vae" and name in linear:
            value = value[:, :, None, None]  # its attention is made of 1 x 1 convolutions there
        tensors[stored_name(component, name, config)] = np.ascontiguousarray(value)
    return tensors


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
