"""Prompts and seeds -> pictures: the sampling loop that eval.py and the trainer's logged images share.

A picture depends on its prompt, seed and settings alone, never on its neighbours: its noise comes from a NumPy
generator of its own. On a CPU that holds to the last bit: there the UNet always sees batches of one fixed shape (the
last one is filled up), because matrix products round differently in other shapes.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from sd import devices
from sd.diffusion.schedule import sampler_config
from sd.errors import RunError
from sd.models.attention import KernelAttnProcessor
from sd.models.encoders import tokenize, truncate
from sd.sampling.constants import computed_once
from sd.sampling.settings import SCHEDULERS, check_guidance, check_scheduler, check_sides, check_steps

_BYTES_A_LETTER = 4  # of UTF-8, at most


def make_scheduler(name: str, **training: Any) -> Any:
    """A ppdiffusers scheduler by its short name, set to what the UNet was trained with.

    training: beta_start, beta_end, beta_schedule, num_train_timesteps, prediction_type, rescale_betas_zero_snr, as in a
    scheduler_config.json; what is not given is Stable Diffusion's. Raises what `check_scheduler` does.
    """
    import ppdiffusers

    check_scheduler(name, training.get("rescale_betas_zero_snr", False))
    if training.get("rescale_betas_zero_snr"):
        training["timestep_spacing"] = "trailing"  # it must start at the step that has no signal
    config = {**sampler_config(), "skip_prk_steps": True, **training}
    return getattr(ppdiffusers, SCHEDULERS[name]).from_config(config)


def vae_factor(vae: paddle.nn.Layer) -> int:
    """Pixels per latent along one side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def check_size(vae: paddle.nn.Layer, height: int, width: int) -> None:
    """Raise InputError unless height and width are positive multiples of the VAE's factor."""
    check_sides(vae_factor(vae), height, width)


