"""How a picture is drawn, beside prompt, seed and models: the values that are right for any model, without Paddle."""

import math
from typing import Any

from sd.diffusion.schedule import NUM_TRAIN_TIMESTEPS, sampler_config
from sd.errors import ArgumentError, one_line
from sd.text import TextError, check_characters

# Only samplers that draw no noise on their way: all chance in a picture then comes from its seed.
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm": "DPMSolverMultistepScheduler",
}
# The offset is added to every timestep, and none may pass the last one of training: 1000 - 1 = 999
MAX_INFERENCE_STEPS = NUM_TRAIN_TIMESTEPS - sampler_config()["steps_offset"]


def check_settings(options: Any) -> None:
    """Raise InputError for a guidance scale, a number of steps or a sampler that no model can follow.

    options: a dataclass with the fields guidance_scale, num_inference_steps and scheduler (or None).
    """
    check_guidance("guidance_scale", options.guidance_scale)
    check_steps(options.num_inference_steps)
    check_scheduler(options.scheduler)


def check_prompt(name: str, prompt: str) -> None:
    """Raise InputError for a prompt that a picture's file cannot hold. name: of its argument."""
    try:
        check_characters(prompt)
    except TextError as error:
        raise ArgumentError(name, one_line(ascii(prompt)), f": {error}") from None


def check_guidance(name: str, scale: float) -> None:
    """Raise InputError for a guidance scale below 1, infinite or NaN. name: of its argument."""
    if not 1 <= scale < math.inf:
        raise ArgumentError(name, scale, "; expected at least 1, which is no guidance")


def check_steps(steps: int, most: int = MAX_INFERENCE_STEPS) -> None:
    """Raise InputError unless a scheduler whose training allows `most` denoising steps can make so many."""
    if not 1 <= steps <= most:
        raise ArgumentError("num_inference_steps", steps, f"; expected 1 to {most}")


def check_scheduler(name: str | None, rescale_betas_zero_snr: bool = False) -> None:
    """Raise InputError for an unknown short name, or if the betas end at zero SNR, which only DDIM can follow here (and
    from its last step on: arXiv 2305.08891). None is the model's own sampler."""
    if name is None:
        return
    if name not in SCHEDULERS:
        raise ArgumentError("scheduler", name, f"; expected one of {', '.join(SCHEDULERS)}")
    if rescale_betas_zero_snr and name != "ddim":
        raise ArgumentError("scheduler", name, " cannot follow betas rescaled to zero SNR; use --scheduler ddim")


def check_sides(factor: int, height: int | None, width: int | None) -> None:
    """Raise InputError unless height and width are positive multiples of the VAE's factor; None is any."""
    for name, value in (("height", height), ("width", width)):
        if value is not None and (value < factor or value % factor):
            nearest = max(factor, round(value / factor) * factor)
            raise ArgumentError(name, value, f" does not fit the VAE, which halves to 1/{factor}; try {nearest}")
