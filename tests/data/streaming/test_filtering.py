"""A filter in training: the same batches as from a data set that was packed from the passing rows alone."""

import logging
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from sd.data.filters.parse import FilterError
from sd.data.parts.columns import SUFFIX, floats, read_columns, write_columns
from sd.data.parts.part import load_index
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.dataset import TextImagePair
from sd.data.streaming.eval_pairs import EvalPairs
from sd.errors import InputError, RunError
from tests.data_maker import draw, tokenize, untokenize, write_lists, write_part

ROWS = (30, 20, 8, 14)
FILTER = "aesthetic > 5 and not license in ('arr') or duplicate"


def scores(number):
    """The columns of a part, of which some rows are missing; of part 2 none passes FILTER."""
    draws, rows = np.random.default_rng(number), ROWS[number]
    aesthetic = np.where(draws.random(rows) < 0.2, None, draws.uniform(4, 7, rows))
    license_ = np.array(["cc0", "arr", None])[draws.integers(3, size=rows)]
    duplicate = draws.random(rows) < 0.1
    if number == 2:
        license_, duplicate = ["arr"] * rows, [None] * rows
    return {"aesthetic": list(aesthetic), "license": list(license_), "duplicate": list(map(_bool, duplicate))}


def _bool(value):
    return None if value is None else bool(value)


