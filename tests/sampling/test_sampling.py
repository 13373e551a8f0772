"""Finding checkpoints, reading prompts, drawing into files: what is found, kept, named and refused."""

import errno
import os
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tqdm import TqdmWarning

from sd import devices
from sd.errors import InputError, RunError
from sd.runs.locate import find_unet, run_settings
from sd.sampling import files, run
from sd.sampling.compare import find_columns
from sd.sampling.files import read_pixels, read_png_text, slug, write_png
from sd.sampling.job import Job, draw, settings_for
from sd.sampling.models import load_models
from sd.sampling.options import SampleOptions
from sd.sampling.prompts import read_prompts
from tests.tiny import make_tiny_repository


def flags(**given):
    defaults = {
        "prompt": ["a red circle"], "device": "cpu", "guidance_scale": 2.0, "num_inference_steps": 2,
    }  # fmt: skip
    return SampleOptions(**(defaults | given))


# Where the weights are.


def test_a_checkpoint_is_found_by_all_its_names(output_dir, tmp_path):
    expected = (str(output_dir / "checkpoint-10/unet"), output_dir / "checkpoint-10")
    for name in (output_dir, output_dir / "checkpoint-10", output_dir / "checkpoint-10/unet"):
        place = find_unet(name)
        assert (place.folder, place.checkpoint, place.label) == (*expected, "checkpoint-10")
    assert find_unet("CompVis/stable-diffusion-v1-4/unet").folder == "CompVis/stable-diffusion-v1-4/unet"


def test_the_newest_intact_checkpoint_is_used(output_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(output_dir, copy)
    weights = copy / "checkpoint-10/unet/diffusion_paddle_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert find_unet(copy).label == "checkpoint-5"


@pytest.mark.parametrize("name", ["checkpoint-7", "checkpoint-7/unet", "checkpoint-10/unett"])
def test_a_missing_checkpoint_lists_the_existing_ones(output_dir, name):
    with pytest.raises(InputError, match="checkpoint-5, checkpoint-10"):
        find_unet(output_dir / name)


def test_a_missing_folder_is_no_published_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="holds no checkpoint-N"):
        find_unet("out/checkpoint-5/unet")


def test_what_the_run_used_is_used(output_dir, repository):
    """Size, prediction type, length and the other models come from the checkpoint and its run."""
    models = load_models(str(output_dir / "checkpoint-5"))
    assert models.side == 24 and models.tokenizer.model_max_length == 20
    assert models.scheduler().config.prediction_type == "v_prediction" and models.sampler == "ddim"
    assert models.sources["vae"] == (str(repository), "vae", None)
    assert run_settings(output_dir / "checkpoint-5")["pretrained_model_name_or_path"] == str(repository)
    plain = load_models(pretrained_model=str(repository))
    assert plain.side == 32 and plain.scheduler().config.prediction_type == "epsilon"
    assert plain.weights_id() != models.weights_id()


def test_variants_are_distinguished_and_have_no_fallback(output_dir):
    raw, ema = (load_models(str(output_dir / "checkpoint-10"), variant=variant) for variant in (None, "ema"))
    ratio = ema.unet.conv_in.weight.numpy() / raw.unet.conv_in.weight.numpy()
    assert np.allclose(ratio, 0.5 / 0.9)
    with pytest.raises(InputError, match="checkpoint-5/unet has no weights of variant 'ema'"):
        load_models(str(output_dir / "checkpoint-5"), variant="ema")


def test_models_that_share_components_keep_their_own_max_length(output_dir, repository):
    short = load_models(str(output_dir / "checkpoint-5"))
    whole = load_models(str(repository), shared=short)
    assert (short.tokenizer.model_max_length, whole.tokenizer.model_max_length) == (20, 77)
    assert load_models(str(output_dir), shared=short).vae is short.vae


def test_the_components_around_a_pipelines_unet_are_used(repository):
    for name in (repository, repository / "unet"):
        models = load_models(str(name))
        assert models.sources["vae"] == (str(repository), "vae", None)
        assert models.sampler == "ddim" and models.side == 32


