"""The process that draws for the web page, and app.py: what is drawn, refused, cancelled and survived."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file, save

from sd.commands import serve as app
from sd.errors import ArgumentError, InputError
from sd.runs.locate import list_choices
from sd.sampling import run
from sd.sampling.files import read_pixels, read_png_text
from sd.web.engine import CancelledError, Engine, Server
from sd.web.options import Request
from tests.checkpoints import make_output_dir, save_checkpoint
from tests.data_maker import make_data
from tests.sampling.test_sampling import flags
from tests.tiny import make_tiny_repository

ROOT = Path(__file__).resolve().parents[2]
REQUEST = {
    "model": "checkpoint-10", "weights": "raw", "prompt": "a red circle", "negative_prompt": "", "guidance_scale": 2,
    "num_inference_steps": 2, "seed": 42, "num_images": 2, "width": None, "height": None, "scheduler": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    repository = make_tiny_repository(tmp_path_factory.mktemp("tiny"))
    return make_output_dir(repository, tmp_path_factory.mktemp("output"))


@pytest.fixture
def engine(output_dir, tmp_path):
    config = app.parse_arguments(["--output_dir", str(output_dir), "--device", "cpu"])
    return Engine(replace(config, output=str(tmp_path / "pictures")))


def draw(engine, **given):
    """(pictures' paths, everything told)."""
    reported = []
    engine.draw(REQUEST | given, lambda **news: reported.append(news))
    return [Path(news["picture"]) for news in reported if "picture" in news], reported


# The engine.


def test_pictures_are_those_of_eval_to_the_byte(engine, output_dir, tmp_path):
    paths, reported = draw(engine)
    run.run(flags(unet=str(output_dir), num_images=2, batch_size=1, output=str(tmp_path / "eval")))
    expected = [tmp_path / "eval" / f"0-a-red-circle-{seed}.png" for seed in (42, 43)]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in expected]
    assert reported[0] == {"note": "loading checkpoint-10 raw"}
    assert reported[1] == {"progress": (0.5, 2)}
    assert [news["settings"] for news in reported if "settings" in news] == [read_png_text(path)[1] for path in paths]


def test_other_settings_have_other_files_and_the_same_ones_are_found_again(engine):
    first, _ = draw(engine)
    stamps = [path.stat().st_mtime_ns for path in first]
    others = [draw(engine, **given)[0] for given in ({"weights": "ema"}, {"guidance_scale": 3}, {"height": 28})]
    assert len({*first, *(path for paths in others for path in paths)}) == 8
    again, reported = draw(engine)
    assert again == first and [path.stat().st_mtime_ns for path in again] == stamps
    assert reported[-1]["settings"]["seed"] == 43


def test_a_checkpoint_that_was_trained_again_is_loaded_again(output_dir, engine, tmp_path):
    """An --overwrite_output_dir run saves other weights under the names of the earlier one."""
    copy = tmp_path / "run"
    shutil.copytree(output_dir, copy)
    engine._config = replace(engine._config, output_dir=str(copy))
    given = {"num_images": 1, "model": "checkpoint-5"}
    (first,), _ = draw(engine, **given)
    shutil.rmtree(copy / "checkpoint-5")
    shutil.copytree(output_dir / "checkpoint-10", copy / "checkpoint-5")
    (second,), reported = draw(engine, **given)
    assert reported[0] == {"note": "loading checkpoint-5 raw"} and second != first
    assert (read_pixels(second) != read_pixels(first)).any()
    assert not any("note" in news for news in draw(engine, **given)[1])


def test_one_unet_is_in_memory_and_other_components_are_shared(engine, output_dir):
    draw(engine)
    first = engine._models
    draw(engine, model="checkpoint-5")
    assert first.unet is None and engine._models.vae is first.vae
    with pytest.raises(InputError, match="no weights of variant 'ema'"):
        draw(engine, model="checkpoint-5", weights="ema")
    assert len(draw(engine, model="checkpoint-5")[0]) == 2  # after an error all goes on


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_weights_rewritten_under_the_same_name_are_reloaded(tmp_path, part):
    """In place: the folder itself shows no change."""
    output_dir = make_output_dir(make_tiny_repository(tmp_path / "tiny"), tmp_path / "output")
    config = app.parse_arguments(["--output_dir", str(output_dir), "--device", "cpu"])
    engine = Engine(replace(config, output=str(tmp_path / "pictures")))
    before, _ = draw(engine)
    folder = output_dir / "checkpoint-10" / "unet" if part == "unet" else tmp_path / "tiny" / "vae"
    path = folder / "diffusion_paddle_model.safetensors"
    tensors = {name: value * 0.9 for name, value in load_file(path).items()}
    path.write_bytes(save(tensors, {"format": "np"}))
    after, reported = draw(engine)
    assert reported[0] == {"note": "loading checkpoint-10 raw"} and not {*before} & {*after}


