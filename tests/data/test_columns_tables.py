"""Tables of scores as pandas and spreadsheets write them, and data sets whose folder cannot be written."""

import gzip
import re
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from sd.data import columns as command
from sd.data.parts.columns import SUFFIX, read_columns
from sd.data.parts.part import load_index
from sd.errors import InputError
from tests.data_maker import write_lists, write_part

IDS = [7, 2**53 + 1, -3, None, 0]


@pytest.fixture
def data(tmp_path):
    """A part whose ids are whole numbers, one whose ids are float64 since one of them is 0.5."""
    write_part(tmp_path / "part-000000.gz", 0, 5, columns={"id": IDS})
    write_part(tmp_path / "part-000001.gz", 1, 2, columns={"id": [8.0, 0.5]})
    parts = [tmp_path / f"part-{number:06d}.gz" for number in range(2)]
    return parts, write_lists(tmp_path, (1.0, parts))


def scores(parts):
    return [read_columns(load_index(part))["score"].to_arrow().to_pylist() for part in parts]


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
def test_whole_numbers_are_one_key_in_every_type_that_holds_them(data, tmp_path, kind):
    """pandas makes float64 of a column of numbers of which one is missing."""
    parts, file_list = data
    table = pa.table({"id": pa.array([7.0, -3.0, None, 8.0, 0.5], kind), "score": [1.0, 2.0, 3.0, 4.0, 5.0]})
    parquet.write_table(table, tmp_path / "scores.parquet")
    command.main(["add", str(tmp_path / "scores.parquet"), file_list, "--key", "id"])
    assert scores(parts) == [[1.0, None, 2.0, None, None], [4.0, 5.0]]


def test_a_whole_number_beyond_float64_matches_no_other(data, tmp_path):
    parts, file_list = data
    table = pa.table({"id": pa.array([float(2**53), 7.0]), "score": [1.0, 2.0]})  # 2**53 + 1 rounds to the first
    parquet.write_table(table, tmp_path / "scores.parquet")
    command.main(["add", str(tmp_path / "scores.parquet"), file_list, "--key", "id"])
    assert scores(parts) == [[2.0, None, None, None, None], [None, None]]


def test_several_columns_match_by_their_numbers_too(data, tmp_path):
    parts, file_list = data
    table = pa.table({"row": pa.array([1.0, None, 1.0]), "id": pa.array([7, 7, 8]), "score": [1.0, 2.0, 3.0]})
    parquet.write_table(table, tmp_path / "scores.parquet")
    command.main(["add", str(tmp_path / "scores.parquet"), file_list, "--key", "row,id"])
    assert scores(parts) == [[1.0, None, None, None, None], [3.0, None]]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (",id,score", "column name ''; expected 1 to 200 printable characters; name it, or take others by --columns"),
        ("id,score,score", "several columns 'score'; it has id, score, score"),
        ("id,id,score", "several columns 'id'; it has id, id, score"),
        ("id,a\x07,score", r"column name 'a\x07'; expected 1 to 200"),
    ],
)
def test_a_table_whose_columns_cannot_be_named_changes_nothing(data, tmp_path, header, message):
    """The first is how `DataFrame.to_csv` writes the index."""
    parts, file_list = data
    (tmp_path / "scores.csv").write_text(f"{header}\n7,7,0.5\n")
    with pytest.raises(InputError, match=re.escape(f"scores.csv: {message}")):
        command.main(["add", str(tmp_path / "scores.csv"), file_list, "--key", "id"])
    assert "score" not in read_columns(load_index(parts[0]))


def test_the_named_columns_of_such_a_table_can_be_taken(data, tmp_path):
    parts, file_list = data
    (tmp_path / "scores.csv").write_text(",id,score\n0,7,0.5\n")
    command.main(["add", str(tmp_path / "scores.csv"), file_list, "--key", "id", "--columns", "score"])
    assert scores(parts)[0] == [0.5, None, None, None, None]


@pytest.mark.parametrize("name", ["S.CSV", "S.TSV", "S.PARQUET", "S.JSONL"])
def test_a_kind_in_capitals_is_that_kind(data, tmp_path, name):
    parts, file_list = data
    parquet.write_table(pa.table({"id": [7], "score": [0.5]}), tmp_path / "S.PARQUET")
    (tmp_path / "S.CSV").write_text("id,score\n7,0.5\n")
    (tmp_path / "S.TSV").write_text("id\tscore\n7\t0.5\n")
    (tmp_path / "S.JSONL").write_text('{"id": 7, "score": 0.5}\n')
    command.main(["add", str(tmp_path / name), file_list, "--key", "id"])
    assert scores(parts)[0] == [0.5, None, None, None, None]


def test_parts_whose_folder_is_gone_or_read_only_are_one_line(data, tmp_path, monkeypatch):
    parts, file_list = data
    (tmp_path / "scores.csv").write_text("id,score\n7,0.5\n")
    arguments = ["add", str(tmp_path / "scores.csv"), file_list, "--key", "id"]
    before = Path(f"{parts[0]}{SUFFIX}").read_bytes()

    def refuse(folder):
        raise OSError(30, "Read-only file system", str(folder / ".lock"))

    with monkeypatch.context() as patch:
        patch.setattr("sd.processes.locks.lock_file", refuse)
        with pytest.raises(InputError, match=f"^{tmp_path}: Read-only file system; columns lie beside the parts, so"):
            command.main(arguments)
    assert Path(f"{parts[0]}{SUFFIX}").read_bytes() == before
    gone = write_lists(tmp_path, (1.0, ["gone/part-000000.gz"]))
    with pytest.raises(InputError, match=r"^gone: No such file or directory; columns lie beside the parts"):
        command.main([*arguments[:2], gone, *arguments[3:]])


@pytest.mark.parametrize("output", ["", ".", "/"])
def test_an_output_without_a_name_is_refused(data, output):
    with pytest.raises(InputError, match=r"output=.*; expected the path of a file"):
        command.main(["export", data[1], output])


def test_rows_that_lack_the_same_value_are_one_row(data, tmp_path):
    """NaN counts as missing; that of Arrow is not equal to itself."""
    parts, file_list = data
    table = pa.table({"id": [7, 7, 0], "score": pa.array([float("nan"), None, 2.0]), "note": ["a", "a", "b"]})
    parquet.write_table(table, tmp_path / "scores.parquet")
    command.main(["add", str(tmp_path / "scores.parquet"), file_list, "--key", "id"])
    assert scores(parts)[0] == [None, None, None, None, 2.0]


@pytest.mark.parametrize("flags", [["--key", "id,id"], ["--key", "id", "--columns", "score,id,score"]])
def test_names_given_twice_count_once(data, tmp_path, flags):
    parts, file_list = data
    (tmp_path / "scores.csv").write_text("id,score\n7,0.5\n")
    command.main(["add", str(tmp_path / "scores.csv"), file_list, *flags])
    assert scores(parts)[0] == [0.5, None, None, None, None]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", gzip.compress(b"id,score\n7,0.5\n", mtime=0), "compressed with gzip, expected text; unpack it"),
        ("a.jsonl", gzip.compress(b'{"id": 7}\n', mtime=0), "compressed with gzip, expected text; unpack it"),
        ("a.tsv", "id\tscore\n7\t0.5\n".encode("utf-16"), "UTF-16, expected UTF-8; convert it: iconv -f UTF-16"),
        ("a.csv", b"id,score\n", "no row in it"),
    ],
)
def test_what_is_no_table_is_named_as_what_it_is(data, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: {message}"):
        command.main(["add", str(tmp_path / name), data[1], "--key", "id"])
