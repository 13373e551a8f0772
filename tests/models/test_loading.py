import json
import logging
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from sd.diffusion.model import StableDiffusionModel
from sd.errors import InputError
from sd.flags.arguments import SDModelArguments
from sd.models.loading import component_source, load_component, random_unet
from tests.numeric import assert_close
from tests.tiny import RESOLUTION, make_tiny_repository

UNET_FILE = "diffusion_paddle_model.safetensors"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_tiny_repository(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def repository(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "repository"))


def load(repository, **flags):
    args = SDModelArguments(pretrained_model_name_or_path=str(repository), **flags)
    return StableDiffusionModel.from_arguments(args, RESOLUTION)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_weights_are_those_of_the_file(pristine):
    stored = load_file(pristine / "unet" / UNET_FILE)
    loaded = load_component("unet", str(pristine), "unet").state_dict()
    assert set(stored) == set(loaded)
    for name, value in stored.items():
        np.testing.assert_array_equal(loaded[name].numpy(), value)


def test_one_log_line_names_origin_and_size_of_each_component(repository, caplog):
    caplog.set_level(logging.INFO, logger="sd")
    config = repository / "unet_config.json"
    load(repository)
    load(repository, unet_name_or_path=str(config))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 8
    vocabulary = len(json.loads((repository / "tokenizer/vocab.json").read_text()))
    assert lines[0] == f"tokenizer: {vocabulary} tokens loaded from {repository}/tokenizer"
    for line, part, name in zip(
        lines[1:4], ("text_encoder", "vae", "unet"), ("model", *[UNET_FILE[:-12]] * 2), strict=True
    ):
        count = sum(array.size for array in load_file(repository / part / f"{name}.safetensors").values())
        assert line == f"{part}: {count:,} weights loaded from {repository}/{part}"
    assert lines[7] == f"unet: {lines[3].split()[1]} random weights, configuration {config}"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_agrees_with_the_libraries_own_loader(pristine, part):
    ours = load_component(part, str(pristine), part)
    theirs = type(ours).from_pretrained(str(pristine / part))
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name].numpy(), value.numpy())


def test_loading_draws_no_random_numbers(pristine):
    """What is loaded needs no initial weights, and does not change the random state of the run."""
    paddle.seed(1)
    for part in ("unet", "vae", "text_encoder"):
        load_component(part, str(pristine), part)
    after_loading = paddle.rand([4]).numpy()
    paddle.seed(1)
    np.testing.assert_array_equal(after_loading, paddle.rand([4]).numpy())


def test_a_components_own_flag_wins(pristine):
    args = SDModelArguments(pretrained_model_name_or_path="repo", vae_name_or_path=str(pristine / "vae"))
    assert component_source(args, "vae") == (str(pristine / "vae"), None)
    assert component_source(args, "unet") == ("repo", "unet")
    assert load_component("vae", *component_source(args, "vae")).config.latent_channels == 4


def test_files_in_the_layout_of_pytorch_libraries_load(repository):
    """Linear weights transposed, format `pt`, and the old names of the VAE's attention."""
    for part, old_names in (("unet", {}), ("vae", {"to_q": "query", "to_k": "key", "to_v": "value"})):
        before = load_component(part, str(repository), part)
        linear = {f"{n}.weight" for n, layer in before.named_sublayers() if isinstance(layer, paddle.nn.Linear)}
        assert linear
        stored = {}
        for name, value in load_file(repository / part / UNET_FILE).items():
            new_name = name
            if ".attentions." in name and part == "vae":
                for new, old in old_names.items():
                    new_name = new_name.replace(new, old)
                new_name = new_name.replace("to_out.0", "proj_attn")
            stored[new_name] = np.ascontiguousarray(value.T if name in linear else value)
        (repository / part / UNET_FILE).unlink()
        save_file(stored, repository / part / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        after = load_component(part, str(repository), part).state_dict()
        for name, value in before.state_dict().items():
            np.testing.assert_array_equal(after[name].numpy(), value.numpy(), err_msg=name)


def test_paddlenlps_older_text_encoder_names_load(tmp_path):
    from paddlenlp.transformers import CLIPTextConfig, CLIPTextModel

    config = {"vocab_size": 40, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    old = CLIPTextModel(CLIPTextConfig(**config, num_attention_heads=2, projection_dim=8))
    old.eval()
    old.save_pretrained(str(tmp_path), safe_serialization=True)
    ids = paddle.to_tensor(np.arange(20).reshape(2, 10))
    new = load_component("text_encoder", str(tmp_path))
    # The sums of a layer: a norm and four products of 8, scores and values of two heads, 8 to 16 and back, a norm.
    assert_close(new(ids)[0].numpy(), old(ids)[0].numpy().astype(np.float64), 2 * (8 + 4 * 8 + 4 + 10 + 8 + 8 + 16 + 8))


def test_text_encoders_of_transformers_5_load(repository):
    """Their names lack the prefix `text_model.`."""
    path = repository / "text_encoder/model.safetensors"
    before = load_component("text_encoder", str(repository), "text_encoder").state_dict()
    stored = {name.removeprefix("text_model."): value for name, value in load_file(path).items()}
    assert set(stored).isdisjoint(before)
    save_file(stored, path, metadata={"format": "np"})
    after = load_component("text_encoder", str(repository), "text_encoder").state_dict()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name].numpy(), value.numpy())


