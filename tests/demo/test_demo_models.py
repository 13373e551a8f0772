"""The tiny frozen models of the demo: they load, they are small, they do what they were made for."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddlenlp.transformers import CLIPTextModel, CLIPTokenizer
from PIL import Image
from ppdiffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from demo.classify import classify
from demo.compare_formats import is_whole
from demo.make_models import PIPELINE
from demo.make_tokenizer import learn_merges
from demo.make_vae import pictures_of_formats, random_crops
from demo.shapes import ALL_LABELS, caption_of, example

DEMO = Path(__file__).resolve().parents[2] / "demo"
MODELS = DEMO / "tiny_sd"
CAPTIONS = [caption_of(*labels) for labels in ALL_LABELS]


@pytest.fixture(scope="module")
def vae():
    model = AutoencoderKL.from_pretrained(str(MODELS / "vae"))
    model.eval()
    return model


@pytest.fixture(scope="module")
def pictures():
    """Drawings of a seed that the VAE was not trained on, resized as the trainer does: [360, 35, 35, 3] uint8."""
    drawings = (Image.fromarray(example(index, 424_242, 70)[0]) for index in range(360))
    return np.stack([np.asarray(drawing.resize((35, 35), Image.Resampling.LANCZOS)) for drawing in drawings])


def batches(pictures):
    """Crops in order, 36 at a time: float32 [36, 3, 32, 32] in [-1, 1]."""
    for start in range(0, len(pictures), 36):
        crops = pictures[start : start + 36, 1:33, 2:34].transpose(0, 3, 1, 2)
        yield paddle.to_tensor(np.ascontiguousarray(crops, np.float32) / 127.5 - 1)


def to_uint8(images):
    """[N, 3, H, W] in [-1, 1] -> [N, H, W, 3] uint8."""
    return np.clip((images.numpy().transpose(0, 2, 3, 1) + 1) * 127.5, 0, 255).round().astype(np.uint8)


def test_the_repository_is_small_and_holds_nothing_pickled():
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4e6
    assert {path.suffix for path in files} == {".json", ".txt", ".safetensors"}
    assert json.loads((MODELS / "model_index.json").read_text()) == PIPELINE


@paddle.no_grad()
def test_reconstructions_are_read_as_the_drawings(vae, pictures):
    read, squared = [], []
    for images in batches(pictures):
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        squared.append(float((vae.decode(posterior.mean).sample - images).square().mean()))
        read += [classify(picture) == labels for picture, labels in zip(to_uint8(decoded), ALL_LABELS, strict=True)]
    assert np.mean(read) >= 0.98
    assert np.mean(squared) < 0.01


@paddle.no_grad()
def test_scaled_latents_have_a_deviation_of_one(vae, pictures):
    latents = [vae.encode(images).latent_dist.sample().numpy() for images in batches(pictures)]
    assert np.std(latents) * vae.config.scaling_factor == pytest.approx(1, abs=0.05)


def test_a_word_is_a_token():
    tokenizer = CLIPTokenizer.from_pretrained(str(MODELS / "tokenizer"))
    for caption in CAPTIONS:
        ids = tokenizer(caption)["input_ids"]
        assert len(ids) == 9
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption
    assert len(tokenizer("zebra")["input_ids"]) > 3
    assert tokenizer.model_max_length == 16


def test_merges_end_in_the_words():
    merges = learn_merges({"red", "green", "on"})
    assert [a + b for a, b in merges if (a + b).endswith("</w>")].count("red</w>") == 1
    assert {"red</w>", "green</w>", "on</w>"} <= {a + b for a, b in merges}


@paddle.no_grad()
@pytest.mark.parametrize("length", [16, 77])
def test_the_text_encoder_separates_captions(length):
    """Each attribute can be read linearly after the last word: class means differ more than what is left."""
    tokenizer = CLIPTokenizer.from_pretrained(str(MODELS / "tokenizer"))
    encoder = CLIPTextModel.from_pretrained(str(MODELS / "text_encoder"))
    encoder.eval()
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=length)["input_ids"]
    hidden = encoder(paddle.to_tensor(ids, dtype="int64"))[0].numpy()[:, 8]
    for names in zip(*ALL_LABELS, strict=True):
        classes = sorted(set(names))
        means = np.stack([hidden[[name == expected for name in names]].mean(axis=0) for expected in classes])
        nearest = [classes[int(np.square(row - means).sum(axis=1).argmin())] for row in hidden]
        assert nearest == list(names)


def test_the_pipeline_loads_them_beside_a_unet():
    config = json.loads((DEMO / "unet_config.json").read_text())
    unet = UNet2DConditionModel.from_config(config)
    pipeline = StableDiffusionPipeline.from_pretrained(str(MODELS), unet=unet)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(CAPTIONS[0], height=32, width=32, num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, 32, 32, 3)


def test_random_crops_are_squares_of_the_pictures(pictures):
    crops = random_crops(pictures[:1], np.random.default_rng(0), 64)
    assert crops.shape == (64, 3, 32, 32) and crops.dtype == np.float32
    windows = {pictures[0, y : y + 32, x : x + 32].tobytes() for y in range(4) for x in range(4)}
    assert {np.round((crop.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8).tobytes() for crop in crops} <= windows
    assert np.abs(crops).max() <= 1


def test_pictures_of_formats_are_whole_in_their_format_and_cut_in_squares():
    formats = [(24, 40), (32, 32), (40, 24)]
    cuts = pictures_of_formats(216, 8, formats)
    assert {size: pictures.shape for size, pictures in cuts.items()} == {
        (24, 40): (72, 40, 24, 3),
        (32, 32): (72 + 216, 32, 32, 3),
        (40, 24): (72, 24, 40, 3),
    }
    for width, height in ((24, 40), (40, 24)):
        assert all(is_whole(picture) for picture in cuts[width, height])
    whole = np.mean([is_whole(picture) for picture in cuts[32, 32]])
    assert 0.4 < whole < 0.8  # all of the square pictures, two of three of their cuts at most
    crops = random_crops(cuts[24, 40], np.random.default_rng(0), 8, (24, 40))
    assert crops.shape == (8, 3, 40, 24)
