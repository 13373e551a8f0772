"""Pretraining of Stable Diffusion with PaddlePaddle: the public names. Nothing else happens on import."""

import importlib

_HOME = {
    "SDModelArguments": "sd.arguments",
    "SDDataArguments": "sd.arguments",
    "SDTrainingArguments": "sd.arguments",
    "StableDiffusionModel": "sd.model",
    "StableDiffusionTrainer": "sd.trainer",
    "TextImagePair": "sd.data.dataset",
    "worker_init_fn": "sd.data.dataset",
}

__all__ = list(_HOME)


def __getattr__(name):
    """Import a public name on its first use: the packer needs no Paddle, and `--help` no four seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'sd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
