"""Exported pipelines: the same pictures from both layouts; bench/export_diffusers.py holds them in PyTorch itself."""

import fcntl
import json
import os

import numpy as np
import pytest
from safetensors import safe_open

from sd.errors import InputError, RunError
from sd.flags.command_line import parse_arguments
from sd.sampling.export import export_pipeline
from sd.sampling.models import load_models
from sd.sampling.pipeline import draw_images
from tests.checkpoints import make_output_dir
from tests.tiny import make_tiny_repository
from tests.training_harness import Workshop, weights


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    repository = make_tiny_repository(tmp_path_factory.mktemp("tiny"))
    return load_models(str(make_output_dir(repository, tmp_path_factory.mktemp("output"))), variant="ema")


def picture(models):
    size = {"height": 24, "width": 24, "seeds": [1], "num_inference_steps": 3}
    return draw_images(models, ["a red circle, more than twenty letters"], scheduler=models.scheduler("ddim"), **size)


@pytest.mark.parametrize("layout", ["ppdiffusers", "diffusers"])
def test_an_export_draws_the_same_pictures(models, tmp_path, layout):
    folder = export_pipeline(models, tmp_path / "pipeline", layout)
    again = load_models(pretrained_model=str(folder))
    assert (picture(again) == picture(models)).all()
    assert again.tokenizer.model_max_length == 20 and again.sampler == "ddim"
    assert again.scheduler().config.prediction_type == "v_prediction"
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1 and len(files) >= 8  # whoever reads one reads all


def test_the_diffusers_layout_is_pytorchs(models, tmp_path):
    folder = export_pipeline(models, tmp_path / "pipeline", "diffusers")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert {path.name for path in (folder / "unet").iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    with safe_open(folder / "unet/diffusion_pytorch_model.safetensors", framework="np") as file:
        assert file.metadata()["format"] == "pt"
        name = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"
        ours = models.unet.state_dict()[name].numpy()
        assert np.array_equal(file.get_tensor(name), ours.T) and ours.shape[0] != ours.shape[1]
    settings = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 20


def test_nothing_is_overwritten(models, tmp_path):
    (tmp_path / "kept").write_text("x")
    with pytest.raises(InputError, match="is there already"):
        export_pipeline(models, tmp_path, "ppdiffusers")
    with pytest.raises(InputError, match="format='onnx'; expected one of"):
        export_pipeline(models, tmp_path / "new", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_full_disk_leaves_nothing_half_written(models, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models.vae, "save_pretrained", full)
    with pytest.raises(RunError, match="No space left on device; free space"):
        export_pipeline(models, tmp_path / "pipeline", "diffusers")
    assert list(tmp_path.iterdir()) == []


def test_two_exports_to_one_folder_do_not_mix(models, tmp_path):
    other = tmp_path / ".pipeline.tmp"
    (other / "unet").mkdir(parents=True)
    (other / "unet/config.json").touch()
    descriptor = os.open(other, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(RunError, match=r"\.pipeline\.tmp: another export is writing it; wait for it or choose"):
        export_pipeline(models, tmp_path / "pipeline", "diffusers")
    assert [path.name for path in other.rglob("*")] == ["unet", "config.json"] and len(list(tmp_path.iterdir())) == 1
    (other / "unet/left").touch()  # by a kill
    os.close(descriptor)
    folder = export_pipeline(models, tmp_path / "pipeline", "diffusers")
    assert list(tmp_path.iterdir()) == [folder] and not (folder / "unet/left").exists()


def test_ctrl_c_leaves_nothing_half_written(models, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(models.vae, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_pipeline(models, tmp_path / "pipeline", "diffusers")
    assert list(tmp_path.iterdir()) == []


def trained_from(workshop, name, pretrained, unet=None, more=()):
    """The UNet's weights after two steps; unet=None leaves the flag out, so that the pretrained model's is used."""
    from sd.training.run import train

    words = workshop.flags(name, "--max_steps", 2, "--pretrained_model_name_or_path", pretrained, *more)
    place = words.index("--unet_name_or_path")
    words[place : place + 2] = ["--unet_name_or_path", str(unet)] if unet else []
    train(*parse_arguments(words, environ={}))
    return weights(workshop.folder / name / "checkpoint-2")


def test_a_folder_in_diffusers_layout_trains_here(tmp_path):
    """By either flag, and to the very weights that the same models in Paddle's layout are trained to."""
    workshop = Workshop(tmp_path)
    models = tmp_path / "models"
    folder = export_pipeline(load_models(pretrained_model=str(models)), tmp_path / "pytorch", "diffusers")
    expected = trained_from(workshop, "wanted", models)
    assert not np.array_equal(expected, weights(models, "unet/diffusion_paddle_model.safetensors"))
    assert np.array_equal(trained_from(workshop, "whole", folder), expected)
    assert np.array_equal(trained_from(workshop, "unet", models, folder / "unet"), expected)
