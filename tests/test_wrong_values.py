"""Wrong values of flags, and names of files that are not there, end every script before Paddle is imported."""

import dataclasses
import sys
from importlib import import_module
from pathlib import Path

import pytest

from sd.errors import InputError, as_typed
from sd.flags.arguments import SDDataArguments, SDModelArguments
from sd.flags.command_line import training_names
from tests.data_maker import make_data
from tests.tiny import make_tiny_repository

ROOT = Path(__file__).resolve().parent.parent
EVAL = "sample --prompt a --pretrained_model models"
SCORES = "sample --metrics --pretrained_model models --prompts_file prompts.txt"
CACHE = "cache --file_list LIST --pretrained_model_name_or_path models --output_path o"
EXPORT = "export --checkpoint models --output o"
SERVE = "serve --checkpoint models"
TRAIN = "train --do_train --output_dir o --file_list LIST --pretrained_model_name_or_path models --resolution 32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, a file list, prompts and a file in whose place no folder can be made."""
    folder = tmp_path_factory.mktemp("wrong")
    make_tiny_repository(folder / "models")
    (folder / "LIST").write_bytes(Path(make_data(folder / "data", [3])).read_bytes())
    (folder / "prompts.txt").write_text("a red circle\n")
    (folder / "file").touch()
    (folder / "folder.png").mkdir()
    (folder / "without_unet/vae").mkdir(parents=True)
    return folder


@pytest.fixture
def end_of_checks(monkeypatch):
    """The moment at which Paddle would be imported, or the page started."""

    class PaddleError(Exception):
        pass

    def prepare(device=None):
        raise PaddleError

    monkeypatch.setattr("sd.runtime.prepare", prepare)
    monkeypatch.setattr("os.execve", lambda *_: prepare())
    monkeypatch.setattr("sd.commands.serve.PAGE_PYTHON", ROOT / "app.py")  # as if its packages were installed
    return PaddleError


@pytest.fixture
def call(folder, monkeypatch, end_of_checks):
    """Run the script of a command line, its name first, as if it were typed in `folder`."""

    def call(words):
        name, *flags = words.split()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [name, *flags])
        monkeypatch.delenv("SD_GPU_DEFAULTS", raising=False)
        import_module(f"sd.commands.{name}").main()

    return call


