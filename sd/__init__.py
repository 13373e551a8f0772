"""Pretraining of Stable Diffusion with PaddlePaddle: the public names. Nothing else happens on import."""

import importlib

_HOME = {
    "SDModelArguments": "sd.flags.arguments",
    "SDDataArguments": "sd.flags.arguments",
    "SDTrainingArguments": "sd.flags.arguments",
    "StableDiffusionModel": "sd.diffusion.model",
    "StableDiffusionTrainer": "sd.training.trainer",
    "TextImagePair": "sd.data.streaming.dataset",
    "worker_init_fn": "sd.data.streaming.dataset",
}

__all__ = list(_HOME)


def __getattr__(name):
    """Import a public name on its first use: the packer needs no Paddle, and `--help` no four seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'sd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
