"""What does not fit is refused with its differences, before weights are loaded."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sd.diffusion.model
from sd.data.parts.moments import find_manifest
from sd.data.streaming.catalog import Catalog
from sd.errors import InputError, RunError
from tests.latents.test_latent_training import CacheWorkshop
from tests.tiny import make_tiny_repository


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return CacheWorkshop(tmp_path_factory.mktemp("refusals"))


@pytest.fixture
def nothing_loads(monkeypatch):
    def refuse(part, *source):
        raise AssertionError(f"{part} was loaded")

    monkeypatch.setattr(sd.diffusion.model, "load_component", refuse)


def copy_cache(workshop, folder, text=True):
    """A copy of a cache whose lists name the copied parts; returns (folder, file list)."""
    before = workshop.folder / f"cache{text}"
    shutil.copytree(before, folder)
    for path in (folder / "filelist").glob("*.filelist*"):
        path.write_text(path.read_text().replace(str(before), str(folder)))
    return folder, str(folder / "filelist/custom_dataset.filelist.list")


@pytest.mark.parametrize(
    ("flags", "reported"),
    [
        (["--resolution", 16], r"resolution was 32, is 16; latent_shape was \(4, 8, 8\), is \(4, 4, 4\)"),
        (["--model_max_length", 20], "model_max_length was 77, is 20"),
        (["--interpolation", "bilinear"], "interpolation was lanczos, is bilinear"),
        (["--train_text_encoder", True], "--train_text_encoder True, but the cache holds"),
        (["--enlarge", True], "--enlarge True, but the cache left out the images that are smaller"),
    ],
)
def test_flags_that_contradict_the_cache_are_refused(workshop, nothing_loads, flags, reported):
    with pytest.raises(InputError, match=reported):
        workshop.from_cache("refused", *flags)
    assert not (workshop.folder / "refused").exists()


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_other_weights_are_named_by_their_hashes(workshop, nothing_loads, tmp_path, part):
    folder = shutil.copytree(workshop.folder / "models" / part, tmp_path / part)
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    first = min(tensors)
    tensors[first] = np.nextafter(tensors[first], 2, dtype=np.float32)
    save_file(tensors, path, {"format": "pd" if part == "vae" else "np"})
    manifest = find_manifest(workshop.caches[True])
    known = getattr(manifest, f"{part}_hash")
    with pytest.raises(
        InputError, match=rf"{part}_hash was {known[:8]}, is (?!{known[:8]})[0-9a-f]{{8}}; give the models"
    ):
        workshop.from_cache("refused", f"--{part}_name_or_path", folder)
    if part == "text_encoder":  # it may be any other where the cache holds no text
        with pytest.raises(AssertionError, match="was loaded"):
            workshop.from_cache("accepted", "--text_encoder_name_or_path", folder, text=False)


def test_a_vae_with_another_scaling_factor_is_refused(workshop, nothing_loads, tmp_path):
    folder = shutil.copytree(workshop.folder / "models" / "vae", tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.13025}))
    with pytest.raises(InputError, match=r"scaling_factor was 0\.18215, is 0\.13025"):
        workshop.from_cache("refused", "--vae_name_or_path", folder)


def test_a_cache_for_validation_is_held_to_the_same(workshop, nothing_loads, tmp_path):
    other = make_tiny_repository(tmp_path / "other", seed=1)
    flags = ["--eval_file_list", workshop.caches[False], "--pretrained_model_name_or_path", other]
    with pytest.raises(InputError, match="vae_hash was"):
        workshop.train("refused", *flags)


def test_a_list_of_images_and_cached_parts_is_refused(workshop, tmp_path):
    cache = Path(workshop.caches[True].removesuffix(".list"))
    images = Path(workshop.file_list).parent / "source0.filelist"
    mixed = tmp_path / "mixed.filelist.list"
    mixed.write_text(f"{images}\n{cache}\n")
    with pytest.raises(InputError, match=f"{cache} is a cache of latents, {images} is not"):
        workshop.train("refused", "--file_list", mixed)


def test_parts_without_their_manifest_or_of_images_are_refused(workshop, tmp_path):
    folder, file_list = copy_cache(workshop, tmp_path / "cache")
    manifest = folder / "filelist/custom_dataset.cache.json"
    stored = manifest.read_bytes()
    manifest.unlink()
    with pytest.raises(InputError, match=r"part-000001\.gz is a part of cached latents, but there is no .*cache\.json"):
        Catalog(file_list, 32)

    manifest.write_bytes(stored)
    images = Path(workshop.file_list).parent / "part-000000.gz"
    for suffix in ("", ".idx"):
        shutil.copy(f"{images}{suffix}", folder / f"latents/part-000001.gz{suffix}")
    with pytest.raises(InputError, match=r"part-000001\.gz is a part of images, but .* is the manifest of a cache"):
        Catalog(file_list, 32)


def test_a_part_of_another_cache_ends_the_run(workshop, tmp_path):
    folder, file_list = copy_cache(workshop, tmp_path / "cache")
    manifest = find_manifest(file_list)
    other = dataclasses.replace(manifest, seed=99)
    (folder / "filelist/custom_dataset.cache.json").write_bytes(other.to_bytes())
    with pytest.raises(
        RunError, match=r"part-\d+\.gz: cached by other settings than .*custom_dataset\.cache\.json says"
    ):
        workshop.train("refused", "--file_list", file_list)


def test_the_doctor_checks_latent_caches(workshop, capsys):
    from sd.flags.command_line import parse_arguments
    from sd.training import doctor

    flags = workshop.flags("out", "--file_list", workshop.caches[True])
    assert not any(doctor.examine(*parse_arguments(flags, environ={})))
    reported = capsys.readouterr().out
    assert (
        "custom_dataset.cache.json fits" in reported
        and "not loaded for training from the cache: vae, text_encoder" in reported
    )
    assert list(doctor.examine(*parse_arguments([*flags, "--model_max_length", "20"], environ={})))[-1]
    assert "PROBLEM models" in (reported := capsys.readouterr().out) and "model_max_length was 77, is 20" in reported