def test_a_variant_is_another_file(repository):
    weights = load_file(repository / "unet" / UNET_FILE)
    weights = {name: value + 1 for name, value in weights.items()}
    save_file(weights, repository / "unet" / "diffusion_paddle_model.ema.safetensors", metadata={"format": "pd"})
    plain, ema = (load_component("unet", str(repository / "unet"), variant=variant) for variant in (None, "ema"))
    difference = ema.conv_in.weight.numpy() - plain.conv_in.weight.numpy()
    assert_close(difference, np.ones(difference.shape), 4)  # to numbers below 1 in float32, and back


def test_random_unet_is_zero_where_branches_end_and_repeats_with_the_seed(pristine):
    paddle.seed(5)
    unet = random_unet(pristine / "unet_config.json")
    zero = {name for name, p in unet.named_parameters() if name.endswith("weight") and not p.numpy().any()}
    ends = {n for n, _ in unet.named_parameters() if n.endswith(("conv2.weight", "proj_out.weight", "conv_out.weight"))}
    assert zero == ends and len(ends) == 13
    bound = 1 / np.sqrt(4 * 9)
    weight = unet.conv_in.weight.numpy()
    assert np.abs(weight).max() <= bound and np.abs(weight).max() > 0.9 * bound
    paddle.seed(5)
    again = random_unet(pristine / "unet_config.json").state_dict()
    assert all(np.array_equal(value.numpy(), again[name].numpy()) for name, value in unet.state_dict().items())


def count_parameters(config):
    """Build without filling the memory and count."""
    from ppdiffusers import UNet2DConditionModel

    with paddle.LazyGuard():
        unet = UNet2DConditionModel.from_config(config)
    return sum(int(np.prod(parameter.shape)) for parameter in unet.parameters())


def test_the_bundled_configuration_is_that_of_v1_4():
    config = json.loads(Path("sd/unet_config.json").read_text())
    assert count_parameters(config) == 859_520_964


@pytest.mark.defect(16)
@pytest.mark.parametrize("damage", ["missing folder", "no weights", "cut", "lost tensor", "pickle", "other shapes"])
def test_defect_16_a_failed_load_never_becomes_training_from_scratch(repository, damage):
    unet = repository / "unet"
    weights = unet / UNET_FILE
    if damage == "missing folder":
        shutil.rmtree(unet)
        message = r"no sub-folder 'unet'; expected one, or --unet_name_or_path"
    elif damage == "no weights":
        weights.unlink()
        message = r"no weights; expected one of diffusion_paddle_model.safetensors"
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
        message = r"unreadable weights .*copy or download"
    elif damage == "lost tensor":
        tensors = load_file(weights)
        del tensors["conv_in.bias"]
        save_file(tensors, weights, metadata={"format": "pd"})
        message = r"lacks 1 of 208 weights \(first: conv_in.bias\)"
    elif damage == "pickle":
        weights.rename(unet / "model_state.pdparams")
        message = r"model_state.pdparams: no readable Paddle file"
    else:
        edit_json(unet / "config.json", block_out_channels=[8, 24])
        message = r"weights and config.json do not belong together"
    with pytest.raises(InputError, match=message) as error:
        load(repository)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "a/b/c/d"])
def test_a_missing_folder_is_named_with_its_flag(name, repository):
    with pytest.raises(InputError, match=r"--unet_name_or_path .*: no such folder or file"):
        load(repository, unet_name_or_path=name)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer"])
def test_a_published_name_that_cannot_be_fetched_names_the_remedy(part, monkeypatch):
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    with pytest.raises(InputError) as error:
        load_component(part, "no-such-owner/no-such-model", part)
    text = str(error.value)
    assert text.startswith(f"no-such-owner/no-such-model/{part} could not be loaded") and "\n" not in text
    assert "local folder" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": 24}, r"cross_attention_dim=24 of the UNet, .* 16"),
        ({"in_channels": 8}, r"in_channels=8 of the UNet, .* 4 channels"),
        ({"out_channels": 3}, r"out_channels=3 of the UNet, .* 4 channels"),
        ({"down_block_types": ["NoSuchBlock", "DownBlock2D"]}, r"unet_config.json: makes no UNet2DConditionModel"),
        ({"norm_num_groups": 3}, r"unet_config.json: .*block_out_channels.* multiples of norm_num_groups=3"),
        ({"block_out_channels": [8]}, r"unet_config.json: makes no UNet2DConditionModel"),
    ],
)
def test_a_mismatched_unet_configuration_is_refused(repository, changes, message):
    edit_json(repository / "unet_config.json", **changes)
    with pytest.raises(InputError, match=message) as error:
        load(repository, unet_name_or_path=str(repository / "unet_config.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"words"'])
def test_a_file_that_is_no_unet_configuration_is_refused(repository, text):
    (repository / "unet_config.json").write_text(text)
    with pytest.raises(InputError, match=r"unet_config.json: not a (readable )?model configuration"):
        load(repository, unet_name_or_path=str(repository / "unet_config.json"))


def test_a_file_in_place_of_a_folder_is_refused(repository):
    with pytest.raises(InputError, match="is a file"):
        load(repository, vae_name_or_path=str(repository / "model_index.json"))


def test_a_caption_longer_than_the_text_encoders_positions_is_refused(repository):
    with pytest.raises(InputError, match=r"--model_max_length 100: .* 77"):
        load(repository, model_max_length=100)


def test_a_tokenizer_of_another_model_is_refused(repository):
    vocabulary = json.loads((repository / "tokenizer/vocab.json").read_text())
    vocabulary["extra"] = len(vocabulary)
    (repository / "tokenizer/vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(InputError, match="the tokenizer has 515 tokens, the text encoder has 514"):
        load(repository)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_tokenizer_without_its_files_is_refused(repository, name):
    (repository / "tokenizer" / name).unlink()
    with pytest.raises(InputError, match=f"no {name}"):
        load(repository)
