"""The sampling loop: bit-equal alone and in a batch, equal to ppdiffusers' pipeline, and plain about what cannot be."""

import itertools

import numpy as np
import paddle
import pytest
from ppdiffusers.models.attention_processor import AttnProcessor

from sd import devices
from sd.errors import InputError
from sd.models.attention import KernelAttnProcessor
from sd.models.loading import load_component
from sd.sampling import pipeline
from sd.sampling.models import load_models
from sd.sampling.pipeline import (
    SCHEDULERS,
    Settings,
    batch_in_memory,
    check_size,
    default_batch_size,
    denoise,
    draw_images,
    initial_noise,
    make_scheduler,
    reconstruct,
    stream_images,
    truncated_text,
)
from tests import exact
from tests.numeric import assert_close, assert_picture
from tests.tiny import make_tiny_repository

PROMPTS = ["a red circle", "a blue square", "x", "a green triangle", ""]
SIZE = {"height": 32, "width": 36}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_tiny_repository(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def models(repository):
    return load_models(pretrained_model=str(repository))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_picture_is_the_same_alone_and_in_a_batch(models, name):
    settings = {**SIZE, "num_inference_steps": 4, "scheduler": make_scheduler(name)}
    together = draw_images(models, PROMPTS, seeds=[1, 2, 3, 4, 5], **settings)
    assert together.dtype == np.uint8 and together.shape == (5, 32, 36, 3)
    alone = draw_images(models, PROMPTS[3:4], seeds=[4], **settings)
    assert (alone[0] == together[3]).all()
    other = draw_images(models, PROMPTS[3:4], seeds=[5], **settings)
    assert (other[0] != together[3]).any()


@pytest.fixture(scope="module")
def exact_models(repository):
    return {component: exact.load_float64(component, repository) for component in ("vae", "text_encoder", "unet")}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_equals_the_pipeline_of_ppdiffusers_in_float64(models, exact_models, monkeypatch, name, guidance_scale):
    """Latents and pictures. Guidance g takes g of one answer of the UNet and 1 - g of another, with their errors."""
    from ppdiffusers import StableDiffusionPipeline

    drawn = []
    monkeypatch.setattr(pipeline, "denoise", lambda *a: drawn.append(denoise(*a)) or drawn[-1])
    scheduler = make_scheduler(name)
    reference = StableDiffusionPipeline(
        **exact_models, tokenizer=models.tokenizer, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    reference.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 7, "guidance_scale": guidance_scale}
    noise = paddle.to_tensor(np.stack([initial_noise(seed, (4, 8, 8)) for seed in (1, 2)]).astype(np.float64))
    options = {"height": 32, "width": 32, "negative_prompt": ["dark"] * 2, "output_type": "latent"}
    with exact.counted_terms(*exact_models.values()) as terms:
        latents = reference(PROMPTS[:2], latents=noise, **settings, **options).images.numpy()
        theirs = exact.picture(exact_models["vae"], latents / exact_models["vae"].config.scaling_factor)
    ours = draw_images(
        models,
        PROMPTS[:2],
        seeds=[1, 2],
        negative_prompt="dark",
        height=32,
        width=32,
        scheduler=make_scheduler(name),
        **settings,
    )
    assert_close(drawn[0][:2].numpy(), latents, terms.count * (2 * guidance_scale - 1), "the latents")
    assert_picture(ours, theirs, terms.count * (2 * guidance_scale - 1))


def test_ddim_follows_its_closed_form_for_both_predictions():
    """A UNet that predicts exactly leads from any noise to its x0 in every number of steps."""
    image = np.random.default_rng(0).standard_normal([1, 4, 8, 8]).astype(np.float32)

    class Exact:
        dtype = paddle.float32

        def __init__(self, scheduler):
            self.alpha_bar, self.kind = scheduler.alphas_cumprod, scheduler.config.prediction_type

        def __call__(self, noisy, timestep, encoder_hidden_states):
            signal, noise = self.alpha_bar[timestep] ** 0.5, (1 - self.alpha_bar[timestep]) ** 0.5
            epsilon = (noisy - signal * image) / noise
            value = epsilon if self.kind == "epsilon" else signal * epsilon - noise * image
            return type("Output", (), {"sample": value})

    noise = initial_noise(3, (1, 4, 8, 8))
    for settings in ({}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}):
        scheduler = make_scheduler("ddim", **settings)
        scheduler.set_timesteps(10)
        steps = iter(range(100))
        result = denoise(
            Exact(scheduler), scheduler, paddle.to_tensor(noise), paddle.zeros([1, 1, 1]), None, 1.0, steps.__next__
        )
        assert next(steps) == 10
        # DDIM keeps the epsilon that it began with (arXiv 2010.02502, eq. 12 with eta 0), and ends at the noise level
        # of t=0, not at none.
        alpha_bar = scheduler.alphas_cumprod.numpy().astype(np.float64)
        first, last = alpha_bar[int(scheduler.timesteps[0])], alpha_bar[0]
        clean = image.astype(np.float64)
        epsilon = (noise - first**0.5 * clean) / (1 - first) ** 0.5
        expected = last**0.5 * clean + (1 - last) ** 0.5 * epsilon
        # A step rounds some 20 times; what it divides by a small noise rate it multiplies by the next, smaller one.
        assert_close(result.numpy(), expected, 10 * 20)
    assert int(scheduler.timesteps[0]) == 999, "zero SNR must start at the step that has no signal"


