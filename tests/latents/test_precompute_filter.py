"""A cache of the rows that pass a filter, with the columns of the images it was made of."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from sd.data.parts.columns import from_arrow, merge_columns, read_columns
from sd.data.parts.part import load_index
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.dataset import TextImagePair
from sd.errors import InputError
from sd.latents.run import precompute
from tests.data_maker import tokenize
from tests.latent_maker import make_shapes, options, read_records

FILTER = "score > 2 and width >= 40"
SCORES = ([0.0, 3.0, None, 4.0, 1.0], [5.0, 0.0, 6.0])
PASSING = ([1, 3], [0, 2])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The file list of two parts of shapes with a score and a text; of a third no row passes."""
    folder = tmp_path_factory.mktemp("images")
    file_list = make_shapes(folder, [5, 3, 2])
    for number, scores in enumerate((*SCORES, [0.0, None])):
        texts = [f"t{number}{row}" for row in range(len(scores))]
        columns = {"score": from_arrow(pa.array(scores)), "url": from_arrow(pa.array(texts))}
        merge_columns(load_index(folder / f"part-{number:06d}.gz"), columns)
    return file_list


@pytest.fixture(scope="module")
def cache(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("cache")
    return output, *precompute(options(images, output, data_filter=FILTER))


def test_the_rows_that_pass_are_cached_and_the_others_counted(cache):
    output, _, report = cache
    parts = sorted((output / "latents").glob("*.gz"))
    assert [list(read_records(part)[1]) for part in parts] == list(PASSING)
    assert report["outcomes"] == {"cached": 4, "filtered: data_filter": 4} and report["rows"] == 8
    assert (output / "rejected.jsonl").read_text() == ""
    assert json.loads((output / "filelist/custom_dataset.cache.json").read_text())["num_rows"] == 8


def test_the_columns_go_along_with_the_size_of_the_pictures(cache):
    index = load_index(cache[0] / "latents/part-000001.gz")
    columns = {name: column.to_arrow().to_pylist() for name, column in read_columns(index).items()}
    assert columns == {
        "width": [40] * 5,
        "height": [40] * 5,
        "score": SCORES[0],
        "url": [f"t0{row}" for row in range(5)],
    }


def test_a_run_from_the_cache_reads_what_one_from_the_images_reads(images, cache):
    """Also with the filter once more, which speaks of the width that the pictures had."""

    def places(file_list, data_filter):
        data = TextImagePair(file_list, tokenize, resolution=32, data_filter=data_filter)
        return [tuple(sample["position"]) for sample, _ in zip(data, range(12), strict=False)]

    expected = places(images, FILTER)
    assert places(cache[1], None) == places(cache[1], FILTER) == expected
    assert set(expected) == {(part, row) for part, rows in enumerate(PASSING) for row in rows}


def test_a_whole_cache_is_filtered_in_training(images, tmp_path):
    file_list, _ = precompute(options(images, tmp_path))
    assert Catalog(file_list, 32).usable.tolist() == [5, 3, 2]
    assert Catalog(file_list, 32, data_filter=FILTER).usable.tolist() == [2, 2]
    with pytest.raises(InputError, match="width > 40 removes 10"):
        Catalog(file_list, 32, data_filter="width > 40")


def test_another_filter_is_refused_and_the_same_one_resumes(images, cache):
    output = cache[0]
    before = {path: path.stat().st_mtime_ns for path in (output / "latents").iterdir()}
    assert precompute(options(images, output, data_filter="(score>2) AND width>=40.0"))[1] == cache[2]
    assert {path: path.stat().st_mtime_ns for path in (output / "latents").iterdir()} == before
    with pytest.raises(InputError, match="holds other rows: the filter or the columns that it judges by have changed"):
        precompute(options(images, output, data_filter="score > 0"))
    with pytest.raises(InputError, match="holds other rows"):
        precompute(options(images, output))


def test_sources_with_one_part_and_two_filters_have_a_cached_part_each(images, tmp_path):
    one = Path(images).read_text().split()[0]
    file_list = tmp_path / "two.filelist.list"
    file_list.write_text(f"{one} where score > 2\n{one} 2.0 where score <= 2\n")
    made, report = precompute(options(file_list, tmp_path / "cache"))
    assert report["outcomes"]["cached"] == 8 and report["parts"] == 5
    catalog = Catalog(made, 32)
    assert catalog.weights == [1.0, 2.0] and catalog.usable.tolist() == [2, 2, 2, 1, 1]
