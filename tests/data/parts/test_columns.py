"""Columns of a part: what is written is read back, by any one column; damage and other rows are noticed."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from sd.data.parts import columns as module
from sd.data.parts.columns import (
    BOOL,
    FLOAT,
    INT,
    SUFFIX,
    TEXT,
    Column,
    ColumnsFile,
    column_types,
    columns_bytes,
    floats,
    from_arrow,
    merge_columns,
    read_columns,
    write_columns,
)
from sd.data.parts.index import PartError, PartHeader

VALUES = {
    pa.float64(): st.floats(allow_nan=False),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.bool_(): st.booleans(),
    pa.large_string(): st.text(st.characters(exclude_categories=("Cs",))),
}


def part_of(folder, num_rows, crc=7):
    return PartHeader(str(folder / "part-000001.gz"), "image", "members", num_rows, 100, crc, np.zeros(256, np.uint32))


def file_of(part):
    return Path(part.path + SUFFIX)


@pytest.fixture
def part(tmp_path):
    return part_of(tmp_path, 3)


@pytest.fixture
def written(part):
    columns = {
        "aesthetic": pa.array([5.5, None, -0.0]),
        "original_width": pa.array([2**62 + 1, 2, None]),
        "url": pa.array(["https://a/ü", "", None]),
        "duplicate": pa.array([True, False, True]),
    }
    write_columns(part, {name: from_arrow(array) for name, array in columns.items()})
    return columns


@given(st.data(), st.integers(0, 40))
def test_every_arrow_column_round_trips(tmp_path_factory, data, num_rows):
    kind = data.draw(st.sampled_from(list(VALUES)))
    values = data.draw(st.lists(st.none() | VALUES[kind], min_size=num_rows, max_size=num_rows))
    name = data.draw(st.text(min_size=1, max_size=20).filter(str.isprintable))
    part = part_of(tmp_path_factory.getbasetemp(), num_rows)
    array = pa.array([None, *values, None], kind)[1:-1]  # a slice, whose buffers do not start at its first value
    file_of(part).write_bytes(columns_bytes(part, {name: from_arrow(array)}))
    assert read_columns(part)[name].to_arrow().to_pylist() == values


def test_columns_are_read_one_by_one_and_in_their_order(part, written):
    assert column_types(part) == {"aesthetic": FLOAT, "original_width": INT, "url": TEXT, "duplicate": BOOL}
    assert list(read_columns(part, ["url", "no such", "aesthetic"])) == ["url", "aesthetic"]
    for name, array in written.items():
        assert read_columns(part, [name])[name].to_arrow().to_pylist() == array.to_pylist()
    assert read_columns(part)["original_width"].num_missing == 1


def test_the_columns_file_has_the_documented_layout(part, written):
    """Read without the module: struct, json and the places of the directory."""
    data = file_of(part).read_bytes()
    magic, version, num_bytes, rows, part_bytes, crc, _ = module._FIXED.unpack_from(data)
    assert (magic, version, rows, part_bytes, crc) == (b"SDCOLUMN", 1, 3, 100, 7)
    directory = {entry["name"]: entry for entry in json.loads(data[module._FIXED.size :][:num_bytes])}
    width = directory["original_width"]
    block = data[width["place"] : width["place"] + width["bytes"]]
    assert width["place"] % 8 == 0 and xxhash.xxh3_64_intdigest(block) == width["xxh3"]
    assert block[0] == 0b011 and np.frombuffer(block[8:], "<i8").tolist() == [2**62 + 1, 2, 0]
    url = directory["url"]
    block = data[url["place"] : url["place"] + url["bytes"]]
    assert np.frombuffer(block[8:40], "<i8").tolist() == [0, 12, 12, 12] and block[40:52].decode() == "https://a/ü"


def test_a_part_without_columns_is_a_part(part):
    assert read_columns(part) is None and column_types(part) == {}
    write_columns(part, {})


def test_nan_is_missing_and_infinity_is_not(part):
    given = np.array([math.nan, math.inf, 1])
    write_columns(part, {"a": floats(given), "b": from_arrow(pa.array([math.nan, None, 2]))})
    actual = read_columns(part)
    assert actual["a"].to_arrow().to_pylist() == [None, math.inf, 1]
    assert actual["b"].to_arrow().to_pylist() == [None, None, 2]


@pytest.mark.parametrize(
    "array, expected",
    [
        (pa.array([1, 2, 3], pa.uint8()), INT),
        (pa.array([1, 2, 2**63], pa.uint64()), FLOAT),
        (pa.array([1, None, 3], pa.float32()), FLOAT),
        (pa.array(["a", None, "a"]).dictionary_encode(), TEXT),
        (pa.nulls(3), FLOAT),
    ],
)
def test_each_arrow_type_has_its_column_type(array, expected):
    column = from_arrow(array)
    assert column.type == expected and column.to_arrow().to_pylist() == array.to_pylist()


def test_values_that_fit_no_column_are_refused(part):
    with pytest.raises(ValueError, match="expected numbers, bool or text"):
        from_arrow(pa.array([[1], [2], [3]]))
    with pytest.raises(ValueError, match="2 values, the part has 3 rows"):
        write_columns(part, {"a": floats(np.zeros(2))})
    with pytest.raises(ValueError, match=r"column name 'a.*nb'"):
        write_columns(part, {"a\nb": floats(np.zeros(3))})


def test_any_flipped_byte_is_noticed(part, written):
    whole = file_of(part).read_bytes()
    for at in (*range(60), *range(60, len(whole), 7)):
        file_of(part).write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        with pytest.raises(PartError, match=r"^part-000001.gz.columns: "):
            read_columns(part)


def test_a_cut_file_is_noticed(part, written):
    whole = file_of(part).read_bytes()
    for size in range(0, len(whole), 7):
        file_of(part).write_bytes(whole[:size])
        with pytest.raises(PartError, match="damaged"):
            read_columns(part)


def test_columns_of_other_rows_are_stale(part, written, tmp_path):
    with pytest.raises(PartError, match=r"part-000001.gz.columns: of 3 rows .*00000007.*has 3 rows.*00000008"):
        read_columns(part_of(tmp_path, 3, crc=8))


def test_a_later_version_is_refused_by_name(part, monkeypatch):
    monkeypatch.setattr(module, "_VERSION", 2)
    write_columns(part, {"a": floats(np.zeros(3))})
    monkeypatch.undo()
    with pytest.raises(PartError, match="version 2, this program reads 1"):
        read_columns(part)


def test_a_long_directory_is_read_whole(part):
    columns = {f"column {number} {'x' * 150}": floats(np.full(3, number)) for number in range(100)}
    write_columns(part, columns)
    with ColumnsFile(part) as file:
        assert len(file.types) == 100
        assert file.read(f"column 99 {'x' * 150}").values.tolist() == [99, 99, 99]


def test_merging_keeps_other_columns_and_replaces_its_own(part, written):
    merge_columns(part, {"duplicate": Column(BOOL, np.zeros(3, bool)), "new": floats(np.ones(3))})
    actual = read_columns(part)
    assert list(actual) == [*written, "new"]
    assert not actual["duplicate"].values.any() and actual["url"].to_arrow().to_pylist() == ["https://a/ü", "", None]


def test_merging_into_a_damaged_file_replaces_it(part, written):
    file_of(part).write_bytes(b"no columns")
    merge_columns(part, {"new": floats(np.ones(3))})
    assert list(read_columns(part)) == ["new"]


def test_the_same_values_are_the_same_bytes(part):
    """What stands where nothing is present does not reach the file."""
    present = np.array([True, False, True])
    one, other = (Column(INT, np.array([1, hidden, 3]), present) for hidden in (2, 99))
    assert columns_bytes(part, {"a": one}) == columns_bytes(part, {"a": other})