def test_a_unet_of_other_shapes_is_refused(output_dir, tmp_path):
    other = make_tiny_repository(tmp_path, latent_channels=6)
    with pytest.raises(InputError, match="in_channels=4 of the UNet, but the VAE's latents have 6 channels"):
        load_models(str(output_dir / "checkpoint-5"), pretrained_model=str(other))


def test_what_a_cpu_cannot_do_is_refused(repository):
    devices.select("cpu")
    with pytest.raises(InputError, match="bf16 on device 'cpu'"):
        load_models(pretrained_model=str(repository), dtype="bf16")


# Prompts.


@pytest.mark.parametrize(
    ("name", "text", "column"),
    [
        ("p.txt", "a “red” circle\n\n  b\u2028c \r\n", None),
        ("p.jsonl", '{"caption": "a “red” circle", "id": 1}\n\n{"caption": "b\\u2028c"}\n', None),
        ("p.tsv", "image_id\tcaption_en\n1\ta “red” circle\n2\tb\u2028c\r\n", None),
        ("p.csv", "\ufeffid,words\n1,a “red” circle\n2,b\u2028c\n", "words"),
    ],
)
def test_every_kind_of_prompt_file_is_read(tmp_path, name, text, column):
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert read_prompts(path, column) == ["a “red” circle", "b\u2028c"]
    assert read_prompts(path, column, limit=1) == ["a “red” circle"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.tsv", "p.csv"])
def test_prompt_files_of_every_encoding_and_line_end_are_read(tmp_path, name, encoding):
    heads = {"p.txt": "", "p.jsonl": "", "p.tsv": "id\tcaption\r\n", "p.csv": "id,caption\r\n"}
    line = {"p.txt": "%s", "p.jsonl": '{"text": "%s"}', "p.tsv": "1\t%s", "p.csv": "1,%s"}[name]
    text = heads[name] + "".join(line % prompt + "\r\n" for prompt in ("红色的圆", "绿色的方块"))
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_prompts(tmp_path / name) == ["红色的圆", "绿色的方块"]


def test_a_tsv_field_in_quotes_loses_them_and_bare_ones_stay(tmp_path):
    path = tmp_path / "coco30k.tsv"
    path.write_text('image_id\tcaption_en\n1\t"Stop" says a sign\n2\t"a ""big"" dog"\n3\tbare " mark\n')
    assert read_prompts(path) == ['"Stop" says a sign', 'a "big" dog', 'bare " mark']


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "p.tsv",
            "id\tx\n1\ta\n",
            "line 2: no column named prompt or caption_en or caption or text with text, it has id, x",
        ),
        ("p.jsonl", '{"caption": "a"}\n{"text": "b"}\n', "line 2: no column 'caption' with text, it has text"),
        ("p.jsonl", '{"caption": 3}\n', "line 1: no column 'caption' with text"),
        ("p.jsonl", '{"caption": "a"}\nnot json\n', "line 2: not JSON"),
        ("p.jsonl", "[1]\n", "line 1: list where an object was expected"),
        ("p.jsonl", '{"caption": "a"}\n{"caption": "a \\ud83d"}\n', "line 2: character 3 is half of one, U+D83D"),
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.tsv", "caption_en\n", "holds no prompt"),
        ("p.csv", "", "holds no prompt"),
        ("p.tsv", "id\tcaption\n1\ta\n2\tb\tc\n", "line 3: 3 fields where the header has 2; take tabs out"),
        ("p.csv", "id,caption\n1,a\n\n2,a dog, a cat\n", "line 4: 3 fields where the header has 2; quote fields"),
        ("p.csv", 'id,caption\n1,"a dog\n2,a cat\n', "line 3: unexpected end of data; is a quotation mark left open?"),
        ("p.txt", b"a\xff", "byte 1 is not UTF-8"),
    ],
)
def test_prompts_that_cannot_be_read_are_named(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        read_prompts(path)
    assert message in str(error.value) and str(path) in str(error.value)
    with pytest.raises(InputError, match="No such file"):
        read_prompts(tmp_path / "none.txt")


def test_a_wrong_column_of_training_is_not_to_be_named_by_a_flag_of_eval(tmp_path):
    (tmp_path / "p.csv").write_text("id,title\n1,a\n")
    with pytest.raises(InputError, match=r"it has id, title; rename the right one$"):
        read_prompts(tmp_path / "p.csv", flag="validation_prompts")


# Pictures and files.


def test_a_png_holds_its_prompt_and_settings(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, [8, 6, 3], dtype=np.uint8)
    write_png(tmp_path / "a.png", picture, "ein Kreis, 圆", {"seed": 3, "guidance_scale": 7.5})
    assert read_png_text(tmp_path / "a.png") == ("ein Kreis, 圆", {"seed": 3, "guidance_scale": 7.5})
    assert (read_pixels(tmp_path / "a.png") == picture).all() and len(list(tmp_path.iterdir())) == 1
    Image.new("RGB", (2, 2)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    assert read_png_text(tmp_path / "b.png") == read_png_text(tmp_path / "c.png") == (None, None)
    assert slug("A red circle, on black!") == "a-red-circle-on-black" and slug("红色的圆。黑底") == "红色的圆-黑底"
    assert slug("un_café ☕") == "un-café" and slug("?!") == "picture" and slug("x" * 50) == "x" * 40


def test_the_same_bytes_alone_in_a_batch_and_again(output_dir, tmp_path):
    models = load_models(str(output_dir))
    settings = settings_for(models, num_inference_steps=2)
    jobs = [Job(f"prompt {i}", 7, tmp_path / f"{i}.png") for i in range(10)]
    draw(models, jobs, settings)
    draw(models, [Job("prompt 4", 7, tmp_path / "alone.png")], settings)
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "4.png").read_bytes()
    assert len({job.path.read_bytes() for job in jobs}) == 10


def test_drawing_resumes_where_it_was_cut_off(output_dir, tmp_path, capsys):
    models = load_models(str(output_dir))
    settings = settings_for(models, num_inference_steps=2)
    jobs = [Job("a", seed, tmp_path / f"{seed}.png") for seed in range(3)]
    draw(models, jobs, settings)
    before = [job.path.read_bytes() for job in jobs]
    times = [job.path.stat().st_mtime_ns for job in jobs]
    jobs[1].path.unlink()
    draw(models, jobs, settings)
    assert [job.path.read_bytes() for job in jobs] == before
    after = [job.path.stat().st_mtime_ns for job in jobs]
    assert (after[0], after[2]) == (
        times[0],
        times[2],
    ) and "2 of 3 pictures are there already" in capsys.readouterr().out
    draw(models, jobs, settings_for(models, num_inference_steps=3))  # other settings: nothing is taken over
    assert all(job.path.read_bytes() != old for job, old in zip(jobs, before, strict=True))


def test_a_full_disk_keeps_what_is_finished(output_dir, tmp_path, monkeypatch):
    models = load_models(str(output_dir))
    jobs = [Job("a", seed, tmp_path / f"{seed}.png") for seed in range(4)]
    real, calls = Path.rename, []

    def rename(self, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(files.Path, "rename", rename)
    with pytest.raises(
        RunError, match=r"2.png not written: the disk is full; free some space and run the same command"
    ):
        draw(models, jobs, settings_for(models, num_inference_steps=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]
    assert read_png_text(jobs[1].path)[0] == "a"


def test_a_picture_of_nan_is_an_error_and_not_black(output_dir, tmp_path):
    models = load_models(str(output_dir))
    bias = models.unet.conv_out.bias
    bias.set_value(bias * float("nan"))
    with pytest.raises(RunError, match="a picture has NaN pixels: so have the weights, or numbers overflow"):
        draw(models, [Job("a", 1, tmp_path / "a.png")], settings_for(models, num_inference_steps=2))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        files.make_folder(tmp_path / "file" / "below")


# The whole of eval.py's work.


def test_eval_writes_pictures_with_settings_and_a_grid(output_dir, tmp_path, capsys):
    long = "b" * 18 + " rest"
    run.run(flags(unet=str(output_dir), prompt=["a", long], num_images=3, output=str(tmp_path / "o")))
    names = sorted(path.name for path in (tmp_path / "o").iterdir())
    assert len(names) == 7 and names[:3] == ["0-a-42.png", "0-a-43.png", "0-a-44.png"] and "grid.png" in names
    prompt, settings = read_png_text(tmp_path / "o/0-a-43.png")
    expected = {"seed": 43, "guidance_scale": 2.0, "num_inference_steps": 2, "height": 24, "model": "checkpoint-10"}
    assert prompt == "a" and settings | expected == settings and settings["prediction_type"] == "v_prediction"
    assert read_pixels(tmp_path / "o/0-a-43.png").shape == (24, 24, 3)
    assert "prompt 2 is truncated to the model's 20 tokens; cut off: 'rest'" in capsys.readouterr().out
    run.run(flags(unet=str(output_dir), prompt=["a"], seed=43, output=str(tmp_path / "one.png")))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "o/0-a-43.png").read_bytes()


def test_compare_puts_the_same_noise_side_by_side(output_dir, tmp_path):
    words = ["raw", "ema", f"{output_dir}/checkpoint-5", f"{output_dir}/checkpoint-10/unet:ema", "1"]
    columns = find_columns(words, str(output_dir), None, 2.0)
    assert [column.label for column in columns] == [
        "raw", "ema", f"{output_dir.name}/checkpoint-5", f"{output_dir.name}/checkpoint-10 ema", "guidance 1",
    ]  # fmt: skip
    run.run(flags(unet=str(output_dir), compare=words, prompt=["a", "b"], output=str(tmp_path / "grid.png")))
    folders = sorted((tmp_path / "grid").iterdir())
    assert len(folders) == 5
    pictures = [[read_pixels(path).tobytes() for path in sorted(folder.iterdir())] for folder in folders]
    assert pictures[1] == pictures[3] and len({row[0] for row in pictures}) == 4
    width, height = Image.open(tmp_path / "grid.png").size
    assert width > 5 * 144 and height > 2 * 144


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_images": 0}, "num_images=0; expected at least 1"),
        ({"seed": -1}, "seed=-1; expected at least 0"),
        ({"compare": ["1"]}, "expected two or more"),
        ({"height": 30}, "height=30 does not fit the VAE"),
        ({"scheduler": "foo"}, "scheduler='foo'; expected one of ddim"),
        ({"dtype": "int8"}, "dtype='int8'; expected one of"),
        ({"device": "tpu"}, "--device tpu; expected cpu, gpu or gpu:N"),
        ({"prompt": [os.fsdecode(b"caf\xe9")]}, "character 4 is byte 0xe9, which is not UTF-8"),
        ({"negative_prompt": "\ud83d"}, "character 1 is half of one, U+D83D"),
    ],
)
def test_flags_that_do_not_fit_are_named(repository, tmp_path, given, message):
    with pytest.raises(InputError) as error:
        run.run(flags(pretrained_model=str(repository), output=str(tmp_path), **given))
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["a.jpg", "b.JPEG", "c.webp"])
def test_another_picture_format_is_refused_before_anything_is_made(tmp_path, name):
    with pytest.raises(InputError, match=r"pictures are written as PNG: name a file\.png, or a folder"):
        flags(output=str(tmp_path / name))
    assert not (tmp_path / name).exists()


def test_the_bar_ends_full_and_without_a_warning(output_dir, tmp_path, capfd):
    models = load_models(str(output_dir))
    jobs = [Job("a", seed, tmp_path / f"{seed}.png") for seed in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", TqdmWarning)
        draw(models, jobs, settings_for(models, num_inference_steps=7, batch_size=1))
    shown = capfd.readouterr().err
    assert "| 3/3 pictures" in shown.splitlines()[-1].split("\r")[-1]
    assert {count.isdigit() for count in re.findall(r"\| (\S*)/3 pictures", shown)} == {True}