def passing(number):
    """The rows of a part that pass FILTER, by Python's own logic."""
    columns = scores(number)
    return [
        row
        for row, (score, license_, duplicate) in enumerate(zip(*columns.values(), strict=True))
        if (score is not None and score > 5 and license_ is not None and license_ != "arr") or duplicate is True
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file list of all rows, with their columns, in two sources."""
    folder = tmp_path_factory.mktemp("whole")
    parts = [folder / f"part-{number:06d}.gz" for number in range(len(ROWS))]
    for number, part in enumerate(parts):
        write_part(part, number, ROWS[number], columns=scores(number))
    return write_lists(folder, (0.7, parts[:3]), (0.3, parts[3:]))


@pytest.fixture(scope="module")
def subset(tmp_path_factory):
    """The file list of parts that hold the passing rows alone; part 2 does not exist."""
    folder = tmp_path_factory.mktemp("subset")
    parts = [folder / f"part-{number:06d}.gz" for number in (0, 1, 3)]
    for number, part in zip((0, 1, 3), parts, strict=True):
        write_part(part, number, passing(number))
    return write_lists(folder, (0.7, parts[:2]), (0.3, parts[2:]))


def dataset(file_list, **changed):
    options = {"resolution": 32, "batch_size": 2, "lanes": 2, "deal_size": 2, "buffer_size": 7, "draw": draw}
    return TextImagePair(file_list, tokenize, **(options | changed))


def samples(data, count):
    actual = list(islice(data, count))
    assert not any("error" in sample for sample in actual), bytes(actual[-1]["error"]).decode()
    return actual


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_batches_are_those_of_the_passing_rows_packed_alone_bit_for_bit(whole, subset, ranks):
    """Records, crops, captions dropped or not, noise and timesteps of three passes; the rows' numbers apart."""
    for rank in range(ranks):
        world = {"rank": rank, "world_size": ranks}
        ours = dataset(whole, data_filter=FILTER, **world)
        theirs = dataset(subset, **world)
        assert ours.num_usable == theirs.num_usable == sum(len(passing(number)) for number in (0, 1, 3))
        assert ours.order.rows == theirs.order.rows
        packed = {0: passing(0), 1: passing(1), 2: passing(3)}
        count = 3 * ours.num_usable // ranks
        for one, other in zip(samples(ours, count), samples(theirs, count), strict=True):
            part, row = one["position"]
            other_part, other_row = other["position"]
            assert part == other_part and row == packed[int(other_part)][int(other_row)]
            assert one.keys() == other.keys()
            for key in one.keys() - {"position"}:
                np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_validation_and_previews_see_the_passing_rows_alone(whole, subset):
    ours = EvalPairs(Catalog(whole, 32, data_filter=FILTER), tokenize, draw=draw)
    theirs = EvalPairs(Catalog(subset, 32), tokenize, draw=draw)
    assert len(ours) == len(theirs)
    for at in range(len(ours)):
        np.testing.assert_array_equal(ours[at]["pixel_values"], theirs[at]["pixel_values"])


def test_without_a_filter_columns_change_nothing(whole, tmp_path):
    parts = []
    for number in range(len(ROWS)):
        parts.append(tmp_path / f"part-{number:06d}.gz")
        write_part(parts[-1], number, ROWS[number])
    bare = write_lists(tmp_path, (0.7, parts[:3]), (0.3, parts[3:]))
    assert dataset(bare).fingerprint == dataset(whole).fingerprint
    for one, other in zip(samples(dataset(whole), 20), samples(dataset(bare), 20), strict=True):
        np.testing.assert_array_equal(one["pixel_values"], other["pixel_values"])


def test_each_source_may_have_its_own_filter(whole, tmp_path):
    file_list = tmp_path / "train.filelist.list"
    first, second = (line.rsplit(" ", 1)[0] for line in Path(whole).read_text().splitlines())
    file_list.write_text(f"{first} 0.5 where aesthetic > 5\n{second}\twhere license == 'cc0' or license is missing\n")
    catalog = Catalog(file_list, 32)
    own = [sum((value or 0) > 5 for value in scores(number)["aesthetic"]) for number in range(3)]
    free = sum(value != "arr" for value in scores(3)["license"])
    assert catalog.weights == [0.5, 1.0] and catalog.usable.tolist() == [*own, free]
    assert catalog.data_filter == (
        'source0.filelist where aesthetic > 5; source1.filelist where license == "cc0" or license is missing'
    )
    both = Catalog(file_list, 32, data_filter="not duplicate")
    assert 0 < both.num_usable < catalog.num_usable and len({both.fingerprint, catalog.fingerprint}) == 2
    assert "source1.filelist where not duplicate and (license ==" in both.data_filter


def test_a_path_with_the_word_where_in_it_is_a_path(tmp_path):
    folder = tmp_path / "the place where it is"
    folder.mkdir()
    write_part(folder / "part-000000.gz", 0, 3)
    (folder / "a.filelist").write_text(f"{folder}/part-000000.gz\n")
    file_list = tmp_path / "list"
    file_list.write_text(f"{folder}/a.filelist 0.5\n")
    assert Catalog(file_list, 32).num_usable == 3
    file_list.write_text(f"{folder}/a.filelist where width > 100\n")
    with pytest.raises(InputError, match=r"no such file|No such file"):
        Catalog(file_list, 32)  # the first ` where ` ends the path: name such a list otherwise


def test_width_and_height_are_known_without_columns(tmp_path):
    write_part(tmp_path / "part-000000.gz", 0, 5)
    file_list = write_lists(tmp_path, (1.0, [tmp_path / "part-000000.gz"]))
    assert Catalog(file_list, 32, data_filter="width == 40 and height <= width").num_usable == 5
    with pytest.raises(InputError, match=r"of 5 rows of 32 px or more width > 40 removes 5, height > 1 removes 0"):
        Catalog(file_list, 32, data_filter="width > 40 and height > 1")


def test_clauses_are_counted_alone_and_together(whole):
    actual = Catalog(whole, 32, data_filter="aesthetic > 5 and license == 'cc0'").filtering
    all_scores = [row for number in range(4) for row in zip(*scores(number).values(), strict=True)]
    low = sum(not (score and score > 5) for score, _, _ in all_scores)
    other = sum(license_ != "cc0" for _, license_, _ in all_scores)
    left = sum(bool(score and score > 5) and license_ == "cc0" for score, license_, _ in all_scores)
    assert actual.num_large == sum(ROWS) and actual.num_left == left
    assert actual.clauses() == [f"aesthetic > 5 removes {low}", f'license == "cc0" removes {other}']
    assert actual.types == {"aesthetic": "float64", "license": "text", "duplicate": "bool"}


def test_a_filter_that_leaves_nothing_lists_what_each_clause_removes(whole):
    with pytest.raises(InputError, match=r"no row passes.* of 72 rows.* aesthetic > 9 removes 72, duplicate removes"):
        Catalog(whole, 32, data_filter="aesthetic > 9 and duplicate")
    with pytest.raises(InputError, match=r"source0.filelist: no row passes license == \"none\""):
        source = [line.rsplit(" ", 1)[0] for line in Path(whole).read_text().splitlines()]
        file_list = Path(whole).with_name("emptied.list")
        file_list.write_text(f'{source[0]} where license == "none"\n{source[1]}\n')
        Catalog(file_list, 32)
    assert Catalog(whole, 32, data_filter="aesthetic > 9", may_be_unusable=True).num_usable == 0


def test_one_row_that_is_left_is_read(whole):
    highest = max(value for value in scores(0)["aesthetic"] if value)
    only = f"aesthetic == {highest!r}"
    file_list = Path(whole).with_name("one.list")
    file_list.write_text(Path(whole).read_text().splitlines()[0])
    data = dataset(file_list, data_filter=only, batch_size=1, lanes=1, deal_size=1, caption_dropout=0)
    row = scores(0)["aesthetic"].index(highest)
    assert [untokenize(sample["input_ids"]) for sample in samples(data, 3)] == [f"part 0 row {row}"] * 3


def test_a_wrong_name_lists_the_columns(whole):
    with pytest.raises(FilterError) as caught:
        Catalog(whole, 32, data_filter="aesthetic > 5 and pwatermark < 0.5")
    lines = str(caught.value).split("\n")
    assert lines[0] == "--data_filter: no part has a column 'pwatermark'"
    assert lines[1][len(lines[2]) - 1 :].startswith("pwatermark")
    assert lines[3] == "columns: aesthetic (float64), license (text), duplicate (bool); of every picture: width, height"


def test_a_wrong_type_names_the_part(whole):
    with pytest.raises(FilterError, match=r"part-000000.gz: column 'license' is text, compared with a number 5\n"):
        Catalog(whole, 32, data_filter="license > 5")


@pytest.fixture
def two(tmp_path):
    """Two parts of 4 rows with the column `a`: 0, 1, 2, 3."""
    parts = [tmp_path / f"part-{number:06d}.gz" for number in range(2)]
    for number, part in enumerate(parts):
        write_part(part, number, 4, columns={"a": [0.0, 1.0, 2.0, 3.0]})
    return parts, write_lists(tmp_path, (1.0, parts))


def test_a_column_that_one_part_lacks_is_missing_in_its_rows(two, caplog):
    parts, file_list = two
    Path(f"{parts[1]}{SUFFIX}").unlink()
    with caplog.at_level(logging.WARNING):
        catalog = Catalog(file_list, 32, data_filter="a > 1")
    assert catalog.num_usable == 2
    assert "1 of 2 parts, with 4 rows, have no column 'a'" in caplog.text and "part-000001.gz" in caplog.text
    assert Catalog(file_list, 32, data_filter="a is missing").usable.tolist() == [4]


def test_damaged_and_stale_columns_are_damage_of_the_part(two, tmp_path):
    parts, file_list = two
    path = Path(f"{parts[1]}{SUFFIX}")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"4 of 8 rows are bad.*part-000001.gz.columns: damaged"):
        Catalog(file_list, 32, data_filter="a > 1")
    catalog = Catalog(file_list, 32, data_filter="a > 1", max_bad_fraction=0.5)
    assert catalog.usable.tolist() == [2, 0] and list(catalog.damage) == [1]
    assert Catalog(file_list, 32).num_usable == 8  # without a filter nobody looks
    path.write_bytes(Path(f"{parts[0]}{SUFFIX}").read_bytes())
    with pytest.raises(InputError, match=r"part-000001.gz.columns: of 4 rows of a part of .* bytes"):
        Catalog(file_list, 32, data_filter="a > 1")


