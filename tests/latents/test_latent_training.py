"""Training from a cache of latents equals training from images, and does not load what the cache stands in for."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from sd.data.streaming import sample
from sd.data.streaming.catalog import Catalog
from sd.diffusion.model import StableDiffusionModel
from sd.flags.arguments import SDModelArguments
from sd.latents.options import CacheOptions
from sd.latents.run import precompute
from sd.sampling.pipeline import reconstruct, reconstruct_cached
from sd.training.data import make_previews
from sd.training.trainer import StableDiffusionTrainer
from tests import exact
from tests.latents.reference import FLOAT16_TERMS, TRAINING_TERMS, Call, Reference
from tests.numeric import assert_close_in_float16, assert_picture, assert_same_training
from tests.tiny import RESOLUTION
from tests.training_harness import EMA, UNET, Workshop, checksums, weights

STEPS = 4


class CacheWorkshop(Workshop):
    """A workshop whose data is cached too: `caches` by whether they hold the text."""

    def __init__(self, folder, change=lambda models: None):
        super().__init__(folder)
        change(self.folder / "models")
        self.model_args = SDModelArguments(pretrained_model_name_or_path=str(self.folder / "models"))
        self.caches = {text: self.cache(f"cache{text}", crop="centre", cache_text=text) for text in (False, True)}

    def cache(self, name, **options):
        """Cache the data in folder `name`. Returns the file list."""
        models, folder = self.model_args.pretrained_model_name_or_path, str(self.folder / name)
        options = {"pretrained_model_name_or_path": models, "resolution": RESOLUTION, "num_workers": 0} | options
        return precompute(CacheOptions(file_list=self.file_list, output_path=folder, **options))[0]

    def from_cache(self, output_dir, *more, text=True):
        """Train as `train` does, from a cache."""
        return self.train(output_dir, "--file_list", self.caches[text], *more)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return CacheWorkshop(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def watched(monkeypatch):
    """The Calls of all models in this process, as they come."""
    calls = []
    forward = StableDiffusionModel.forward

    def watch(self, **batch):
        arrays = {name: np.array(value) for name, value in batch.items()}
        weights = {name: weight.numpy().copy() for name, weight in self.unet.state_dict().items()}
        outputs = forward(self, **batch)
        calls.append(Call(self, arrays, weights, outputs["sample_loss"].numpy(), float(outputs["loss"]), self.training))
        return outputs

    monkeypatch.setattr(StableDiffusionModel, "forward", watch)
    return calls


@pytest.fixture
def models(monkeypatch):
    """The models that are trained, by the trainer's steps and evaluations."""
    trained = []
    log = StableDiffusionTrainer.log
    monkeypatch.setattr(
        StableDiffusionTrainer, "log", lambda self, *a, **k: (trained.append(self.model), log(self, *a, **k))[1]
    )
    return trained


@pytest.fixture
def centre_crops(monkeypatch):
    """Images are cropped where those of the cache were."""
    monkeypatch.setattr(
        sample,
        "random_crop",
        lambda pixels, resolution, interpolation, draw: sample.centre_crop(pixels, resolution, interpolation),
    )


@pytest.mark.parametrize(("prediction_type", "text"), [("epsilon", True), ("v_prediction", False)])
def test_steps_from_images_and_from_the_cache_are_float64s(workshop, watched, centre_crops, prediction_type, text):
    """Each loss of training and of validation, then the weights and their average at the end, of both runs."""
    flags = ["--prediction_type", prediction_type, "--max_steps", STEPS, "--use_ema", "--eval_steps", STEPS]
    flags += ["--caption_dropout", 0.3, "--unet_name_or_path", workshop.folder / "models/unet"]
    reference = Reference(workshop.folder / "models", prediction_type)
    runs = {}
    for name, file_list in (("images", workshop.file_list), ("cache", workshop.caches[text])):
        lists = ["--file_list", file_list, "--eval_file_list", file_list]
        folder = workshop.train(f"{name}-{prediction_type}", *flags, *lists) / f"checkpoint-{STEPS}"
        runs[name] = (folder, list(watched))
        watched.clear()
    images, cache = (calls for _, calls in runs.values())
    assert [call.training for call in images] == [True] * STEPS + [False] * (len(images) - STEPS)
    assert len(images) == len(cache) and sum(len(call.sample_loss) for call in images[STEPS:]) == 33
    assert "pixel_values" not in cache[0].batch and ("text_states" in cache[0].batch) == text
    for of_images, of_cache in zip(images, cache, strict=True):
        for draw in ("noise", "posterior_noise", "timestep"):
            np.testing.assert_array_equal(of_images.batch[draw], of_cache.batch[draw])
        reference.check_loss(of_images, of_images.batch)
        reference.check_loss(of_cache, of_images.batch)
    start, end, average = reference.train(images[:STEPS])
    for name, terms in (("images", TRAINING_TERMS), ("cache", TRAINING_TERMS + FLOAT16_TERMS)):
        for file, wanted in ((UNET, end), (EMA, average)):
            assert_same_training(weights(runs[name][0], file), wanted, start, terms, f"{file} of {name}")
    assert set(cache[0].model.deferred) == ({"vae", "text_encoder"} if text else {"vae"})


