import dataclasses

import numpy as np
import paddle
import pytest

from sd.diffusion import objective, schedule
from sd.diffusion.model import StableDiffusionModel
from sd.errors import InputError
from sd.flags.arguments import SDModelArguments
from sd.models.loading import in_data_format
from sd.sampling.pipeline import encode_prompt
from tests.numeric import assert_close
from tests.tiny import RESOLUTION, make_tiny_repository

# Of the sums of the tiny text encoder's two layers (width 16, inner 32, two heads, 77 tokens) and of its last norm, in
# float32 on both sides: norms, four products, scores and values, 16 to 32 and back.
TEXT_TERMS = 2 * (2 * (2 * 16 + 4 * 16 + 8 + 77 + 16 + 32) + 16)

CAPTIONS = ["a red circle on a black background", "", "a blue square", "a green triangle on a white background"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_tiny_repository(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make_model(repository):
    def make(**flags):
        args = SDModelArguments(pretrained_model_name_or_path=str(repository), **flags)
        return StableDiffusionModel.from_arguments(args, RESOLUTION)

    return make


def make_batch(model, timesteps=(3, 146, 500, 999), seed=0):
    """Four samples as the data workers hand them over, as tensors."""
    rng = np.random.default_rng(seed)
    samples = [model.draws(RESOLUTION)(rng) for _ in timesteps]
    batch = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
    batch["timestep"] = np.array(timesteps)
    batch["pixel_values"] = rng.integers(0, 256, (len(timesteps), 3, RESOLUTION, RESOLUTION), dtype=np.uint8)
    batch["input_ids"] = np.stack([model.tokenize(CAPTIONS[i % 4]) for i in range(len(timesteps))])
    return {name: paddle.to_tensor(value) for name, value in batch.items()}


def gradients(model, batch):
    model.clear_gradients()
    model(**batch)["loss"].backward()
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


def reference_loss(args, latents, batch, prediction):
    """The batch's UNet input and loss in float64, written out from the papers."""
    x0, prediction = latents.astype(np.float64), prediction.astype(np.float64)
    alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    if args.rescale_betas_zero_snr:
        root = np.sqrt(alpha_bar)
        alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    alpha_bar = alpha_bar[batch["timestep"]][:, None, None, None]
    noise = batch["noise"].astype(np.float64)
    if args.noise_offset:
        noise = noise + args.noise_offset * batch["offset_noise"]
    input_noise = noise
    if args.input_perturbation:
        input_noise = noise + args.input_perturbation * batch["perturbation_noise"]
    noisy = np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * input_noise
    expected = noise
    if args.prediction_type == "v_prediction":
        expected = np.sqrt(alpha_bar) * noise - np.sqrt(1 - alpha_bar) * x0
    losses = ((prediction - expected) ** 2).mean(axis=(1, 2, 3))
    weights = np.ones(len(losses))
    if args.snr_gamma is not None:
        snr = (alpha_bar / (1 - alpha_bar)).reshape(-1)
        floor = min(1.0, args.snr_gamma) if args.rescale_betas_zero_snr else 0.0  # no weight 0 where sampling starts
        weights = np.clip(snr, floor, args.snr_gamma) / (snr if args.prediction_type == "epsilon" else snr + 1)
    return noisy, (weights * losses).mean(), losses


FLAG_SETS = [
    {},
    {"snr_gamma": 5.0},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "v_prediction", "snr_gamma": 5.0},
    {"prediction_type": "v_prediction", "snr_gamma": 5.0, "rescale_betas_zero_snr": True},
    {"noise_offset": 0.1, "input_perturbation": 0.1},
    {"prediction_type": "v_prediction", "noise_offset": 0.05, "input_perturbation": 0.1, "snr_gamma": 1.0},
]


@pytest.mark.parametrize("flags", FLAG_SETS, ids=lambda flags: "-".join(flags) or "default")
def test_loss_equals_a_float64_reference(make_model, flags):
    model = make_model(**flags)
    batch = make_batch(model)
    seen = {}
    model.unet.register_forward_post_hook(lambda _, inputs, output: seen.update(noisy=inputs[0], out=output[0]))
    result = model(**batch)
    latents = model.encode_images(batch["pixel_values"], batch["posterior_noise"]).numpy()
    arrays = {name: value.numpy() for name, value in batch.items()}
    noisy, loss, sample_loss = reference_loss(model.model_args, latents, arrays, seen["out"].numpy())
    # Up to four products and sums, two with a rounded table; then the mean over 4 x 8 x 8 numbers, and over 4.
    assert_close(seen["noisy"].numpy(), noisy, 8, "the UNet's input")
    assert_close(result["sample_loss"].numpy(), sample_loss, 8 + 256, "the loss of each sample")
    assert_close(result["loss"].numpy(), loss, 8 + 256 + 4, "the loss")
    assert result["timestep"].numpy().tolist() == [3, 146, 500, 999]


@pytest.mark.defect(4)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_defect_04_each_sample_has_its_own_snr_weight(make_model, prediction_type):
    model = make_model(snr_gamma=5.0, prediction_type=prediction_type)
    batch = make_batch(model)
    losses = [float(model(**{name: value[i : i + 1] for name, value in batch.items()})["loss"]) for i in range(4)]
    together = float(model(**batch)["loss"])
    assert_close(together, np.mean(losses), 256 + 4)  # the means over a sample and over the batch
    weights = schedule.min_snr_weight(schedule.snr_table(schedule.alpha_bar_table()), 5.0, prediction_type)[[3, 999]]
    with_first_weight = weights[0] * float(model(**batch)["sample_loss"].mean())
    assert abs(with_first_weight - together) > 0.1 * together


def test_a_random_unet_predicts_zero_so_its_loss_is_the_mean_square_of_the_noise(make_model, repository):
    model = make_model(unet_name_or_path=str(repository / "unet_config.json"))
    batch = make_batch(model)
    reference = (batch["noise"].numpy().astype(np.float64) ** 2).mean()
    assert_close(model(**batch)["loss"].numpy(), reference, 256 + 4)  # the means over a sample and over the batch
    trained = {name for name, gradient in gradients(model, batch).items() if np.abs(gradient).max() > 0}
    assert trained == {"unet.conv_out.weight", "unet.conv_out.bias"}


def test_latents_are_drawn_from_the_posterior_and_scaled(make_model):
    model = make_model()
    batch = make_batch(model)
    images = paddle.to_tensor(batch["pixel_values"].numpy().astype(np.float32) / 127.5 - 1)
    posterior = model.vae.encode(images).latent_dist
    mean, log_variance = posterior.mean.numpy().astype(np.float64), posterior.logvar.numpy().astype(np.float64)
    expected = (mean + np.exp(log_variance / 2) * batch["posterior_noise"].numpy()) * 0.18215
    latents = model.encode_images(batch["pixel_values"], batch["posterior_noise"])
    assert_close(latents.numpy(), expected, 20 * 72)  # the pixels are scaled by other operators: 20 sums of 72 see them
    assert tuple(latents.shape[1:]) == model.latent_shape(RESOLUTION) == (4, 8, 8)
    assert latents.stop_gradient


def test_encode_text_equals_the_encoders_own_forward(make_model):
    model = make_model()
    ids = make_batch(model)["input_ids"]
    for seen in (ids, ids[:, :20]):
        assert_close(
            model.encode_text(seen).numpy(), model.text_encoder(seen)[0].numpy().astype(np.float64), TEXT_TERMS
        )


def test_only_what_is_trained_gets_gradients_and_training_mode(make_model):
    model = make_model()
    model.eval()
    model.train()
    assert model.unet.training and not model.vae.training and not model.text_encoder.training
    assert {name.split(".")[0] for name in gradients(model, make_batch(model))} == {"unet"}

    model = make_model(train_text_encoder=True)
    model.train()
    assert model.text_encoder.training and not model.vae.training
    actual = gradients(model, make_batch(model))
    assert {name for name in actual if not name.startswith("unet.")} == {
        f"text_encoder.{name}" for name, _ in model.text_encoder.named_parameters()
    }


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_recompute_gives_identical_gradients(make_model, train_text_encoder):
    model = make_model(train_text_encoder=train_text_encoder)
    batch = make_batch(model)
    stored = gradients(model, batch)
    model.set_recompute(True)
    assert model.unet.is_gradient_checkpointing
    recomputed = gradients(model, batch)
    assert set(stored) == set(recomputed)
    for name, gradient in stored.items():
        np.testing.assert_array_equal(gradient, recomputed[name], err_msg=name)


def test_a_step_reads_nothing_back_from_the_device(make_model, monkeypatch):
    """Only single integers may be read: sizes made by paddle.shape, which lie on the CPU on every device."""
    model = make_model(snr_gamma=5.0, noise_offset=0.1, input_perturbation=0.1, train_text_encoder=True)
    batch = make_batch(model)
    reads = []

    def watch(name):
        original = getattr(paddle.Tensor, name)

        def read(tensor, *args, **kwargs):
            if tensor.ndim or tensor.is_floating_point():
                reads.append(name)
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(paddle.Tensor, name, read)

    for name in ("numpy", "item", "tolist", "__float__", "__int__", "__bool__", "__index__", "__array__"):
        watch(name)
    result = model(**batch)
    result["loss"].backward()
    assert reads == []
    assert float(result["loss"]) > 0 and reads  # the watch works


def test_a_forward_pass_calls_few_operators(make_model, monkeypatch):
    """On small models the calls cost more than the numbers: VAE encoder 103, text encoder 57, UNet and loss 352."""
    model = make_model(snr_gamma=5.0)
    batch = make_batch(model)
    calls = []

    def watch(name, operator):
        def call(*args, **kwargs):
            calls.append(name)
            return operator(*args, **kwargs)

        monkeypatch.setattr(paddle._C_ops, name, call)

    for name, operator in list(vars(paddle._C_ops).items()):
        if callable(operator) and not name.startswith("_"):
            watch(name, operator)
    model(**batch)
    assert 400 < len(calls) <= 530


def test_tokens_are_cut_and_padded_to_the_flag(make_model):
    model = make_model(model_max_length=8)
    start, end = len(model.tokenizer) - 2, len(model.tokenizer) - 1
    ids = model.tokenize("a red circle on a black background")
    assert ids.dtype == np.int64 and ids.shape == (8,) and (ids[0], ids[-1]) == (start, end)
    assert model.tokenize("").tolist() == [start] + [end] * 7


def test_pictures_of_the_log_see_the_text_states_of_training(make_model):
    model = make_model(model_max_length=8)
    drawn = encode_prompt(model.text_encoder, model.tokenizer, "a red circle")
    trained = model.encode_text(paddle.to_tensor(model.tokenize("a red circle")[None]))
    assert drawn.shape == [1, 8, model.text_encoder.config.hidden_size]
    assert_close(drawn.numpy(), trained.numpy().astype(np.float64), TEXT_TERMS)


def test_extra_keys_of_a_batch_do_no_harm(make_model):
    model = make_model()
    batch = make_batch(model)
    extra = {"position": paddle.zeros([4, 2], "int64"), "sample": paddle.arange(4)}
    assert float(model(**batch, **extra)["loss"]) == float(model(**batch)["loss"])


def test_tables_are_not_saved_with_the_weights(make_model):
    model = make_model()
    assert {name.split(".")[0] for name in model.state_dict()} == {"unet", "vae", "text_encoder"}


def test_tables_and_vae_stay_in_float32_under_o2(make_model):
    from paddle.amp.auto_cast import need_keep_fp32

    model = make_model()
    assert need_keep_fp32(model, "bfloat16")
    assert all(need_keep_fp32(layer, "bfloat16") for layer in model.vae.sublayers(include_self=True))
    assert not need_keep_fp32(model.unet.conv_in, "bfloat16")


def test_nothing_assumes_four_channels(tmp_path):
    repository = make_tiny_repository(tmp_path, latent_channels=3)
    args = SDModelArguments(pretrained_model_name_or_path=str(repository))
    model = StableDiffusionModel.from_arguments(args, 64)
    assert model.latent_shape(64) == (3, 16, 16)
    assert model.draws(64)(np.random.default_rng(0))["noise"].shape == (3, 16, 16)


@pytest.mark.parametrize("resolution", [20, 36])
def test_a_resolution_that_cannot_be_halved_is_refused(make_model, resolution):
    with pytest.raises(InputError, match=rf"--resolution {resolution}: the VAE divides it by 4 .* multiple of 8"):
        make_model().latent_shape(resolution)


def test_zero_snr_needs_v_prediction():
    with pytest.raises(InputError, match="v_prediction"):
        SDModelArguments(rescale_betas_zero_snr=True)


def test_the_unet_convolves_in_either_layout(make_model):
    """NHWC is a layout, not other numbers: bit for bit on a CPU. A checkpoint's configuration stays as it was."""
    model = make_model()
    batch = make_batch(model)
    before = model(**batch)["loss"].numpy()
    model.unet = in_data_format(model.unet, "NHWC")
    assert model.unet.data_format == "NHWC" and model.unet.config.data_format == "NCHW"
    assert np.array_equal(model(**batch)["loss"].numpy(), before)


def test_every_model_flag_is_used():
    """A flag of SDModelArguments that no module reads would be dead."""
    from pathlib import Path

    text = "".join(path.read_text() for path in Path("sd").rglob("*.py") if path.name != "arguments.py")
    unused = [field.name for field in dataclasses.fields(SDModelArguments) if field.name not in text]
    assert unused == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_error_of_a_half_precision_prediction_is_summed_in_float32(dtype):
    """Squares of 300 do not fit float16, and bfloat16 has 8 bits for a sum."""
    rng = np.random.default_rng(0)
    prediction = paddle.to_tensor(rng.normal(size=(2, 4, 8, 8)) * 300, dtype="float32").astype(dtype)
    target = paddle.to_tensor(rng.normal(size=(2, 4, 8, 8)), dtype="float32").astype(dtype)
    actual = objective.squared_error(prediction, target)
    wide = np.subtract(*(tensor.astype("float32").numpy().astype(np.float64) for tensor in (prediction, target)))
    assert actual.dtype == paddle.float32
    assert_close(actual.numpy(), (wide**2).mean(axis=(1, 2, 3)), 4 * 8 * 8)  # one sum


@pytest.mark.parametrize("source", ["pixels", "moments"])
def test_latents_are_drawn_in_float32_under_every_precision(make_model, source, monkeypatch):
    """Paddle casts for cards alone, so it is asked at each operator whether it would."""
    model = make_model()
    batch = make_batch(model)
    moments = paddle.randn([4, 8, 8, 8]).astype("float16")
    tracer, levels = paddle.base.framework._dygraph_tracer(), []

    def watch(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            levels.append(tracer._amp_level)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for name in ("__add__", "__sub__", "__mul__", "__truediv__", "astype"):
        watch(paddle.Tensor, name)
    for name in ("conv2d", "exp", "clip", "add", "multiply", "scale"):
        watch(paddle._C_ops, name)
    monkeypatch.setattr(tracer, "_amp_level", paddle.base.core.AmpLevel.O2)
    if source == "pixels":
        model.encode_images(batch["pixel_values"], batch["posterior_noise"])
    else:
        model.cached_latents(moments, batch["posterior_noise"])
    assert len(levels) > 4 and set(levels) == {paddle.base.core.AmpLevel.O0}
