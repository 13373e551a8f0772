"""--keep_columns: fields of every input as typed columns, by one rule for what is missing or of several kinds."""

import csv
import json
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from sd.commands.pack import main
from sd.data.packing import report as report_module
from sd.data.packing.columns import ColumnBuilder, ColumnSpec, parse_keep_columns
from sd.data.packing.options import PackOptions
from sd.data.packing.packer import pack
from sd.data.parts.columns import SUFFIX, floats, merge_columns, read_columns
from sd.data.parts.part import load_index
from sd.data.streaming.catalog import Catalog
from sd.errors import InputError
from tests.data_maker import jpeg
from tests.pack_input import contents

NAN = float("nan")


def built(values, kind=None, typed=True):
    """(type, values, number unfit) of a column of values; ... for a field that is absent."""
    builder = ColumnBuilder([ColumnSpec("a", "a", kind)])
    for value in values:
        builder.add({} if value is ... else {"a": value}, (7, 8), typed)
    (column,) = builder.columns().values()
    return column.type, column.to_arrow().to_pylist(), builder.num_unfit["a"]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, None, ..., -5], "int64", [1, None, None, -5]),
        ([1, 2.5, NAN, None], "float64", [1.0, 2.5, None, None]),
        ([2**63 - 1, -(2**63)], "int64", [2**63 - 1, -(2**63)]),
        ([2**63, 1], "float64", [2.0**63, 1.0]),
        ([True, None, False], "bool", [True, None, False]),
        (["a", None, ""], "text", ["a", None, ""]),
        (["5.31", "6"], "text", ["5.31", "6"]),  # quoted in JSON: a text
        ([5.5, "N/A"], "text", ["5.5", "N/A"]),
        ([True, 1], "text", ["true", "1"]),
        ([["a", "ü"], {"b": 1}], "text", ['["a", "ü"]', '{"b": 1}']),
        (["\ud800x"], "text", ["?x"]),  # what UTF-8 cannot hold
        ([None, ...], "float64", [None, None]),
        ([float("inf"), 1], "float64", [float("inf"), 1.0]),
    ],
)
def test_values_of_json_keep_their_type(values, kind, expected):
    assert built(values) == (kind, expected, 0)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["5.31", "6", "", " 7 "], "float64", [5.31, 6.0, None, 7.0]),
        (["-5", "+6", "0"], "int64", [-5, 6, 0]),
        (["1e3", ".5", "5."], "float64", [1000.0, 0.5, 5.0]),
        (["1", "nan"], "int64", [1, None]),
        (["True", "false", ""], "bool", [True, False, None]),
        (["007", "008"], "text", ["007", "008"]),  # a name, not a number
        (["1", "x"], "text", ["1", "x"]),
        (["1_000"], "text", ["1_000"]),
        (["inf"], "text", ["inf"]),
        (["."], "text", ["."]),
        (["", ""], "float64", [None, None]),
        ([str(2**64)], "float64", [2.0**64]),
    ],
)
def test_values_of_csv_are_what_all_of_them_read_as(values, kind, expected):
    assert built(values, typed=False) == (kind, expected, 0)


@pytest.mark.parametrize(
    ("kind", "values", "expected", "unfit"),
    [
        ("float64", ["5.31", 6, "N/A", True, None, "nan"], [5.31, 6.0, None, 1.0, None, None], 1),
        ("int64", ["5", 6.0, 6.5, "x", 2**63], [5, 6, None, None, None], 3),
        ("bool", ["true", False, 1, "no"], [True, False, None, None], 2),
        ("text", ["a", 5, 5.5, True, [1]], ["a", "5", "5.5", "true", "[1]"], 0),
    ],
)
def test_a_type_that_is_named_holds_and_other_values_are_counted(kind, values, expected, unfit):
    actual = built(values, kind)
    assert actual[:2] == (kind, expected)
    assert actual[2] == unfit


@given(st.lists(st.none() | st.integers() | st.floats() | st.booleans() | st.text(), max_size=6), st.booleans())
def test_any_values_make_a_column(values, typed):
    kind, actual, _ = built(values, typed=typed)
    assert len(actual) == len(values)
    if typed and kind == "text":  # nothing is lost
        assert [one is None for one in actual] == [value is None or value != value for value in values]


def test_the_original_size_is_the_picture_s_where_the_input_has_none():
    builder = ColumnBuilder(parse_keep_columns("original_width,h=original_height"))
    builder.add({"original_width": 2000}, (640, 480))
    builder.add({"original_width": None, "original_height": 1000}, (640, 480))
    builder.add({}, (0, 0))
    columns = builder.columns()
    assert columns["original_width"].to_arrow().to_pylist() == [2000, 640, None]
    assert columns["h"].to_arrow().to_pylist() == [480, 1000, None]


def test_keep_columns_parses_names_keys_and_types():
    assert parse_keep_columns("a, url=URL ,s=score:float64,größe:int64") == (
        ColumnSpec("a", "a"),
        ColumnSpec("url", "URL"),
        ColumnSpec("s", "score", "float64"),
        ColumnSpec("größe", "größe", "int64"),
    )
    assert parse_keep_columns(None) == ()
    for text, message in (
        ("a:number", "expected NAME, NAME=KEY or NAME:TYPE, TYPE one of"),
        ("a=b=c", "expected NAME"),
        ("a,a", "'a': named twice"),
        (" , ", "expected names separated by commas"),
        ("a" * 201, "expected 1 to 200 printable characters"),
        ("a\x07=b", "expected 1 to 200 printable characters"),
        ("width", "every part has the width of its pictures; original_width is kept"),
    ):
        with pytest.raises(InputError, match=message):
            parse_keep_columns(text)


