"""StableDiffusionModel: a batch of images (or their cached moments), texts and random draws in, the loss out."""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from ppdiffusers.models.vae import DiagonalGaussianDistribution

from sd.diffusion import draws, objective, schedule
from sd.errors import InputError
from sd.models import encoders
from sd.models.loading import DeferredComponent, component_source, in_data_format, load_component

logger = logging.getLogger(__name__)

TOKEN_CACHE_SIZE = 4096  # whose token ids a data worker keeps


class StableDiffusionModel(nn.Layer):
    """A UNet to be trained between a frozen VAE and a text encoder that is frozen unless --train_text_encoder.

    A frozen component may be a DeferredComponent: it is loaded on first access, which training from a cache of its
    output never does, but previews and whole pipelines do.
    """

    def __init__(self, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, model_args: Any):
        super().__init__()
        self.deferred = {}
        self.unet = unet
        for name, component in {"vae": vae, "text_encoder": text_encoder}.items():
            if isinstance(component, DeferredComponent):
                self.deferred[name] = component
            else:
                setattr(self, name, component)
        self.tokenizer, self.model_args, self._token_cache = tokenizer, model_args, {}
        self.vae_config, self.text_config = vae.config, text_encoder.config
        tokenizer.model_max_length = model_args.model_max_length  # what is drawn from the model is padded alike
        self.trained_components = ("unet", "text_encoder") if model_args.train_text_encoder else ("unet",)
        for name, layer in self.named_children():
            for parameter in layer.parameters():
                parameter.stop_gradient = name not in self.trained_components
        frozen = [layer for name, layer in self.named_children() if name not in self.trained_components]
        for layer in (self, *(sub for component in frozen for sub in component.sublayers(include_self=True))):
            layer._cast_to_low_precision = False  # paddle.amp.decorate leaves tables and frozen parts in float32
        self.scaling_factor = self.vae_config.scaling_factor
        self._register_tables()
        self.train()

    @classmethod
    def from_arguments(cls, model_args: Any, resolution: int, deferred: Sequence[str] = ()) -> "StableDiffusionModel":
        """Load what the flags name and check that the parts fit each other and the resolution (pixels).

        deferred: those of "vae" and "text_encoder" whose weights are left where they are until they are needed.
        """
        components = {}
        for component in ("tokenizer", "text_encoder", "vae", "unet"):
            load = DeferredComponent if component in deferred else load_component
            components[component] = load(component, *component_source(model_args, component))
            if component in deferred:
                logger.info("%s: not loaded, the cache holds its output (%s)", component, components[component].origin)
        if model_args.unet_data_format != "NCHW":
            components["unet"] = in_data_format(components["unet"], model_args.unet_data_format)
        check_components(**components, max_length=model_args.model_max_length)
        model = cls(**components, model_args=model_args)
        model.latent_shape(resolution)
        return model

    def _register_tables(self):
        args = self.model_args
        alpha_bar = schedule.alpha_bar_table()
        if args.rescale_betas_zero_snr:
            alpha_bar = schedule.rescale_zero_terminal_snr(alpha_bar)
        floor = schedule.ZERO_SNR_FLOOR if args.rescale_betas_zero_snr else 0.0
        weight = schedule.min_snr_weight(schedule.snr_table(alpha_bar), args.snr_gamma, args.prediction_type, floor)
        tables = {"signal_rate": np.sqrt(alpha_bar), "noise_rate": np.sqrt(1.0 - alpha_bar), "loss_weight": weight}
        for name, table in tables.items():
            self.register_buffer(name, paddle.to_tensor(table, dtype="float32"), persistable=False)
        causal_mask = encoders.causal_mask(args.model_max_length)
        self.register_buffer("causal_mask", paddle.to_tensor(causal_mask), persistable=False)

    def __getattr__(self, name):
        """Load a deferred component on first access. It does not become a sublayer: rank 0 alone may hold
        it, and the ranks compare theirs."""
        component = self.__dict__.get("deferred", {}).pop(name, None)
        if component is None:
            return super().__getattr__(name)
        layer = self.__dict__[name] = component.load()
        for parameter in layer.parameters():
            parameter.stop_gradient = True
        return layer

    def train(self) -> None:
        """Training mode for what is trained; the frozen parts stay in evaluation mode."""
        super().train()
        for name, layer in self.named_children():
            if name not in self.trained_components:
                layer.eval()

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of square images. Raises InputError if VAE or UNet cannot halve them so often."""
        factor, unet_factor = (2 ** (len(config.block_out_channels) - 1) for config in self._halving)
        if resolution % (factor * unet_factor):
            raise InputError(
                f"--resolution {resolution}: the VAE divides it by {factor} and the UNet by {unet_factor}; "
                f"use a multiple of {factor * unet_factor}"
            )
        return self.vae_config.latent_channels, resolution // factor, resolution // factor

    @property
    def _halving(self):
        return self.vae_config, self.unet.config

    @property
    def side_multiple(self) -> int:
        """What every side of an image must be a multiple of, in pixels, for VAE and UNet to halve it."""
        return math.prod(2 ** (len(config.block_out_channels) - 1) for config in self._halving)

    def latent_shapes(self, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """(C, h, w) of the latents of images of (width, height), all multiples of `side_multiple`."""
        factor = 2 ** (len(self.vae_config.block_out_channels) - 1)
        return [(self.vae_config.latent_channels, height // factor, width // factor) for width, height in sizes]

    def draws(self, resolution: int, sizes: Sequence[tuple[int, int]] | None = None) -> Callable:
        """`draw(rng) -> dict`: what the data workers must draw for each sample; `draw(rng, bucket)` with `sizes`, the
        (width, height) of the buckets."""
        options = {name: getattr(self.model_args, name) for name in ("noise_offset", "input_perturbation")}
        if sizes is not None:
            return functools.partial(draws.draw_bucket, latent_shapes=self.latent_shapes(sizes), **options)
        return functools.partial(draws.draw, latent_shape=self.latent_shape(resolution), **options)

    def tokenize(self, caption: str) -> np.ndarray:
        """Token ids of one caption, cut or padded to model_max_length: int64 [L]. NumPy only, for the data workers.

        Captions that come again (the empty one, those of a small data set) are looked up.
        """
        if caption not in self._token_cache:
            if len(self._token_cache) >= TOKEN_CACHE_SIZE:
                self._token_cache.clear()
            self._token_cache[caption] = encoders.tokenize(self.tokenizer, caption, self.model_args.model_max_length)
        return self._token_cache[caption]

    @paddle.no_grad()
    def encode_images(self, pixel_values: Tensor, posterior_noise: Tensor) -> Tensor:
        """Draw latents from the VAE's posterior.

        pixel_values: [B,3,H,W], uint8 or float32 in [0, 255]. posterior_noise: [B,C,h,w].
        Returns float32 [B,C,h,w], already scaled.
        """
        return self._draw_latents(encoders.encode_posterior(self.vae, pixel_values), posterior_noise)

    @paddle.no_grad()
    def cached_latents(self, moments: Tensor, posterior_noise: Tensor) -> Tensor:
        """As `encode_images`, from the VAE's answer in a cache. moments: float16 [B,2C,h,w], mean and log-variance."""
        with paddle.amp.auto_cast(enable=False):
            posterior = DiagonalGaussianDistribution(moments.astype("float32"))
        return self._draw_latents(posterior, posterior_noise)

    def _draw_latents(self, posterior, posterior_noise):
        with paddle.amp.auto_cast(enable=False):
            return (posterior.mean + posterior.std * posterior_noise) * self.scaling_factor

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Last hidden state of the text encoder: [B,L] -> [B,L,D]."""
        with paddle.set_grad_enabled("text_encoder" in self.trained_components and paddle.is_grad_enabled()):
            return encoders.encode_text(self.text_encoder, input_ids, self.causal_mask)

    def forward(
        self,
        noise: Tensor,
        posterior_noise: Tensor,
        timestep: Tensor,
        pixel_values: Tensor | None = None,
        moments: Tensor | None = None,
        input_ids: Tensor | None = None,
        text_states: Tensor | None = None,
        offset_noise: Tensor | None = None,
        perturbation_noise: Tensor | None = None,
        **unused: Any,
    ) -> dict[str, Tensor]:
        """A batch's loss; the arguments are the batch's arrays as tensors, see `denoise` for what is returned.

        Of a picture come `pixel_values` or `moments`, of a caption `input_ids` or `text_states`.
        """
        if moments is None:
            latents = self.encode_images(pixel_values, posterior_noise)
        else:
            latents = self.cached_latents(moments, posterior_noise)
        text_states = self.encode_text(input_ids) if text_states is None else text_states.astype("float32")
        return self.denoise(latents, text_states, noise, timestep, offset_noise, perturbation_noise)

    def denoise(
        self,
        latents: Tensor,
        text_states: Tensor,
        noise: Tensor,
        timestep: Tensor,
        offset_noise: Tensor | None = None,
        perturbation_noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Noise the latents, let the UNet predict, compare.

        latents, noise, perturbation_noise: [B,C,h,w]; offset_noise: [B,C,1,1]; timestep: int64 [B].
        Returns `loss` (the weighted mean, a scalar), `sample_loss` (squared error of each sample before the weights,
        float32 [B], outside the graph) and `timestep`.
        """
        if offset_noise is not None:
            noise = noise + self.model_args.noise_offset * offset_noise
        signal_rate, noise_rate, weight = (
            paddle.gather(table, timestep) for table in (self.signal_rate, self.noise_rate, self.loss_weight)
        )
        signal_rate, noise_rate = signal_rate.reshape([-1, 1, 1, 1]), noise_rate.reshape([-1, 1, 1, 1])
        input_noise = noise
        if perturbation_noise is not None:
            input_noise = noise + self.model_args.input_perturbation * perturbation_noise
        noisy_latents = objective.add_noise(latents, input_noise, signal_rate, noise_rate)
        text_states = text_states.astype(self.unet.dtype)  # as the UNet does with the latents
        prediction = self.unet(noisy_latents, timestep, text_states, return_dict=False)[0]
        expected = objective.target(self.model_args.prediction_type, latents, noise, signal_rate, noise_rate)
        sample_loss = objective.squared_error(prediction, expected)
        return {"loss": (weight * sample_loss).mean(), "sample_loss": sample_loss.detach(), "timestep": timestep}

    def set_recompute(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        (self.unet.enable_gradient_checkpointing if enabled else self.unet.disable_gradient_checkpointing)()
        if "text_encoder" in self.trained_components and enabled:
            self.text_encoder.gradient_checkpointing_enable()


def check_components(unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, max_length: int) -> None:
    """Raise InputError unless UNet, VAE, text encoder and tokenizer fit each other. max_length: of texts, in tokens."""
    unet, text = unet.config, text_encoder.config
    if unet.cross_attention_dim != text.hidden_size:
        raise InputError(
            f"cross_attention_dim={unet.cross_attention_dim} of the UNet, but the text encoder's states have "
            f"{text.hidden_size} numbers; use a UNet configuration with cross_attention_dim {text.hidden_size}"
        )
    channels = vae.config.latent_channels
    for name in ("in_channels", "out_channels"):
        if unet[name] != channels:
            raise InputError(
                f"{name}={unet[name]} of the UNet, but the VAE's latents have {channels} channels; "
                f"use a UNet configuration with {name} {channels}"
            )
    encoders.check_text(tokenizer, text, max_length)