def test_guidance_moves_along_the_difference(models):
    """With a UNet that answers its text, guidance g gives base + g * (text - base)."""

    class Answers:
        dtype = paddle.float32

        def __call__(self, noisy, timestep, encoder_hidden_states):
            answer = encoder_hidden_states.reshape([-1, 1, 1, 1]) * paddle.ones_like(noisy)
            return type("Output", (), {"sample": answer})

    class OneStep:
        init_noise_sigma, timesteps = 1.0, (0,)
        scale_model_input = staticmethod(lambda latents, timestep: latents)
        step = staticmethod(lambda output, timestep, latents: type("Step", (), {"prev_sample": output}))

    noise = paddle.zeros([2, 1, 2, 2])
    text, base = paddle.to_tensor([[[2.0]], [[3.0]]]), paddle.to_tensor([[[1.0]], [[1.0]]])
    result = denoise(Answers(), OneStep, noise, text, base, 7.5)
    assert result[:, 0, 0, 0].tolist() == [1 + 7.5 * 1, 1 + 7.5 * 2]


def test_progress_adds_up_to_the_pictures(models):
    shares = []
    settings = Settings(32, 32, num_inference_steps=3, batch_size=2)
    stream = stream_images(models, PROMPTS[:3], [0] * 3, make_scheduler("pndm"), settings, shares.append)
    assert sum(1 for _ in stream) == 3 and sum(shares) == pytest.approx(3)


def test_layers_come_back_in_their_mode(models):
    models.unet.train()
    models.unet.down_blocks.eval()
    draw_images(models, ["x"], seeds=[0], height=32, width=32, num_inference_steps=1, scheduler=make_scheduler("ddim"))
    assert models.unet.training and not models.unet.down_blocks.training and not models.vae.training
    models.unet.eval()


def test_reconstruct_is_encode_and_decode(models, exact_models):
    pixels = np.random.default_rng(0).integers(0, 256, [3, 3, 32, 32], dtype=np.uint8)
    result, vae = reconstruct(models.vae, pixels), exact_models["vae"]
    with exact.counted_terms(vae) as terms:
        expected = exact.picture(vae, exact.posterior(vae, pixels)[0])
    assert np.ptp(expected) > 1
    assert_picture(result, expected, terms.count)
    assert (reconstruct(models.vae, pixels[1:2]) == result[1:2]).all()  # one by one, so not by its neighbours


def test_initial_noise_is_fixed_for_ever():
    """Pictures of old checkpoints can be drawn again: seed 42 stands for these numbers."""
    assert initial_noise(42, (3,)).tolist() == pytest.approx([0.14190717, -1.66850793, -1.33210802], abs=1e-7)


