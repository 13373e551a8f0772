"""Flags from files: recipes and run.json, their place among other flags, and train.sh's defaults beside them."""

import json
import subprocess
from pathlib import Path

import pytest

from sd.commands import cache, pack
from sd.data.packing.options import PackOptions
from sd.errors import InputError
from sd.flags.command_line import parse_arguments
from sd.flags.files import expand
from sd.runs.settings import write_run_json
from tests.flags.test_arguments import run_script

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPES = sorted(ROOT.glob("recipes/*.args"))
MODEL_FLAGS = {"--vae_name_or_path", "--text_encoder_name_or_path", "--unet_name_or_path"}


def recipe(folder, text, name="mine.args"):
    (folder / name).write_text(text, encoding="utf-8")
    return f"@{folder / name}"


def values(*argv):
    groups = parse_arguments(["--output_dir", "out", "--device", "cpu", *map(str, argv)], environ={})
    return {name: value for group in groups for name, value in vars(group).items()}


def test_a_recipe_is_read_as_a_shell_would_read_its_lines(tmp_path):
    text = '# what it is\n--resolution 64   # pixels\n\n--output_dir "with a blank"\n--bf16\n'
    assert expand([recipe(tmp_path, text)]) == ["--resolution", "64", "--output_dir", "with a blank", "--bf16"]
    assert expand(["--a", "@", "b@c"]) == ["--a", "@", "b@c"]


@pytest.mark.parametrize(
    "line",
    [
        "--output_dir out#2  # the second",
        "--a '# not yet' #x",
        '--b "x # y" z',
        "--c a\\ #b c",
        "#x",
        "--d don\\'t # isn't",
    ],
)
def test_a_comment_begins_where_a_shells_does(tmp_path, line):
    command = f'for word in {line}\ndo echo "$word"; done'
    words = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()
    assert expand([recipe(tmp_path, f"--first 1\n{line}\n")]) == ["--first", "1", *words]


