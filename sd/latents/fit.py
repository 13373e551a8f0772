"""Compatibility of a latent cache with a training run, checked before any weights take memory."""

from typing import Any

from sd.data.parts.moments import Manifest, find_manifest
from sd.errors import InputError
from sd.models.hashes import weights_hash
from sd.models.loading import DeferredComponent, component_source


def cached_components(manifest: Manifest | None) -> tuple[str, ...]:
    """The components whose output a cache holds; none for images (None)."""
    if manifest is None:
        return ()
    return ("vae", "text_encoder") if manifest.has_text else ("vae",)


def check_fit(file_list: str, model_args: Any, data_args: Any) -> None:
    """Raise InputError, with every difference, if `file_list` is a cache that other models or settings made."""
    manifest = find_manifest(file_list)
    if manifest is None:
        return
    if manifest.has_text and model_args.train_text_encoder:
        raise InputError(
            f"{file_list}: --train_text_encoder True, but the cache holds what the text encoder said before; make a "
            "cache without --cache_text, or leave the text encoder as it is"
        )
    if data_args.enlarge and not manifest.enlarge:
        raise InputError(
            f"{file_list}: --enlarge True, but the cache left out the images that are smaller than its resolution; "
            "make it with precompute_latents.py --enlarge, or leave the flag out"
        )
    if manifest.enlarge and not data_args.enlarge:
        raise InputError(
            f"{file_list}: the cache holds images that are smaller than its resolution too, enlarged; give --enlarge "
            "True, or make a cache without --enlarge"
        )
    if manifest.aspect_buckets and data_args.aspect_buckets is None:
        raise InputError(
            f"{file_list}: the cache was made with buckets; give --aspect_buckets {manifest.aspect_buckets}"
        )
    if data_args.aspect_buckets is not None and manifest.aspect_buckets is None:
        raise InputError(
            f"{file_list}: --aspect_buckets {data_args.aspect_buckets}, but the cache holds squares; leave the flag "
            "out, or make a cache with --aspect_buckets"
        )
    run = _vae_values(model_args, data_args.resolution)
    if data_args.interpolation != type(data_args).interpolation:
        run["interpolation"] = data_args.interpolation
    if manifest.has_text:
        run |= _text_values(model_args)
    if lines := manifest.differences(**run):
        raise InputError(
            f"{file_list}: the cache does not fit this run: {'; '.join(lines)}; give the models and flags that made it "
            f"({manifest.path}), or make another with precompute_latents.py"
        )


def _vae_values(model_args, resolution):
    source = component_source(model_args, "vae")
    config = DeferredComponent("vae", *source).config
    side = resolution // 2 ** (len(config.block_out_channels) - 1)
    return {
        "resolution": resolution,
        "latent_shape": (config.latent_channels, side, side),
        "scaling_factor": config.scaling_factor,
        "vae_hash": weights_hash("vae", *source),
    }


def _text_values(model_args):
    return {
        "model_max_length": model_args.model_max_length,
        "text_encoder_hash": weights_hash("text_encoder", *component_source(model_args, "text_encoder")),
        "tokenizer_hash": weights_hash("tokenizer", *component_source(model_args, "tokenizer")),
    }
