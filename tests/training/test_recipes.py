"""Each recipe file trains: two steps on tiny models and data, by its own schedule."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from sd.data.parts.columns import floats, write_columns
from sd.data.parts.part import load_index
from sd.flags.command_line import parse_arguments
from sd.runs.checkpoint import read_json
from sd.training.run import train
from tests.training_harness import UNET, Workshop

ROOT = Path(__file__).resolve().parent.parent.parent
SCHEDULE = ("learning_rate", "lr_scheduler_type", "weight_decay")  # what stays of the recipe, beside its other flags
RECIPES = sorted(ROOT.glob("recipes/*.args"))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Parts with the columns that the recipes' filters name; half of the rows pass all of them."""
    workshop = Workshop(tmp_path_factory.mktemp("recipes"))
    for part in sorted(Path(workshop.file_list).parent.glob("part-*.gz")):
        index = load_index(part)
        passes = np.arange(index.num_rows) % 2
        values = {"aesthetic": 4.5 + passes, "pwatermark": 0.9 - 0.8 * passes}
        values |= dict.fromkeys(("original_width", "original_height"), 500.0 + 600 * passes)
        write_columns(index, {name: floats(column) for name, column in values.items()})
    return workshop


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_for_two_steps(workshop, path):
    flags = workshop.flags(path.stem, "--max_steps", 2, "--bf16", "False", "--gradient_accumulation_steps", 2)[1:]
    pairs = zip(flags[::2], flags[1::2], strict=True)
    at_demo_size = [word for name, value in pairs if name[2:] not in SCHEDULE for word in (name, value)]
    recipe = parse_arguments([f"@{path}", "--bf16", "False", "--device", "cpu"], environ={})[2]
    groups = parse_arguments([f"@{path}", "--do_train", *at_demo_size], environ={})
    assert train(*groups) is None
    checkpoint = Path(groups[2].output_dir) / "checkpoint-2"
    settings = read_json(checkpoint, "settings.json")
    assert {name: settings[name] for name in SCHEDULE} == {name: _plain(getattr(recipe, name)) for name in SCHEDULE}
    with safe_open(checkpoint / UNET, "np") as weights:
        assert len(weights.keys()) > 10
    assert (checkpoint / UNET.replace(".safetensors", ".ema.safetensors")).exists() == recipe.use_ema


def _plain(value):
    return getattr(value, "value", value)