def test_the_last_flag_wins_before_and_after_a_recipe(tmp_path):
    mine = recipe(tmp_path, "--resolution 64\n--seed 7\n")
    parsed = values("--resolution", 32, mine, "--seed", 8)
    assert (parsed["resolution"], parsed["seed"]) == (64, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no flag"),
        ("# only this\n", "holds no flag"),
        ("--resolution 64\nresolution 32\n", r"mine.args, line 2: 'resolution'; expected a flag"),
        ('--output_dir "open\n', "line 1: No closing quotation"),
        ("--resolution 64 \\\n--seed 3\n", "line 1: No escaped character; .* take the backslash off the line's end"),
        ("--resolutoin 64\n", "unknown argument '--resolutoin'; did you mean --resolution?"),
    ],
)
def test_a_wrong_recipe_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        values(recipe(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"@.*none.args cannot be read: No such file"):
        expand([f"@{tmp_path}/none.args"])
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(InputError, match=r"no run\.json"):
        expand([f"@{tmp_path}/run.json"])


def recorded(folder, *argv, environ=None):
    """The flags of a run with these arguments, kept in its run.json, and what they were parsed to."""
    groups = parse_arguments(["--do_train", "--output_dir", str(folder), "--device", "cpu", *argv], environ or {})
    write_run_json(folder, groups, "0123")
    return groups


def test_a_run_json_gives_the_flags_of_its_run(tmp_path):
    argv = ["--learning_rate", "3e-4", "--max_grad_norm", "-1", "--snr_gamma", "5", "--bf16", "False", "--seed", "5"]
    argv += ["--report_to", "visualdl", "tensorboard", "--lr_scheduler_type", "cosine", "--vae_name_or_path", "a/vae"]
    argv += ["--sharding", "stage1", "--output_dir", str(tmp_path / "a blank")]
    before = recorded(tmp_path, *argv, environ={"FLAG_USE_EMA": "1"})
    again = parse_arguments([f"@{tmp_path}/run.json"], environ={"FLAG_RECOMPUTE": "1"})
    for old, new in zip(before, again, strict=True):
        differing = {name for name in vars(old) if vars(old)[name] != vars(new).get(name)}
        assert differing <= {"logging_dir", "run_name"}  # made anew of the time and the output folder
    assert again[2].use_ema and not again[2].recompute


def test_a_run_json_removes_no_checkpoints_and_yields_to_later_flags(tmp_path):
    recorded(tmp_path, "--overwrite_output_dir", "--resume_from_checkpoint", "out/checkpoint-5")
    names = ("overwrite_output_dir", "resume_from_checkpoint", "seed", "logging_dir")
    words = expand([f"@{tmp_path}/run.json"], dict.fromkeys(names, False))
    assert words == ["--seed", "42"]
    other = tmp_path / "other"
    parsed = parse_arguments([f"@{tmp_path}/run.json", "--output_dir", str(other)], environ={})[2]
    assert parsed.output_dir == str(other) and parsed.logging_dir.startswith(str(other))


def test_paths_of_a_run_json_are_looked_up_where_the_run_was_started(tmp_path, monkeypatch):
    (tmp_path / "start/models").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    recorded(Path(), "--pretrained_model_name_or_path", "models", "--tokenizer_name", "Some/published")
    monkeypatch.chdir(tmp_path / "elsewhere")
    parsed = parse_arguments(["@../start/run.json"], environ={})[0]
    assert Path(parsed.pretrained_model_name_or_path) == tmp_path / "start/models"
    assert parsed.tokenizer_name == "Some/published"


# train.sh: what its caller names wins over its own three models.


def model_flags(folder, *argv):
    words, _ = run_script("train.sh", folder, *argv)
    return MODEL_FLAGS & set(words)


def test_a_model_named_by_the_caller_wins_over_the_scripts_own(tmp_path):
    assert model_flags(tmp_path) == MODEL_FLAGS
    assert model_flags(tmp_path, "--max_steps", "5") == MODEL_FLAGS
    assert model_flags(tmp_path, "--pretrained_model_name_or_path", "mine") == set()
    assert model_flags(tmp_path, "--pretrained_model_name_or_path=mine") == set()
    own = ("--pretrained_model_name_or_path", "mine", "--unet_name_or_path", "config.json")
    assert model_flags(tmp_path, *own) == {"--unet_name_or_path"}


def test_a_model_named_in_a_file_wins_as_well(tmp_path):
    named = recipe(tmp_path, "--seed 3\n--pretrained_model_name_or_path mine\n")
    assert model_flags(tmp_path, named) == set()
    assert (
        model_flags(tmp_path, recipe(tmp_path, "--seed 3 # --pretrained_model_name_or_path\n", "b.args")) == MODEL_FLAGS
    )
    recorded(tmp_path, "--pretrained_model_name_or_path", "mine")
    assert json.loads((tmp_path / "run.json").read_text())["arguments"]["SDModelArguments"]["unet_name_or_path"] is None
    assert model_flags(tmp_path, f"@{tmp_path}/run.json") == set()


def test_the_doctor_and_the_help_need_one_process(tmp_path):
    for word in ("--doctor", "--help"):
        words, _ = run_script("train_multi.sh", tmp_path, word)
        assert words[:2] == ["-u", words[1]] and words[1].endswith("train_txt2img_laion400m_trainer.py")


# The recipes.


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipes_header_states_its_needs_and_results(path):
    lines = [line[2:].partition(":") for line in path.read_text().splitlines() if line.startswith("# ")]
    headings = [name for name, colon, _ in lines if colon]
    assert [name for name in headings if name in ("Command", "Data", "Hardware", "Time", "Result")] == [
        "Command",
        "Data",
        "Hardware",
        "Time",
        "Result",
    ]
    reported = {name: text.strip() for name, _, text in lines}
    assert f"@recipes/{path.name}" in reported["Command"]
    assert "not been run" in reported["Result"] or "%" in reported["Result"]


def test_packing_and_caching_take_files_of_flags_too(tmp_path):
    packing = recipe(tmp_path, "--input_path in.jsonl\n--output_path packed  # here\n--resize 284\n", "pack.args")
    assert pack.parse_arguments([packing, "--resize", "300"]) == PackOptions("in.jsonl", "packed", resize=300)
    caching = recipe(tmp_path, "--file_list a.filelist.list\n--output_path cache\n--cache_text\n", "cache.args")
    assert cache.parse_arguments([caching]).cache_text