@pytest.mark.parametrize(
    "words", [EVAL, f"{SCORES} --clip_model some/clip", CACHE, EXPORT, SERVE, TRAIN], ids=lambda w: w[:6]
)
def test_right_values_come_to_paddle(call, end_of_checks, words):
    with pytest.raises(end_of_checks):
        call(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"{EVAL} --num_images 0", "--num_images 0; expected at least 1"),
        (f"{EVAL} --batch_size 0", "--batch_size 0; expected at least 1"),
        (f"{EVAL} --num_inference_steps 0", "--num_inference_steps 0; expected 1 to 999"),
        (f"{EVAL} --num_inference_steps 1000", "--num_inference_steps 1000; expected 1 to 999"),
        (f"{EVAL} --guidance_scale 0.5", "--guidance_scale 0.5; expected at least 1, which is no guidance"),
        (f"{EVAL} --guidance_scale nan", "--guidance_scale nan; expected at least 1, which is no guidance"),
        (f"{EVAL} --scheduler ddpm", "--scheduler ddpm; expected one of ddim, pndm, lms, euler, heun, dpm"),
        (f"{EVAL} --height 30", "--height 30 does not fit the VAE, which halves to 1/4; try 32"),
        (f"{EVAL} --width 2", "--width 2 does not fit the VAE, which halves to 1/4; try 4"),
        (f"{EVAL} --dtype int8", "--dtype int8; expected one of fp32, bf16, fp16"),
        (f"{EVAL} --dtype fp16 --device cpu", "fp16 on device 'cpu', where Paddle has no kernels for it; use fp32"),
        (f"{EVAL} --device tpu", "--device tpu; expected cpu, gpu or gpu:N"),
        (f"{EVAL} --variant ema", "models/unet has no weights of variant 'ema'; leave it out"),
        (f"{EVAL} --vae ./nowhere", "--vae_name_or_path ./nowhere: no such folder"),
        (f"{EVAL} --text_encoder ./nowhere", "--text_encoder_name_or_path ./nowhere: no such folder"),
        (f"{EVAL} --tokenizer ./nowhere", "--tokenizer_name ./nowhere: no such folder"),
        (f"{EVAL} --output file/pictures", "--output file/pictures cannot be written: "),
        (f"{EVAL} --output folder.png", "--output folder.png is a folder; name another file.png"),
        (f"{EVAL} --output file/one.png", "--output file cannot be written: file is a file; choose another"),
        (f"{EVAL} --compare 0.5 2", "--compare 0.5; expected at least 1, which is no guidance"),
        (f"{EVAL} --compare models nowhere", "nowhere: no UNet there; "),
        (f"{EVAL} --compare raw ema", "models/unet has no weights of variant 'ema'; leave it out"),
        ("sample --prompt a --pretrained_model ./nowhere", "--pretrained_model ./nowhere: no such folder or file"),
        ("sample --prompt a --pretrained_model without_unet", "without_unet: no sub-folder 'unet'; expected one, or "),
        ("sample --prompts_file nowhere", "--prompts_file nowhere cannot be read: No such file or directory"),
        ("sample --prompts_file prompts.txt --prompts_column x", "prompts.txt, line 1: no column 'x' with text"),
        (f"{SCORES} --clip_model ./nowhere", "--clip_model ./nowhere: no such folder; name that of a CLIP"),
        (f"{SCORES} --clip_model some/clip --guidance_scales 1 0", "--guidance_scales 0.0; expected at least 1"),
        (f"{SCORES} --fid_model no.pth --fid_reference models", "--fid_model no.pth: no such file; name the weights"),
        (f"{SCORES} --fid_model some/clip --fid_reference nowhere", "--fid_reference nowhere: no such .npz file"),
        (f"{SCORES} --clip_model some/clip --preset mlperf --unet nowhere", "nowhere: no UNet there; "),
        ("sample --prompts_file prompts.txt --clip_model a/b --watch nowhere", "--watch nowhere: no such folder"),
        ("sample --prompts_file prompts.txt --clip_model a/b --watch models --golden x", "--golden x; expected one of"),
        (f"{CACHE} --seed -1", "--seed -1; expected at least 0"),
        (f"{CACHE} --resolution 30", "--resolution 30: the VAE divides it by 4; use a multiple of it"),
        (f"{CACHE} --aspect_buckets 32x32,30x36", "bucket 30x36: the VAE divides its sides by 4"),
        (f"{CACHE} --vae_name_or_path ./nowhere", "--vae_name_or_path ./nowhere: no such folder"),
        (f"{CACHE} --cache_text --tokenizer_name ./nowhere", "--tokenizer_name ./nowhere: no such folder"),
        (f"{CACHE} --file_list nowhere", "nowhere: No such file or directory; "),
        (f"{CACHE} --device tpu", "--device tpu; expected cpu, gpu or gpu:N"),
        (f"{EXPORT} --checkpoint nowhere", "nowhere: no UNet there; "),
        (f"{EXPORT} --scheduler ddpm", "--scheduler ddpm; expected one of ddim, pndm, lms, euler, heun, dpm"),
        (f"{EXPORT} --variant ema", "models/unet has no weights of variant 'ema'; leave it out"),
        (f"{EXPORT} --output models", "--output models is there already; remove it or choose another"),
        (f"{EXPORT} --output file/x", "--output file cannot be written: file is a file; choose another"),
        (f"{EXPORT} --output o.bin --format single_file", "--output o.bin: expected the name of a new .safetensors"),
        (f"{EXPORT} --card --scores nowhere", "nowhere cannot be read"),
        (f"{EXPORT} --card --picture nowhere", "--picture nowhere: no such file"),
        (f"{SERVE} --port 70000", "--port 70000; expected at least 1 and at most 65535"),
        (f"{SERVE} --dtype int8", "--dtype int8; expected one of fp32, bf16, fp16"),
        (f"{SERVE} --vae ./nowhere", "--vae_name_or_path ./nowhere: no such folder"),
        ("serve --output_dir models --vae ./nowhere", "--vae_name_or_path ./nowhere: no such folder"),
        (f"{TRAIN} --device tpu", "--device tpu; expected cpu, gpu or gpu:N"),
        (f"{TRAIN} --resolution 0", "--resolution 0; expected at least 8"),
        (f"{TRAIN} --resolution x", "--resolution x; expected a whole number"),
        (f"{TRAIN} --prediction_type eps", "--prediction_type eps; expected one of "),
        (f"{TRAIN} --num_inference_steps 1000", "--num_inference_steps 1000; expected at least 1 and at most 999"),
        (f"{TRAIN} --enlarge maybe", "--enlarge maybe; expected True or False"),
        (f"{TRAIN} --learning_rat 1e-4", "unknown argument '--learning_rat'; did you mean --learning_rate?"),
        (f"{TRAIN} --mixed_precision fp16", "unknown argument '--mixed_precision'; here it is --fp16 True or "),
        (f"{TRAIN} --file_list nowhere", "nowhere: No such file or directory; "),
        (f"{TRAIN} --eval_file_list nowhere", "nowhere: No such file or directory; "),
        (f"{TRAIN} --vae_name_or_path ./nowhere", "--vae_name_or_path ./nowhere: no such folder"),
        (f"{TRAIN} --unet_name_or_path ./nowhere.json", "--unet_name_or_path ./nowhere.json: no such folder or file"),
        (f"{TRAIN} --doctor --resolution 0", "--resolution 0; expected at least 8"),
    ],
    ids=lambda text: text.replace("/", "_"),
)
def test_wrong_values_do_not(call, words, message):
    with pytest.raises(InputError) as error:
        call(words)
    assert as_typed(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        "sample --prompts_file", "sample --pretrained_model", "sample --prompt a --unet", f"{EVAL} --output",
        f"{EXPORT} --text_encoder", "serve --output_dir", f"{SERVE} --output", f"{TRAIN} --file_list",
        f"{TRAIN} --eval_file_list", f"{TRAIN} --unet_name_or_path",
    ],
)  # fmt: skip
def test_an_empty_name_is_no_name_that_was_left_out(call, words):
    """A variable of the shell that is not set: "$PROMPTS"."""
    with pytest.raises(InputError, match=r"=''; expected a value, not an empty text$") as error:
        call(f"{words}=")
    assert as_typed(error.value).endswith(" ''; expected a value, not an empty text")