def test_truncated_text_is_what_the_model_does_not_see(models):
    tokenizer = models.tokenizer
    assert truncated_text(tokenizer, "a red circle") == ""
    # One token a letter here: 75 letters fit between the two marks of begin and end.
    assert truncated_text(tokenizer, "a" * 75) == "" and truncated_text(tokenizer, "a" * 75 + " bcd") == "bcd"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 30}, "height=30 does not fit the VAE, which halves to 1/4; try 32"),
        ({"width": 0}, "width=0 does not fit the VAE, which halves to 1/4; try 4"),
        ({"guidance_scale": 0.5}, "guidance_scale=0.5; expected at least 1"),
        ({"num_inference_steps": 1000}, "num_inference_steps=1000; expected 1 to 999"),
        ({"num_inference_steps": 0}, "num_inference_steps=0; expected 1 to 999"),
    ],
)
def test_settings_that_do_not_fit_are_named(models, change, message):
    settings = {"height": 32, "width": 32, "scheduler": make_scheduler("ddim")} | change
    with pytest.raises(InputError) as error:
        draw_images(models, ["x"], seeds=[0], **settings)
    assert message in str(error.value)


def test_schedulers_that_cannot_follow_are_named():
    with pytest.raises(InputError, match="expected one of ddim, pndm"):
        make_scheduler("euler_ancestral")
    with pytest.raises(InputError, match="use --scheduler ddim"):
        make_scheduler("pndm", prediction_type="v_prediction", rescale_betas_zero_snr=True)


def test_on_a_gpu_memory_decides_on_the_batch(models, monkeypatch):
    """Doubling the memory at most doubles the batch, it is a power of two, and a picture always fits alone."""
    batches = [batch_in_memory(models.unet, 64, 64, memory) for memory in (0, *(2**power for power in range(20, 45)))]
    assert batches[0] == 1 and batches[-1] == 32 and set(batches) == {1, 2, 4, 8, 16, 32}
    assert all(low <= high <= 2 * low for low, high in itertools.pairwise(batches))
    assert batch_in_memory(models.unet, 64, 64, 2**30) >= batch_in_memory(models.unet, 128, 128, 2**30)
    # Without a fused kernel the scores of 4096 x 4096 places need memory too.
    plain = batch_in_memory(models.unet, 64, 64, 2**32)
    models.unet.set_attn_processor(KernelAttnProcessor({}))
    assert batch_in_memory(models.unet, 64, 64, 2**32) > plain
    models.unet.set_attn_processor(AttnProcessor())
    monkeypatch.setattr(devices, "current", lambda: devices.Device("gpu", 0))
    monkeypatch.setattr(devices, "memory_bytes", lambda device: 2**44)
    assert default_batch_size(models.unet, models.vae, 256, 256) == 32


def test_on_a_gpu_the_last_batch_is_not_filled_up(models, monkeypatch):
    """Its pictures do not hang on the shape there to the last bit, and a preview of four would draw 32."""
    settings = {"height": 32, "width": 32, "num_inference_steps": 2, "scheduler": make_scheduler("ddim")}
    shapes = []
    forward = type(models.unet).forward
    monkeypatch.setattr(
        type(models.unet), "forward", lambda self, *a, **k: (shapes.append(a[0].shape[0]), forward(self, *a, **k))[1]
    )
    draw_images(models, ["a", "b", "c"], seeds=[1, 2, 3], batch_size=2, **settings)
    monkeypatch.setattr(devices, "current", lambda: devices.Device("gpu", 0))
    draw_images(models, ["a", "b", "c"], seeds=[1, 2, 3], batch_size=2, **settings)
    assert shapes == [4, 4, 4, 4, 4, 4, 2, 2]


def test_nothing_assumes_a_factor_of_eight(models):
    assert default_batch_size(models.unet, models.vae, 32, 32) == 8
    assert default_batch_size(models.unet, models.vae, 512 * 100, 512 * 100) == 1
    check_size(models.vae, 36, 4)


@pytest.mark.parametrize("before", ["", "a", "ab ", "a b c "])
def test_a_letter_that_is_cut_in_its_bytes_counts_as_truncated(before):
    tokenizer = load_component("tokenizer", "demo/tiny_sd", "tokenizer")
    prompt = before + "一个红色的圆形"
    cut = truncated_text(tokenizer, prompt)
    assert cut and prompt.endswith(cut)
    seen = len(tokenizer.tokenize(prompt.removesuffix(cut)))
    assert seen <= tokenizer.model_max_length - 2 < seen + len(tokenizer.tokenize(cut[0]))
    assert truncated_text(tokenizer, "一圆") == ""