def default_batch_size(unet: paddle.nn.Layer, vae: paddle.nn.Layer, height: int, width: int) -> int:
    """Pictures in one UNet call. On a CPU 8 where the work is small, else 1, where more gains nothing; on a GPU what
    half of its memory holds, at most 32.

    A rule of model, size and kind of card only, so that the same command draws alike whatever else it draws.
    """
    device = devices.current()
    if device.kind == "gpu":
        return batch_in_memory(unet, height // vae_factor(vae), width // vae_factor(vae), devices.memory_bytes(device))
    return decode_batch_size(unet, vae, height, width)


def decode_batch_size(unet: paddle.nn.Layer, vae: paddle.nn.Layer, height: int, width: int) -> int:
    """Pictures in one call of the VAE's decoder: 8 where the work is small, for whose calls a picture is too little."""
    weights = sum(int(np.prod(parameter.shape)) for parameter in unet.parameters())
    return 8 if weights * height * width // vae_factor(vae) ** 2 < 10**10 else 1


def batch_in_memory(unet: paddle.nn.Layer, height: int, width: int, memory: int) -> int:
    """Pictures whose UNet call, with guidance, takes at most half of `memory` bytes beside the weights: a power of two
    up to 32. height, width: of the latents.

    What a call holds at once, in numbers a sample: the skip connections, four tensors as large as the widest layer of
    the first level's feed-forward (8 x its channels), and with plain attention the scores and their softmax.
    """
    config, num_positions = unet.config, height * width
    layers = config.layers_per_block if isinstance(config.layers_per_block, int) else max(config.layers_per_block)
    widths = config.block_out_channels
    skips = sum((layers + 1) * channels * num_positions // 4**level for level, channels in enumerate(widths))
    numbers = skips + 4 * 8 * widths[0] * num_positions
    if not any(isinstance(processor, KernelAttnProcessor) for processor in unet.attn_processors.values()):
        heads = config.attention_head_dim  # so ppdiffusers calls the number of heads
        numbers += 2 * (heads if isinstance(heads, int) else heads[0]) * num_positions**2
    width_of_number = 4 if unet.dtype == paddle.float32 else 2
    weights = sum(parameter.size for parameter in unet.parameters())
    free = memory // 2 - weights * width_of_number
    fits = max(1, free // (2 * numbers * width_of_number))
    return min(32, 2 ** (int(fits).bit_length() - 1))


def initial_noise(seed: int, shape: Sequence[int]) -> np.ndarray:
    """Standard normal float32 of `shape` (one picture's latents), equal on every device and in every batch."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@dataclass
class Networks:
    """What draws: a UNet, the VAE that decodes its latents, a text encoder and its tokenizer."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn, beside prompt, seed and models. height, width: pixels; guidance_scale: 1 is no guidance,
    and `negative_prompt` then has no effect; scheduler: short name; batch_size: pictures in one UNet call."""

    height: int
    width: int
    guidance_scale: float = 7.5
    num_inference_steps: int = 50
    negative_prompt: str = ""
    scheduler: str = "ddim"
    batch_size: int = 1
    dtype: str = "fp32"
    device: str = "cpu"


def draw_images(
    networks: Networks, prompts: Sequence[str], *, seeds: Iterable[int], scheduler: Any, **settings: Any
) -> np.ndarray:
    """Draw one picture for each prompt and its seed. settings: of Settings. Returns uint8 [N,H,W,3]."""
    if "batch_size" not in settings:
        size = settings["height"], settings["width"]
        settings["batch_size"] = default_batch_size(networks.unet, networks.vae, *size)
    return np.stack([*stream_images(networks, prompts, seeds, scheduler, Settings(**settings))])


def stream_images(
    networks: Networks,
    prompts: Iterable[str],
    seeds: Iterable[int],
    scheduler: Any,
    settings: Settings,
    progress: Callable[[float], None] | None = None,
) -> Iterator[np.ndarray]:
    """Draw one picture for each prompt and its seed, and yield each as uint8 [height, width, 3] when it is ready.

    scheduler: from `make_scheduler`. progress: called after every UNet call with the pictures that it stands for; in
    the end their sum is len(prompts). Raises InputError for a size, a guidance scale or a number of steps that does
    not fit.
    """
    unet, vae = networks.unet, networks.vae
    _check_settings(settings, vae, scheduler)
    height, width, batch_size = settings.height, settings.width, settings.batch_size
    shape = (unet.config.in_channels, height // vae_factor(vae), width // vae_factor(vae))
    step = math.gcd(batch_size, decode_batch_size(unet, vae, height, width))
    states = functools.lru_cache(maxsize=256)(
        functools.partial(encode_prompt, networks.text_encoder, networks.tokenizer)
    )
    jobs = list(zip(prompts, seeds, strict=True))
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        filled = batch + batch[-1:] * (batch_size - len(batch) if devices.current().kind == "cpu" else 0)
        with _evaluating(unet, vae, networks.text_encoder), paddle.no_grad():
            noise = paddle.to_tensor(np.stack([initial_noise(seed, shape) for _, seed in filled]))
            with_text = paddle.concat([states(prompt) for prompt, _ in filled])
            guided = settings.guidance_scale > 1
            without = paddle.concat([states(settings.negative_prompt)] * len(filled)) if guided else None
            scheduler.set_timesteps(settings.num_inference_steps)
            share = len(batch) / len(scheduler.timesteps)
            on_step = (lambda share=share: progress(share)) if progress else None
            with computed_once(unet, guided):
                latents = denoise(unet, scheduler, noise, with_text, without, settings.guidance_scale, on_step)
            parts = [decode(vae, latents[at : at + step]) for at in range(0, len(batch), step)]
        yield from np.concatenate(parts)[: len(batch)]


def _check_settings(settings: Settings, vae: paddle.nn.Layer, scheduler: Any) -> None:
    check_size(vae, settings.height, settings.width)
    check_guidance("guidance_scale", settings.guidance_scale)
    training = scheduler.config
    check_steps(settings.num_inference_steps, training.num_train_timesteps - training.get("steps_offset", 0))


def denoise(
    unet: paddle.nn.Layer,
    scheduler: Any,
    noise: paddle.Tensor,
    with_text: paddle.Tensor,
    without: paddle.Tensor | None,
    guidance_scale: float,
    on_step: Callable[[], None] | None = None,
) -> paddle.Tensor:
    """Noise [B,C,h,w] -> latents [B,C,h,w], both float32, by classifier-free guidance (arXiv 2207.12598).

    scheduler: its timesteps freshly set. with_text, without: text states [B,L,D] of the prompts and of the negative
    one; None for the latter is no guidance.
    """
    latents = noise * scheduler.init_noise_sigma
    states = (with_text if without is None else paddle.concat([without, with_text])).cast(unet.dtype)
    for timestep in scheduler.timesteps:
        inputs = scheduler.scale_model_input(latents, timestep).cast(unet.dtype)
        if without is None:
            output = unet(inputs, timestep, encoder_hidden_states=states).sample.cast("float32")
        else:
            inputs = paddle.concat([inputs, inputs])
            both = unet(inputs, timestep, encoder_hidden_states=states).sample.cast("float32")
            base, towards = both.chunk(2)
            output = base + guidance_scale * (towards - base)
        latents = scheduler.step(output, timestep, latents).prev_sample
        if on_step:
            on_step()
    return latents


def encode_prompt(text_encoder: paddle.nn.Layer, tokenizer: Any, prompt: str) -> paddle.Tensor:
    """Text states [1, L, D] of a prompt, cut at the model's length, padded as in training."""
    ids = tokenize(tokenizer, [prompt], tokenizer.model_max_length)
    return text_encoder(paddle.to_tensor(ids))[0]


def truncated_text(tokenizer: Any, prompt: str) -> str:
    """What of a prompt lies past the model's length and is not seen by it, or its beginning; empty if all is seen."""
    tokens = tokenizer.tokenize(truncate(prompt, tokenizer.model_max_length))
    first = tokenizer.model_max_length - 2  # two places mark begin and end of the text
    cut = ""
    for seen_bytes in range(_BYTES_A_LETTER if len(tokens) > first else 0):
        cut = tokenizer.convert_tokens_to_string(tokens[max(0, first - seen_bytes) :]).strip()
        if not cut.startswith("\ufffd"):  # a letter of which the model sees a few bytes is not seen
            break
    return cut


def decode(vae: paddle.nn.Layer, latents: paddle.Tensor) -> np.ndarray:
    """Latents [B,C,h,w], scaled as in training -> uint8 [B,H,W,3]. Raises RunError for pixels that are NaN, which would
    come out black."""
    pixels = vae.decode((latents / vae.config.scaling_factor).cast(vae.dtype)).sample.cast("float32")
    pixels = (pixels.numpy().transpose([0, 2, 3, 1]) + 1) * 127.5
    if np.isnan(pixels).any():
        raise RunError(
            "a picture has NaN pixels: so have the weights, or numbers overflow on the way; try another checkpoint, "
            "--dtype fp32 or a lower --guidance_scale"
        )
    return pixels.round().clip(0, 255).astype(np.uint8)


def reconstruct(vae: paddle.nn.Layer, pixel_values: np.ndarray) -> np.ndarray:
    """What the VAE keeps of pictures: uint8 [N,3,H,W] as in a batch -> uint8 [N,H,W,3], by the posterior's mean."""
    pixels = paddle.to_tensor(np.asarray(pixel_values)).cast("float32") / 127.5 - 1
    with _evaluating(vae), paddle.no_grad():
        rows = [vae.encode(pixels[row : row + 1].cast(vae.dtype)).latent_dist.mode() for row in range(len(pixels))]
        return _decode_means(vae, rows)


def reconstruct_cached(vae: paddle.nn.Layer, moments: np.ndarray) -> np.ndarray:
    """As `reconstruct`, from cached moments [N,2C,h,w]: only the decoder is run."""
    means = paddle.to_tensor(np.asarray(moments)[:, : vae.config.latent_channels])
    with _evaluating(vae), paddle.no_grad():
        return _decode_means(vae, [means[row : row + 1] for row in range(len(means))])


def _decode_means(vae, rows):
    return np.concatenate([decode(vae, mean.cast("float32") * vae.config.scaling_factor) for mean in rows])


@contextlib.contextmanager
def _evaluating(*layers):
    """Layers in eval mode, each back in its own mode afterwards: the trainer draws in the middle of training."""
    modes = [(sub, sub.training) for layer in layers for sub in layer.sublayers(include_self=True)]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for sub, training in modes:
            sub.training = training