def test_a_truncated_prompt_is_reported(engine):
    _, reported = draw(engine, prompt="b" * 18 + " rest")
    assert {"note": "prompt 1 is truncated to the model's 20 tokens; cut off: 'rest'"} in reported


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance_scale": 0.5}, "guidance_scale=0.5; expected at least 1"),
        ({"guidance_scale": None}, "guidance_scale=None; expected a number"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf; expected at least 1"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan; expected at least 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps=2.5; expected a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps=0; expected 1 to 999"),
        ({"num_inference_steps": float("inf")}, "num_inference_steps=inf; expected a whole number"),
        ({"seed": None}, "seed=None; expected a whole number"),
        ({"seed": -1}, "seed=-1; expected at least 0"),
        ({"num_images": 17}, "num_images=17; expected at least 1 and at most 16"),
        ({"width": 30}, "width=30 does not fit the VAE"),
        ({"height": 10**6}, "height=1000000; expected at least 1 and at most 2048"),
        ({"scheduler": "foo"}, "scheduler='foo'; expected one of ddim"),
        ({"weights": "best"}, "weights='best'; expected one of ('raw', 'ema')"),
        ({"model": "checkpoint-7"}, "checkpoint-7 is not there; there are checkpoint-10, checkpoint-5"),
        ({"model": "../../etc"}, "../../etc is not there"),
        ({"model": None}, "no checkpoint is not there"),
        ({"prompt": " "}, "the prompt is empty; type what is to be drawn"),
        ({"prompt": "a \ud83d"}, "character 3 is half of one, U+D83D"),
    ],
)
def test_wrong_values_are_explained(engine, given, message):
    with pytest.raises(InputError) as error:
        draw(engine, **given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_whole_numbers_may_come_as_floats():
    requested = Request(**(REQUEST | {"seed": 7.0, "num_images": 1.0}))
    assert (requested.seed, requested.num_images, requested.guidance_scale) == (7, 1, 2.0)
    assert isinstance(requested.seed, int) and isinstance(requested.guidance_scale, float)


def test_choices_are_the_checkpoints_or_the_published_model(output_dir, tmp_path):
    assert list(list_choices(output_dir=output_dir)) == ["checkpoint-10", "checkpoint-5"]
    assert list_choices(checkpoint=output_dir) == list_choices(output_dir=output_dir)
    assert list(list_choices(checkpoint=output_dir / "checkpoint-5")) == ["checkpoint-5"]
    assert list(list_choices()) == ["CompVis/stable-diffusion-v1-4"]
    assert list_choices(output_dir=tmp_path) == {}  # training has only begun
    with pytest.raises(InputError, match="no such folder"):
        list_choices(output_dir=tmp_path / "none")


def served(engine, requests):
    """All answers to requests, after listening and working."""
    answers, ended = [], []
    server = Server(engine, answers.append)
    server.listen(map(json.dumps, requests), lambda: ended.append(True))
    server.work()
    assert ended == [True]
    return answers


def test_the_server_lists_draws_cancels_and_survives(output_dir, tmp_path, capfd):
    def act(request, tell):
        if request["prompt"] == "broken":
            raise ValueError("long story\nout of memory")
        if request["prompt"] == "wrong":
            raise ArgumentError("num_images", 99, "; expected at most 16")
        tell(progress=(1.0, 1))

    known = {"checkpoint-5": {"side": 24, "weights": ["raw"]}}
    engine = SimpleNamespace(draw=act, describe=lambda: known, examples=lambda: ["a cat"])
    prompts = ["fine", "broken", "cancelled", "wrong", "fine"]
    requests = [{"do": "draw", "job": number, "prompt": prompt} for number, prompt in enumerate(prompts)]
    answers = served(
        engine, [*requests, {"do": "cancel", "job": 2}, {"do": "list", "job": 9}, {"do": "examples", "job": 8}]
    )
    assert answers == [
        {"job": 9, "choices": known}, {"job": 9, "end": "done"},
        {"job": 8, "examples": ["a cat"]}, {"job": 8, "end": "done"},
        {"job": 0, "progress": (1.0, 1)}, {"job": 0, "end": "done"},
        {"job": 1, "end": "error", "message": "drawing failed (ValueError: out of memory)"},
        {"job": 2, "end": "cancelled"},
        {"job": 3, "end": "error", "message": "Pictures 99; expected at most 16"},
        {"job": 4, "progress": (1.0, 1)}, {"job": 4, "end": "done"},
    ]  # fmt: skip
    assert "long story" in capfd.readouterr().err  # the whole of it is for the terminal


def test_a_cancelled_drawing_keeps_its_finished_pictures(engine, tmp_path):
    pictures = []

    def tell(**news):
        pictures.extend(news.get("picture", "").split())
        if len(pictures) == 3 and "picture" not in news:
            raise CancelledError

    with pytest.raises(CancelledError):
        engine.draw(REQUEST | {"num_images": 8}, tell)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [Path(path).name for path in pictures]


def test_model_info_reads_a_checkpoint_without_loading_it(engine, output_dir):
    assert engine.describe() == {
        "checkpoint-10": {"side": 24, "weights": ["raw", "ema"]},
        "checkpoint-5": {"side": 24, "weights": ["raw"]},
    }
    assert engine.examples() == []  # its run.json names no list


def test_examples_are_captions_of_the_runs_own_data(engine, output_dir, tmp_path, monkeypatch):
    engine._config = replace(engine._config, output_dir=shutil.copytree(output_dir, tmp_path / "run"))
    run = json.loads((tmp_path / "run/run.json").read_text())
    run["arguments"]["SDDataArguments"]["file_list"] = str(make_data(tmp_path / "data", [12, 9]))
    (tmp_path / "run/run.json").write_text(json.dumps(run))
    captions = engine.examples()
    assert len(set(captions)) == 4 and all(re.fullmatch(r"part \d row \d+", caption) for caption in captions)
    run["arguments"]["SDDataArguments"]["file_list"] = str(tmp_path / "none.list")
    (tmp_path / "run/run.json").write_text(json.dumps(run))
    assert engine.examples() == []


# app.py itself.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output_dir", "none"], "error: --output_dir none: no such folder"),
        (["--checkpoint", "out/checkpoint-7"], "error: out/checkpoint-7: no UNet there"),
        (["--checkpoint", "a", "--output_dir", "b"], "error: --output_dir with --checkpoint; give one of them"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, words, message):
    command = [sys.executable, str(ROOT / "app.py"), *words]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 2 and process.stderr.startswith(message) and process.stderr.count("\n") == 1


def test_missing_packages_are_named_with_their_remedy(output_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["app.py", "--output_dir", str(output_dir)])
    monkeypatch.setattr(app, "PAGE_PYTHON", tmp_path / ".venv-app/bin/python")
    with pytest.raises(InputError, match=r"packages are not installed .*`sh .*setup_app.sh`"):
        app.main()
    assert list(tmp_path.iterdir()) == []


def test_only_this_machine_is_let_in_by_default():
    given = app.parse_arguments([])
    assert (given.host, given.port) == ("127.0.0.1", 7860)


def test_a_new_checkpoint_is_listed(engine, output_dir, tmp_path):
    assert list(engine.choices()) == ["checkpoint-10", "checkpoint-5"]
    engine._config = replace(engine._config, output_dir=str(tmp_path / "run"))
    repository = Path(json.loads((output_dir / "run.json").read_text())["folder"])
    name = json.loads((output_dir / "run.json").read_text())["arguments"]["SDModelArguments"]
    repository = repository / name["pretrained_model_name_or_path"]
    (tmp_path / "run").mkdir()
    assert engine.choices() == {}
    save_checkpoint(repository, tmp_path / "run", 3)
    assert list(engine.choices()) == ["checkpoint-3"]
