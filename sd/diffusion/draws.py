"""The random numbers that one sample's loss needs, drawn with NumPy in the data worker."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sd.diffusion.schedule import NUM_TRAIN_TIMESTEPS


def draw_bucket(
    rng: np.random.Generator, bucket: int, *, latent_shapes: Sequence[tuple[int, int, int]], **options: Any
) -> dict[str, np.ndarray]:
    """`draw` for a sample of a bucket. latent_shapes: (C, h, w) of each bucket; options: as of `draw`."""
    return draw(rng, latent_shape=latent_shapes[bucket], **options)


def draw(
    rng: np.random.Generator,
    *,
    latent_shape: tuple[int, int, int],
    num_train_timesteps: int = NUM_TRAIN_TIMESTEPS,
    noise_offset: float = 0.0,
    input_perturbation: float = 0.0,
) -> dict[str, np.ndarray]:
    """Draw for one sample.

    rng: numpy Generator of this sample alone. latent_shape: (C, h, w). Returns `timestep` (int64, uniform in
    [0, num_train_timesteps)), `noise` and `posterior_noise` (float32 [C,h,w], standard normal) and, where the options
    are not 0, `offset_noise` [C,1,1] and `perturbation_noise` [C,h,w]: standard normal too, the model scales them.
    Turning an option on leaves the other draws as they are.
    """
    drawn: dict[str, np.ndarray] = {
        "timestep": np.asarray(rng.integers(num_train_timesteps, dtype=np.int64)),
        "noise": rng.standard_normal(latent_shape, dtype=np.float32),
        "posterior_noise": rng.standard_normal(latent_shape, dtype=np.float32),
    }
    offset_noise = rng.standard_normal((latent_shape[0], 1, 1), dtype=np.float32)
    if noise_offset:
        drawn["offset_noise"] = offset_noise
    if input_perturbation:
        drawn["perturbation_noise"] = rng.standard_normal(latent_shape, dtype=np.float32)
    return drawn