def test_images_may_validate_a_run_from_the_cache_and_load_deferred_components(workshop, watched, caplog):
    flags = ["--max_steps", 2, "--eval_steps", 2, "--unet_name_or_path", workshop.folder / "models/unet"]
    reference, checked = Reference(workshop.folder / "models", "epsilon"), {}
    for name, file_list in (("images", workshop.file_list), ("latents", workshop.caches[False])):
        workshop.from_cache(f"from_{name}", "--eval_file_list", file_list, *flags)
        checked[name] = [call for call in watched if not call.training]
        assert set(watched[0].model.deferred) == (set() if name == "images" else {"vae"})
        assert caplog.text.count("vae: not loaded, the cache holds its output") == 1
        caplog.clear()
        watched.clear()
    for of_images, of_latents in zip(checked["images"], checked["latents"], strict=True):
        assert "pixel_values" in of_images.batch and "moments" in of_latents.batch
        reference.check_loss(of_images, of_images.batch)
        reference.check_loss(of_latents, of_images.batch)


def test_resume_is_exact(workshop):
    flags = ["--use_ema", "--save_steps", 3, "--max_steps", 6, "--dataloader_num_workers", 2]
    whole = workshop.from_cache("whole", *flags)
    resumed = workshop.from_cache("resumed", *flags, "--resume_from_checkpoint", whole / "checkpoint-3")
    assert checksums(whole / "checkpoint-6") == checksums(resumed / "checkpoint-6")


def test_deferred_components_are_no_sublayers_until_first_access(workshop):
    whole = StableDiffusionModel.from_arguments(workshop.model_args, RESOLUTION)
    model = StableDiffusionModel.from_arguments(workshop.model_args, RESOLUTION, ("vae", "text_encoder"))
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"unet"}
    counted = {part: sum(p.size for p in getattr(whole, part).parameters()) for part in ("vae", "text_encoder")}
    assert {part: deferred.num_parameters for part, deferred in model.deferred.items()} == counted
    assert model.latent_shape(RESOLUTION) == whole.latent_shape(RESOLUTION)
    assert model.deferred.keys() == {"vae", "text_encoder"}
    for name, value in model.vae.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), whole.vae.state_dict()[name].numpy())
    assert model.deferred.keys() == {"text_encoder"}
    assert all(parameter.stop_gradient for parameter in model.vae.parameters()) and not model.vae.training
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"unet"}


def test_pictures_load_what_they_need_and_show_what_the_vae_keeps(workshop, models):
    from tests.training.test_visible import read_log

    flags = ["--report_to", "visualdl", "--image_logging_steps", 2, "--num_inference_steps", 1]
    shown = workshop.from_cache("shown", *flags)
    assert set(read_log(shown)["image"]) == {"reconstruction", "ddim-samples-1.0", "ddim-samples-7.5"}
    assert models[0].deferred == {}
    quiet = workshop.from_cache("quiet")
    assert checksums(shown / "checkpoint-4") == checksums(quiet / "checkpoint-4")


def test_records_and_cached_records_are_reconstructed_as_float64_does(workshop):
    from sd.flags.command_line import parse_arguments

    previews = []
    model = StableDiffusionModel.from_arguments(workshop.model_args, RESOLUTION)
    for file_list in (workshop.file_list, workshop.caches[True]):
        flags = workshop.flags("previews", "--file_list", file_list, "--report_to", "visualdl")
        model_args, data_args, training_args = parse_arguments(flags, environ={})
        previews.append(make_previews(model, model_args, data_args, training_args, Catalog(file_list, RESOLUTION)))
    images, cache = previews
    assert images.captions == cache.captions and len(set(cache.captions)) == 4
    pixels, moments = (
        np.concatenate([record[key] for record in previews.records])
        for previews, key in ((images, "pixel_values"), (cache, "moments"))
    )
    vae = exact.load_float64("vae", workshop.folder / "models")
    with exact.counted_terms(vae) as encoding:
        mean, log_variance = exact.posterior(vae, pixels)
    assert_close_in_float16(moments, np.concatenate([mean, log_variance], axis=1), encoding.count, "the moments")
    with exact.counted_terms(vae) as decoding:
        stored = exact.picture(vae, mean)
    assert np.ptp(stored) > 1
    assert_picture(reconstruct(model.vae, pixels), stored, encoding.count + decoding.count, "an image")
    of_moments = exact.picture(vae, moments[:, :4])
    assert_picture(reconstruct_cached(model.vae, moments), of_moments, decoding.count, "a cached record")


def test_a_whole_pipeline_is_saved_with_deferred_components(workshop):
    from ppdiffusers import AutoencoderKL

    saved = workshop.from_cache("pipeline", "--only_save_updated_model", False, "--max_steps", 1) / "checkpoint-1"
    names = {"vae": "diffusion_paddle_model.safetensors", "text_encoder": "model.safetensors"}
    for part in names:
        (stored,) = (workshop.folder / "models" / part).glob("*.safetensors")
        before, after = load_file(stored), load_file(saved / part / names[part])
        for name, value in after.items():
            np.testing.assert_array_equal(value, before[name])
    assert AutoencoderKL.from_pretrained(str(saved / "vae")).config.scaling_factor == 0.18215
