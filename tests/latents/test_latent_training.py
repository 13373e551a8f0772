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
from sd.training.run import make_previews
from sd.training.trainer import StableDiffusionTrainer
from tests.tiny import RESOLUTION
from tests.training_harness import EMA, UNET, Workshop, checksums, weights

STEPS = 20


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
def logged(monkeypatch):
    """What the trainer logs, step by step, and the models that it trained."""
    told = {"loss": [], "eval": [], "models": []}
    log, evaluate = StableDiffusionTrainer.log, StableDiffusionTrainer.evaluate

    def note_loss(self, logs, **kwargs):
        told["loss"].append(logs["loss"])
        told["models"].append(self.model)
        return log(self, logs, **kwargs)

    def note_evaluation(self, *arguments, **kwargs):
        told["eval"].append(evaluate(self, *arguments, **kwargs))
        return told["eval"][-1]

    monkeypatch.setattr(StableDiffusionTrainer, "log", note_loss)
    monkeypatch.setattr(StableDiffusionTrainer, "evaluate", note_evaluation)
    return told


@pytest.fixture
def centre_crops(monkeypatch):
    """Images are cropped where those of the cache were."""
    monkeypatch.setattr(
        sample,
        "random_crop",
        lambda pixels, resolution, interpolation, draw: sample.centre_crop(pixels, resolution, interpolation),
    )


@pytest.mark.parametrize(("prediction_type", "text"), [("epsilon", True), ("v_prediction", False)])
def test_steps_from_the_cache_are_steps_from_images(workshop, logged, centre_crops, prediction_type, text):
    flags = ["--prediction_type", prediction_type, "--max_steps", STEPS, "--logging_steps", 1, "--use_ema"]
    flags += ["--ema_decay", 0.9, "--eval_steps", STEPS // 2, "--caption_dropout", 0.3]
    runs = {}
    for name, file_list in (("images", workshop.file_list), ("cache", workshop.caches[text])):
        lists = ["--file_list", file_list, "--eval_file_list", file_list]
        folder = workshop.train(f"{name}-{prediction_type}", *flags, *lists)
        runs[name] = {key: list(value) for key, value in logged.items()} | {"folder": folder / f"checkpoint-{STEPS}"}
        for value in logged.values():
            value.clear()
    images, cache = runs["images"], runs["cache"]
    assert len(images["loss"]) == len(cache["loss"]) == STEPS
    difference = np.abs(np.subtract(images["loss"], cache["loss"]))
    assert 0 < difference.max() < 1e-3, (
        difference.max()
    )  # the cache holds 16 bits: equal to the bit would be suspicious
    assert np.ptp(images["loss"]) > 0.1
    for before, after in zip(images["eval"], cache["eval"], strict=True):
        assert before == pytest.approx(after, abs=1e-3) and before["eval_records"] == 33
    for name in (UNET, EMA):
        moved = np.abs(weights(images["folder"], name) - weights(cache["folder"], name))
        assert moved.mean() < 1e-4, (name, moved.mean())
    assert set(cache["models"][0].deferred) == ({"vae", "text_encoder"} if text else {"vae"})


def test_images_may_validate_a_run_from_the_cache_and_load_what_they_need(workshop, logged):
    workshop.from_cache("from_images", "--eval_file_list", workshop.file_list, "--eval_steps", 2)
    assert logged["models"][0].deferred == {}
    of_images = list(logged["eval"])
    workshop.from_cache("from_latents", "--eval_file_list", workshop.caches[False], "--eval_steps", 2)
    for before, after in zip(of_images, logged["eval"][2:], strict=True):
        assert before == pytest.approx(after, abs=1e-3)


def test_resume_is_exact(workshop):
    flags = ["--use_ema", "--save_steps", 3, "--max_steps", 6, "--dataloader_num_workers", 2]
    whole = workshop.from_cache("whole", *flags)
    resumed = workshop.from_cache("resumed", *flags, "--resume_from_checkpoint", whole / "checkpoint-3")
    assert checksums(whole / "checkpoint-6") == checksums(resumed / "checkpoint-6")


def test_the_frozen_parts_are_no_weights_of_the_model_until_they_are_asked_for(workshop):
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


def test_pictures_load_what_they_need_and_show_what_the_vae_keeps(workshop, logged, monkeypatch):
    from tests.training.test_visible import read_log

    flags = ["--report_to", "visualdl", "--image_logging_steps", 2, "--num_inference_steps", 1]
    shown = workshop.from_cache("shown", *flags)
    assert set(read_log(shown)["image"]) == {"reconstruction", "ddim-samples-1.0", "ddim-samples-7.5"}
    assert logged["models"][0].deferred == {}
    quiet = workshop.from_cache("quiet")
    assert checksums(shown / "checkpoint-4") == checksums(quiet / "checkpoint-4")


def test_cached_records_are_reconstructed_as_images_are(workshop):
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
    kept = reconstruct(model.vae, pixels).astype(int)
    from_cache = reconstruct_cached(model.vae, moments).astype(int)
    assert np.abs(kept - from_cache).max() <= 1 and np.ptp(kept) > 1


def test_a_whole_pipeline_is_saved_with_the_parts_that_were_not_loaded(workshop):
    from ppdiffusers import AutoencoderKL

    saved = workshop.from_cache("pipeline", "--only_save_updated_model", False, "--max_steps", 1) / "checkpoint-1"
    names = {"vae": "diffusion_paddle_model.safetensors", "text_encoder": "model.safetensors"}
    for part in names:
        (stored,) = (workshop.folder / "models" / part).glob("*.safetensors")
        before, after = load_file(stored), load_file(saved / part / names[part])
        for name, value in after.items():
            np.testing.assert_array_equal(value, before[name])
    assert AutoencoderKL.from_pretrained(str(saved / "vae")).config.scaling_factor == 0.18215