def test_other_scores_are_other_data(two):
    parts, file_list = two
    before = Catalog(file_list, 32, data_filter="a > 1")
    index = load_index(parts[0])
    write_columns(index, {"a": floats(np.array([0.0, 1.0, 5.0, 9.0]))})
    assert Catalog(file_list, 32, data_filter="a > 1").fingerprint == before.fingerprint  # the same rows pass
    write_columns(index, {"a": floats(np.array([3.0, 2.0, 1.0, 0.0]))})
    assert Catalog(file_list, 32, data_filter="a > 1").fingerprint != before.fingerprint


def test_columns_that_change_under_a_run_end_it(two):
    parts, file_list = two
    data = dataset(file_list, data_filter="a > 1", lanes=1, batch_size=1, deal_size=1)
    for part in parts:
        write_columns(load_index(part), {"a": floats(np.array([3.0, 3.0, 3.0, 3.0]))})
    with pytest.raises(RunError, match="its index or its columns have changed since the start"):
        raise_from(next(iter(data)))


def raise_from(sample):
    raise RunError(bytes(sample["error"]).decode())


def test_a_part_packed_again_keeps_columns_that_were_added(two):
    parts, _ = two
    write_part(parts[0], 0, 4, columns={"b": [1, 2, 3, 4]})
    assert list(read_columns(load_index(parts[0]))) == ["a", "b"]
    write_part(parts[0], 0, [3, 2, 1, 0], columns={"b": [1, 2, 3, 4]})  # other bytes
    assert list(read_columns(load_index(parts[0]))) == ["b"]
    write_part(parts[0], 0, 4)
    assert read_columns(load_index(parts[0])) is None
