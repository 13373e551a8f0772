"""Noising, targets and loss as pure functions of Paddle tensors: the random draws are arguments."""

from paddle import Tensor


def add_noise(latents: Tensor, noise: Tensor, signal_rate: Tensor, noise_rate: Tensor) -> Tensor:
    """The forward process. latents, noise: [B,C,h,w]; rates sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t): [B,1,1,1]."""
    return signal_rate * latents + noise_rate * noise


def velocity(latents: Tensor, noise: Tensor, signal_rate: Tensor, noise_rate: Tensor) -> Tensor:
    """The target v of arXiv 2202.00512, shapes as in `add_noise`."""
    return signal_rate * noise - noise_rate * latents


def target(prediction_type: str, latents: Tensor, noise: Tensor, signal_rate: Tensor, noise_rate: Tensor) -> Tensor:
    """What the UNet is to predict: the noise (`epsilon`) or v (`v_prediction`)."""
    return noise if prediction_type == "epsilon" else velocity(latents, noise, signal_rate, noise_rate)


def squared_error(prediction: Tensor, expected: Tensor) -> Tensor:
    """Mean squared error of each sample in float32: [B,C,h,w] -> [B]."""
    prediction, expected = (tensor.astype("float32") for tensor in (prediction, expected))
    difference = prediction - expected
    return (difference * difference).mean(axis=[1, 2, 3])