FIELDS = [
    {"aesthetic": 5.5, "punsafe": 0.25, "url": "https://a/1?x=ü", "n": 1},
    {"aesthetic": 6.0, "punsafe": None, "url": "b", "n": 2},
    {"aesthetic": None, "punsafe": 0.5, "url": None, "n": 3},
]
KEPT = "aesthetic,punsafe,link=url,n,original_width,original_height"


def written(folder, kind):
    """Three pictures of 60 x 40 with FIELDS as an input of a kind, and a broken one before them. (input_path, flags)"""
    rows = [{"caption": "broken", "image": "broken.jpg", **FIELDS[0]}]
    (folder / "broken.jpg").write_bytes(b"?")
    for number, fields in enumerate(FIELDS):
        (folder / f"{number}.jpg").write_bytes(jpeg(number, 60, 40))
        rows.append({"caption": f"picture {number}", "image": f"{number}.jpg", **fields})
    if kind == "jsonl":
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / "data.jsonl"
    if kind in ("csv", "tsv"):
        with (folder / f"data.{kind}").open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            table.writeheader()
            table.writerows(rows)
        return folder / f"data.{kind}"
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
        return folder / "data.parquet"
    if kind == "imagefolder":
        named = [{"file_name": row.pop("image"), **row} for row in rows]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
        return folder
    for row in rows:
        (folder / row["image"]).with_suffix(".json").write_text(json.dumps(row))
    if kind == "webdataset":
        with tarfile.open(folder / "data.tar", "w") as tar:
            for path in sorted(folder.glob("*.j*")):
                tar.add(path, path.name)
        return folder / "data.tar"
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "imagefolder", "folder", "webdataset"])
def test_every_input_gives_the_same_columns(tmp_path, kind):
    (tmp_path / "in").mkdir()
    path = written(tmp_path / "in", kind)
    flags = {"input_format": kind, "keep_columns": KEPT, "num_workers": 1, "max_bad_fraction": 0.5, "resize": 20}
    file_list, report = pack(PackOptions(str(path), str(tmp_path / "out"), **flags))
    index = load_index(tmp_path / "out/laion400m_format_data/part-000001")
    actual = {name: column.to_arrow().to_pylist() for name, column in read_columns(index).items()}
    assert actual == {
        "aesthetic": [5.5, 6.0, None],
        "punsafe": [0.25, None, 0.5],
        "link": ["https://a/1?x=ü", "b", None],
        "n": [1, 2, 3],
        "original_width": [60] * 3,  # no input has it; --resize made 30 x 20 of it
        "original_height": [40] * 3,
    }
    assert index.widths.tolist() == [30] * 3
    assert report["columns"]["aesthetic"] == {"types": ["float64"], "missing": 1, "unfit": 0}
    assert Catalog(file_list, 16, data_filter="aesthetic > 5 and n < 2 and original_width >= 60").num_usable == 1


def test_packing_resumes_and_rebuilds_lost_columns(tmp_path):
    """What was added to a part meanwhile stays; other columns are other flags."""
    (tmp_path / "in").mkdir()
    path, out = written(tmp_path / "in", "jsonl"), tmp_path / "out"
    flags = {"num_workers": 1, "max_bad_fraction": 0.5, "per_part_file_num": 2, "save_gzip_file": True}
    pack(PackOptions(str(path), str(out), keep_columns="aesthetic, n", **flags))
    whole = contents(out)
    first, second = (out / f"laion400m_format_data/part-00000{number}.gz{SUFFIX}" for number in (1, 2))
    assert list(read_columns(load_index(str(first).removesuffix(SUFFIX)))) == ["aesthetic", "n"]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    pack(PackOptions(str(path), str(out), keep_columns="aesthetic,n", **flags))
    assert contents(out) == whole
    with pytest.raises(InputError, match=r"packed with --keep_columns aesthetic,n, now aesthetic"):
        pack(PackOptions(str(path), str(out), keep_columns="aesthetic", **flags))
    with pytest.raises(InputError, match=r"packed with --keep_columns aesthetic,n, now None"):
        pack(PackOptions(str(path), str(out), **flags))
    index = load_index(str(first).removesuffix(SUFFIX))
    merge_columns(index, {"added": floats(np.arange(float(index.num_rows)))})
    pack(PackOptions(str(path), str(out), keep_columns="aesthetic,n", **flags))
    assert list(read_columns(index)) == ["aesthetic", "n", "added"]
    pack(PackOptions(str(path), str(out), **flags, overwrite=True))
    assert not first.exists() and not second.exists()


def test_a_key_that_no_row_has_is_warned_of_early_and_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report_module, "_MIN_ROWS_TO_WARN", 2)
    (tmp_path / "in").mkdir()
    path = written(tmp_path / "in", "jsonl")
    arguments = ["--input_path", str(path), "--output_path", str(tmp_path / "out"), "--max_bad_fraction", "0.5"]
    arguments += ["--keep_columns", "aestetic,n:text,url:int64", "--num_workers", "1", "--per_part_file_num", "3"]
    monkeypatch.setattr(sys, "argv", ["create_pretraining_data.py", *arguments])
    main()
    out, err = capsys.readouterr()
    assert "none of 2 rows has a value for the column 'aestetic'; is its key right?" in err
    assert "column aestetic: no value, 3 missing\ncolumn n: text, 0 missing\n" in out
    assert "column url: no value, 3 missing, 2 of another type\n" in out
