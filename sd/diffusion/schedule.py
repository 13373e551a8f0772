"""The noise schedule of Stable Diffusion as float64 NumPy tables over the timesteps 0 ... T-1."""

from typing import Any

import numpy as np

NUM_TRAIN_TIMESTEPS = 1000
BETA_START = 0.00085
BETA_END = 0.012
# First and last timestep of the quarters by which losses are reported.
TIMESTEP_BANDS = [(first, first + 249) for first in range(0, NUM_TRAIN_TIMESTEPS, 250)]


def beta_table(
    beta_start: float = BETA_START, beta_end: float = BETA_END, num_steps: int = NUM_TRAIN_TIMESTEPS
) -> np.ndarray:
    """The `scaled_linear` schedule: the square roots of the betas are equally spaced. Returns [T]."""
    return np.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=np.float64) ** 2


def alpha_bar_table(
    beta_start: float = BETA_START, beta_end: float = BETA_END, num_steps: int = NUM_TRAIN_TIMESTEPS
) -> np.ndarray:
    """Share of the signal's variance left after t + 1 steps: the running product of 1 - beta. Returns [T] in (0, 1)."""
    return np.cumprod(1.0 - beta_table(beta_start, beta_end, num_steps))


def rescale_zero_terminal_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """Shift and stretch sqrt(alpha_bar) so that its last entry is 0 and its first stays (arXiv 2305.08891, alg. 1)."""
    signal = np.sqrt(alpha_bar)
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return signal**2


def snr_table(alpha_bar: np.ndarray) -> np.ndarray:
    """Signal to noise ratio alpha_bar / (1 - alpha_bar), [T]."""
    return alpha_bar / (1.0 - alpha_bar)


ZERO_SNR_FLOOR = 1.0  # of the truncated SNR weighting of arXiv 2202.00512, section 4


def min_snr_weight(snr: np.ndarray, gamma: float | None, prediction_type: str, floor: float = 0.0) -> np.ndarray:
    """Loss weight of each sample (arXiv 2303.09556, section 3.4 and its form for v-prediction).

    snr: any shape. Returns the same shape: min(snr, gamma) / snr for `epsilon` and / (snr + 1) for `v_prediction`;
    all ones if gamma is None. floor: the smallest snr that the numerator takes, for schedules that end at snr 0: there
    the weight would be 0, at the very timestep at which sampling starts.
    """
    if gamma is None:
        return np.ones_like(snr)
    return np.clip(snr, min(floor, gamma), gamma) / (snr if prediction_type == "epsilon" else snr + 1.0)


def sampler_config(prediction_type: str = "epsilon", rescale_betas_zero_snr: bool = False) -> dict[str, Any]:
    """Arguments of ppdiffusers' DDIMScheduler that undo this schedule; zero terminal SNR needs trailing steps."""
    return {
        "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
        "beta_start": BETA_START,
        "beta_end": BETA_END,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction_type,
        "rescale_betas_zero_snr": rescale_betas_zero_snr,
        "timestep_spacing": "trailing" if rescale_betas_zero_snr else "leading",
    }
