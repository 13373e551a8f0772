"""Which rows a run reads: those of the filter, in training and in validation, known before any model is loaded."""

from pathlib import Path

import pytest

from sd.data.filters.parse import FilterError
from sd.diffusion.model import StableDiffusionModel
from sd.flags.arguments import SDDataArguments
from sd.training.data import make_eval_catalog
from tests.data_maker import make_data, write_lists, write_part
from tests.training_harness import Workshop

SCORES = [4.0, 5.5, 6.0, 7.0, 4.5, 6.5]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("data"))


@pytest.fixture
def scored(tmp_path):
    part = tmp_path / "part-000000.gz"
    write_part(part, 0, len(SCORES), columns={"score": SCORES})
    return write_lists(tmp_path, (1.0, [part]))


def num_held_out(file_list, data_filter):
    data_args = SDDataArguments(eval_file_list=file_list, resolution=32, data_filter=data_filter)
    return make_eval_catalog(data_args, None).num_usable


def test_held_out_rows_are_filtered_as_those_of_training(scored):
    assert num_held_out(scored, None) == len(SCORES)
    assert num_held_out(scored, "score > 5") == sum(score > 5 for score in SCORES)


def test_a_filter_of_the_held_out_list_takes_the_place_of_training_s(scored):
    lines = Path(scored).read_text().splitlines()
    Path(scored).write_text("".join(f"{line} where score > 6.2\n" for line in lines))
    assert num_held_out(scored, "score > 5") == num_held_out(scored, None) == sum(score > 6.2 for score in SCORES)
    assert num_held_out(scored, "no_such_column > 5") == sum(score > 6.2 for score in SCORES)


def test_without_a_held_out_list_there_is_none():
    assert make_eval_catalog(SDDataArguments(data_filter="score > 5"), None) is None


def test_an_unknown_column_is_reported_before_any_model_is_loaded(workshop, scored, monkeypatch):
    def load(*_):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(StableDiffusionModel, "from_arguments", load)
    flags = ["--file_list", scored, "--data_filter", "scores > 5"]
    with pytest.raises(FilterError, match=r"no part has a column 'scores'(.|\n)*score \(float64\)"):
        workshop.train("unknown", *flags)
    plain = make_data(workshop.folder / "plain", [6])
    flags = ["--file_list", scored, "--eval_file_list", plain, "--data_filter", "score > 5"]
    with pytest.raises(
        FilterError, match=r"--eval_file_list; a `where` of its own (.|\n)*no part has a column 'score'"
    ):
        workshop.train("unknown", *flags)
