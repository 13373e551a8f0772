"""A whole model in one file: names, shapes and values against CompVis' own code, ppdiffusers' converter and NumPy."""

import json
import shutil

import numpy as np
import paddle
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bench.full_size import TEXT_CONFIG, VAE_CONFIG
from sd.errors import InputError
from sd.models import compvis
from sd.models.loading import _build_empty, load_component
from sd.models.single_file import CONFIGS_KEY, SingleFile, stored_name
from sd.models.weights import linear_weights
from sd.sampling.export import export_single_file
from sd.sampling.models import load_models
from sd.sampling.pipeline import draw_images
from tests import tiny
from tests.models.test_torch_file import ROOT, Saver

# Of the modules of github.com/CompVis/stable-diffusion, made as configs/stable-diffusion/v1-inference.yaml says.
V1_SHAPES = {
    name: tuple(map(int, shape.split(",")))
    for name, shape in map(str.split, (ROOT / "tests/fixtures/compvis_v1_names.txt").read_text().splitlines())
}
V1_CONFIGS = {
    "unet": json.loads((ROOT / "sd/unet_config.json").read_text()),
    "vae": VAE_CONFIG,
    "text_encoder": TEXT_CONFIG,
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tiny.make_tiny_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def models(repository):
    return load_models(pretrained_model=str(repository))


@pytest.fixture(scope="module")
def file(models, tmp_path_factory):
    return export_single_file(models, tmp_path_factory.mktemp("one") / "model.safetensors")


def assert_same_weights(layer, other):
    ours, theirs = layer.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys() and len(ours) > 30
    for name in ours:
        np.testing.assert_array_equal(ours[name].numpy(), theirs[name].numpy(), err_msg=name)


def test_names_and_shapes_are_those_of_compvis_at_the_published_size():
    actual = {"cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77)}
    for component, config in V1_CONFIGS.items():
        layer = _build_empty(component, config, component)
        linear = linear_weights(layer)
        for name, tensor in layer.state_dict().items():
            shape = tuple(tensor.shape[::-1] if name in linear else tensor.shape)
            shape = (*shape, 1, 1) if component == "vae" and name in linear else shape
            actual[stored_name(component, name, layer.config)] = shape
    assert actual == V1_SHAPES


def test_the_configuration_of_a_published_file_is_read_off_its_shapes(monkeypatch):
    class File:
        path, shapes, metadata = "v1.safetensors", V1_SHAPES, {}

    monkeypatch.setattr("sd.models.single_file.WeightFile", lambda path: File)
    read = SingleFile("v1.safetensors")
    assert not read.is_v2
    for component, expected in V1_CONFIGS.items():
        config = read.configs[component]
        assert {name: config[name] for name in config if name in expected}.items() <= expected.items()
    assert read.configs["unet"]["block_out_channels"] == [320, 640, 1280, 1280]
    assert read.configs["vae"]["layers_per_block"] == 2 and read.configs["text_encoder"]["num_hidden_layers"] == 12


def test_a_round_trip_keeps_every_bit_and_the_picture(models, file, repository):
    again = load_models(str(file), tokenizer=str(repository / "tokenizer"))
    for component in ("unet", "vae", "text_encoder"):
        assert_same_weights(getattr(again, component), getattr(models, component))
    assert (again.schedule, again.sampler, again.side) == (models.schedule, models.sampler, models.side)

    def picture(m):
        size = {"height": 24, "width": 24, "seeds": [1], "num_inference_steps": 2}
        return draw_images(m, ["a red circle"], scheduler=m.scheduler("ddim"), **size)

    assert (picture(again) == picture(models)).all()


def test_half_precision_is_the_nearest_half(models, tmp_path):
    path = export_single_file(models, tmp_path / "half.safetensors", "fp16")
    stored = load_file(path)
    assert {value.dtype for name, value in stored.items() if "position_ids" not in name} == {np.dtype(np.float16)}
    bias = models.unet.state_dict()["conv_in.bias"].numpy()
    assert np.array_equal(stored["model.diffusion_model.input_blocks.0.0.bias"], bias.astype(np.float16))


def test_ppdiffusers_converter_reads_unet_and_vae_alike(models, file):
    from ppdiffusers.pipelines.stable_diffusion import convert_from_ckpt

    stored = {name: paddle.to_tensor(value) for name, value in load_file(file).items()}
    config = {
        name: models.unet.config[name] for name in ("layers_per_block", "class_embed_type", "addition_embed_type")
    }
    converted = {
        "unet": convert_from_ckpt.convert_ldm_unet_checkpoint(dict(stored), config),
        "vae": convert_from_ckpt.convert_ldm_vae_checkpoint(dict(stored), models.vae.config),
    }
    for component, weights in converted.items():
        layer = getattr(models, component)
        if component == "vae":  # of which it leaves the attention as 1 x 1 convolutions
            weights = {
                name: value.squeeze([2, 3]) if ".to_" in name and value.ndim == 4 else value
                for name, value in weights.items()
            }
        weights = convert_from_ckpt.convert_diffusers_vae_unet_to_ppdiffusers(layer, weights)
        assert weights.keys() == layer.state_dict().keys()
        for name, tensor in layer.state_dict().items():
            np.testing.assert_array_equal(weights[name].numpy(), tensor.numpy(), err_msg=name)


def test_metadata_follow_modelspec(file, models):
    with safe_open(file, framework="np") as opened:
        metadata = opened.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1" and metadata["format"] == "pt"
    assert metadata["modelspec.resolution"] == "32x32" and metadata["modelspec.prediction_type"] == "epsilon"
    assert json.loads(metadata[CONFIGS_KEY])["vae"]["block_out_channels"] == [8, 8, 8]


def test_a_lightning_checkpoint_gives_its_state_dict_and_runs_nothing(file, models, tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    saver, path = Saver(monkeypatch), tmp_path / "model.ckpt"
    configs = SingleFile(file).configs
    weights = {name: value for name, value in load_file(file).items() if "position_ids" not in name}
    saver.archive(path, {"global_step": 7, "callbacks": {"a": Evil()}, "state_dict": weights})
    read = SingleFile(path)
    read.configs = configs  # a .ckpt has no metadata, and tiny models other groups and heads than the published
    unet = _build_empty("unet", configs["unet"], path)
    read.load_weights("unet", unet)
    assert_same_weights(unet, models.unet)
    assert not (tmp_path / "ran").exists()


def open_clip_states(weights, heads, layers, tokens):
    """States after `layers` blocks and the last norm, as open_clip's text transformer computes them, in float64."""
    w = {name.removeprefix(compvis.TEXT_V2): value.astype(np.float64) for name, value in weights.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    from scipy.special import erf

    x = w["token_embedding.weight"][tokens] + w["positional_embedding"][: len(tokens)]
    mask = np.triu(np.full([len(tokens)] * 2, -np.inf), 1)
    for number in range(layers):
        block = f"transformer.resblocks.{number}"
        mixed = norm(x, f"{block}.ln_1") @ w[f"{block}.attn.in_proj_weight"].T + w[f"{block}.attn.in_proj_bias"]
        query, key, value = (part.reshape(len(tokens), heads, -1).swapaxes(0, 1) for part in np.split(mixed, 3, axis=1))
        scores = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]) + mask)
        attended = (scores / scores.sum(-1, keepdims=True) @ value).swapaxes(0, 1).reshape(x.shape)
        x = x + attended @ w[f"{block}.attn.out_proj.weight"].T + w[f"{block}.attn.out_proj.bias"]
        inner = norm(x, f"{block}.ln_2") @ w[f"{block}.mlp.c_fc.weight"].T + w[f"{block}.mlp.c_fc.bias"]
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        x = x + inner @ w[f"{block}.mlp.c_proj.weight"].T + w[f"{block}.mlp.c_proj.bias"]
    return norm(x, "ln_final")


def test_a_v2_text_encoder_computes_what_open_clip_does(file, tmp_path):
    """Width 128 makes two heads of 64; of three blocks the last is left out, as in v2."""
    rng, width, layers = np.random.default_rng(0), 128, 3
    shapes = {"token_embedding.weight": (50, width), "positional_embedding": (77, width), "text_projection": (width, 8)}
    for number in range(layers):
        block = f"transformer.resblocks.{number}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            f"{block}.attn.out_proj.weight": (width, width),
            f"{block}.attn.out_proj.bias": (width,),
            f"{block}.mlp.c_fc.weight": (4 * width, width),
            f"{block}.mlp.c_fc.bias": (4 * width,),
            f"{block}.mlp.c_proj.weight": (width, 4 * width),
            f"{block}.mlp.c_proj.bias": (width,),
        }
        shapes |= {f"{block}.ln_{k}.{kind}": (width,) for k in (1, 2) for kind in ("weight", "bias")}
    shapes |= {"ln_final.weight": (width,), "ln_final.bias": (width,)}
    text = {compvis.TEXT_V2 + name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in shapes.items()}
    rest = {name: value for name, value in load_file(file).items() if not name.startswith("cond_stage_model.")}
    save_file(rest | text, tmp_path / "v2.safetensors", metadata={"format": "pt"})
    read = SingleFile(tmp_path / "v2.safetensors")
    assert read.is_v2 and read.configs["text_encoder"]["num_hidden_layers"] == layers - 1
    encoder = load_component("text_encoder", str(tmp_path / "v2.safetensors"))
    tokens = [3, 41, 5, 49]
    states = encoder(paddle.to_tensor([tokens])).last_hidden_state[0].numpy()
    expected = open_clip_states(text, heads=2, layers=layers - 1, tokens=tokens)
    # Two blocks of sums over up to 512 numbers in float32: some tens of roundings of the largest value.
    np.testing.assert_allclose(states, expected, rtol=0, atol=100 * np.finfo(np.float32).eps * np.abs(expected).max())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["conditioner.embedders.0.weight", "model.diffusion_model.x"], "looks like an SDXL model"),
        (["lora_unet_down_blocks_0.lora_up.weight"], "looks like a LoRA"),
        (["control_model.input_blocks.0.0.weight"], "looks like a ControlNet"),
        (["down_blocks.0.resnets.0.conv1.weight"], "a UNet in diffusers' layout; put it beside its config.json"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "looks like a FLUX model"),
        (["something"], "looks like no model that is known here"),
    ],
)
def test_other_models_are_refused_by_their_kind(tmp_path, names, message):
    save_file({name: np.zeros([2, 2], np.float32) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=message):
        load_component("unet", str(tmp_path / "other.safetensors"))


def test_an_inpainting_model_and_a_lost_weight_are_named(file, tmp_path):
    tensors = load_file(file)
    del tensors["first_stage_model.quant_conv.bias"]
    with safe_open(file, framework="np") as opened:
        metadata = opened.metadata()
    save_file(tensors, tmp_path / "lost.safetensors", metadata)
    with pytest.raises(InputError, match=r"lacks 1 weights of the vae \(first: first_stage_model.quant_conv.bias\)"):
        load_component("vae", str(tmp_path / "lost.safetensors"))
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = np.zeros([8, 9, 3, 3], np.float32)
    save_file(tensors, tmp_path / "inpainting.safetensors", metadata)
    with pytest.raises(InputError, match="an inpainting model"):
        load_component("unet", str(tmp_path / "inpainting.safetensors"))


def test_an_export_is_refused_where_it_cannot_be_right(models, file, tmp_path):
    with pytest.raises(InputError, match=r"expected the name of a new \.safetensors file"):
        export_single_file(models, file)
    with pytest.raises(InputError, match=r"expected the name of a new \.safetensors file"):
        export_single_file(models, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_training_from_one_file_is_training_from_its_folder(tmp_path):
    from tests.sampling.test_export import trained_from
    from tests.training_harness import Workshop

    workshop = Workshop(tmp_path)
    folder = tmp_path / "models"
    expected = trained_from(workshop, "folder", folder)
    file = export_single_file(load_models(pretrained_model=str(folder)), tmp_path / "model.safetensors")
    shutil.move(folder / "unet", tmp_path / "away")
    tokenizer = ["--tokenizer_name", folder / "tokenizer"]
    assert np.array_equal(trained_from(workshop, "file", file, more=tokenizer), expected)