def test_flags_of_training_are_known_without_its_parser():
    """A flag that the early check did not know would be refused although training has it."""
    from paddlenlp.trainer import PdArgumentParser

    from sd.flags.training import SDTrainingArguments

    options = PdArgumentParser((SDModelArguments, SDDataArguments, SDTrainingArguments))._option_string_actions
    fields = {each.name for group in (SDModelArguments, SDDataArguments) for each in dataclasses.fields(group)}
    assert {*options} - {"-h", "--help"} == {f"--{name}" for name in fields.union(training_names())}


def test_a_wrong_filter_does_not(call, monkeypatch):
    with pytest.raises(InputError, match="--data_filter: "):
        call(f"{CACHE} --data_filter score>")


@pytest.mark.parametrize("name", ["sample --prompt a", CACHE, SERVE, TRAIN], ids=lambda words: words[:6])
def test_a_card_with_the_cpu_build_does_not(call, monkeypatch, name):
    monkeypatch.setattr("sd.devices.has_gpu_paddle", lambda: False)
    with pytest.raises(InputError, match="--device gpu: this Paddle is built for CPUs; install the GPU build"):
        call(f"{name} --device gpu")


def test_with_the_gpu_build_a_half_precision_is_left_to_the_card(call, monkeypatch, end_of_checks):
    monkeypatch.setattr("sd.devices.has_gpu_paddle", lambda: True)
    with pytest.raises(end_of_checks):
        call(f"{EVAL} --dtype fp16")
