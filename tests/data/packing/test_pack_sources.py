"""Shards of webdataset and parquet files pack to the same rows as the JSONL that they were made from."""

import io
import json
import tarfile

import pyarrow as pa
import pytest
from pyarrow import parquet

from sd.data.packing.options import PackOptions
from sd.data.packing.packer import pack
from sd.data.parts.filelist import read_file_list
from sd.data.parts.part import PartReader, load_index
from sd.data.parts.record import decode_row
from sd.errors import InputError
from tests.pack_input import image_bytes

IMAGES = {number: image_bytes(30 + number, 40, number) for number in range(1, 12)}


def run(folder, path, input_format, **flags):
    flags = {"per_part_file_num": 4, "save_gzip_file": True, "num_workers": 2} | flags
    file_list, report = pack(PackOptions(str(path), str(folder / "out"), input_format=input_format, **flags))
    records = []
    for part in read_file_list(file_list)[0].parts:
        index = load_index(part)
        with PartReader(part, index) as reader:
            records += [decode_row(reader.read(row)) for row in range(index.num_rows)]
    return [(record.captions[0], record.image) for record in records], report


def rejected_rows(folder):
    return [json.loads(line) for line in (folder / "out/rejected.jsonl").read_text().splitlines()]


def write_shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def sample(number):
    fields = {"caption": f"json {number}", "alt": f"alt {number}", "key": f"{number:09d}"}
    return [
        (f"{number:09d}.jpg", IMAGES[number]),
        (f"{number:09d}.json", json.dumps(fields).encode()),
        (f"{number:09d}.txt", f"text {number}".encode()),
    ]


@pytest.fixture
def shards(tmp_path):
    """Two shards as img2dataset writes them."""
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards/00001.tar", [member for n in range(8, 12) for member in sample(n)])
    write_shard(tmp_path / "shards/00000.tar", [member for n in range(1, 8) for member in sample(n)])
    return tmp_path / "shards"


@pytest.mark.parametrize("pattern", ["", "*.tar", "0000[01].tar"])
def test_webdataset_shards_are_packed_in_order(shards, tmp_path, pattern):
    rows, _ = run(tmp_path, shards / pattern, "webdataset")
    assert rows == [(f"json {n}", IMAGES[n]) for n in range(1, 12)]


@pytest.mark.parametrize(("caption_key", "expected"), [("alt", "alt"), ("other", "text")])
def test_webdataset_captions_by_key_else_from_the_text(shards, tmp_path, caption_key, expected):
    rows, _ = run(tmp_path, shards / "00001.tar", "webdataset", caption_key=caption_key)
    assert [caption for caption, _ in rows] == [f"{expected} {n}" for n in range(8, 12)]


def test_webdataset_samples_that_lack_something_are_named(tmp_path):
    write_shard(
        tmp_path / "a.tar",
        [
            *sample(1),
            ("folder/2.png", IMAGES[2]),
            ("folder/2.txt", b"two"),
            ("3.png", IMAGES[3]),
            ("4.txt", b"four"),
            ("5.jpg", b""),
            ("5.txt", b"five"),
            ("6.jpg", IMAGES[6]),
            ("6.json", b"{"),
        ],
    )
    rows, report = run(tmp_path, tmp_path / "a.tar", "webdataset", max_bad_fraction=1.0)
    assert [caption for caption, _ in rows] == ["json 1", "two"]
    assert [(row["key"], row["reason"]) for row in rejected_rows(tmp_path)] == [
        ("3", "no caption in the shard"),
        ("4", "no image in the shard"),
        ("5", "image file is empty"),
        ("6", "not JSON"),
    ]
    assert report["rows"] == 6


def test_a_cut_shard_costs_its_last_sample(shards, tmp_path):
    cut = shards / "00000.tar"
    with tarfile.open(cut) as tar:
        end = tar.getmember("000000007.jpg").offset_data + 100
    cut.write_bytes(cut.read_bytes()[:end])
    rows, _ = run(tmp_path, shards, "webdataset", max_bad_fraction=0.2)
    assert [caption for caption, _ in rows] == [f"json {n}" for n in (1, 2, 3, 4, 5, 6, 8, 9, 10, 11)]
    assert {row["reason"] for row in rejected_rows(tmp_path)} <= {
        "the shard is damaged",
        "the shard is cut",
        "no caption in the shard",
    }


def parquet_columns(kind):
    numbers = sorted(IMAGES)
    if kind == "bytes":
        images = pa.array([IMAGES[n] for n in numbers])
    elif kind == "struct":
        images = pa.array([{"bytes": IMAGES[n], "path": None} for n in numbers])
    else:
        images = pa.array([f"images/{n}.png" for n in numbers])
    return {"caption": [f"caption {n}" for n in numbers], "image": images, "id": numbers}


@pytest.mark.parametrize("kind", ["bytes", "struct", "paths"])
@pytest.mark.parametrize("row_group_size", [3, 100])
def test_parquet_images_are_bytes_or_paths(tmp_path, kind, row_group_size):
    (tmp_path / "images").mkdir()
    for number, data in IMAGES.items():
        (tmp_path / f"images/{number}.png").write_bytes(data)
    parquet.write_table(pa.table(parquet_columns(kind)), tmp_path / "a.parquet", row_group_size=row_group_size)
    rows, _ = run(tmp_path, tmp_path / "*.parquet", "parquet")
    assert rows == [(f"caption {n}", IMAGES[n]) for n in sorted(IMAGES)]


def test_parquet_rows_that_lack_something_are_named(tmp_path):
    columns = {
        "text": ["one", None, "three", "four", "five"],
        "picture": [IMAGES[1], IMAGES[2], None, b"", b"no image"],
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    keys = {"caption_key": "text", "image_key": "picture"}
    rows, _ = run(tmp_path, tmp_path / "a.parquet", "parquet", max_bad_fraction=1.0, **keys)
    assert rows == [("one", IMAGES[1])]
    assert [(row["row"], row["reason"]) for row in rejected_rows(tmp_path)] == [
        (2, "the caption is not text"),
        (3, "no image in the row"),
        (4, "image file is empty"),
        (5, "not an image of JPEG, PNG, WEBP, GIF, BMP, TIFF"),
    ]


@pytest.mark.defect(10)
def test_defect_10_parquet_paths_stay_inside_too(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(IMAGES[1])
    table = pa.table({"caption": ["a", "b"], "image": ["../secret.png", str(tmp_path / "secret.png")]})
    parquet.write_table(table, tmp_path / "in/a.parquet")
    with pytest.raises(InputError, match="image outside the input's folder"):
        run(tmp_path, tmp_path / "in/a.parquet", "parquet")


def test_input_that_is_not_there_or_not_parquet_is_refused(tmp_path):
    def refused(path, input_format, message):
        with pytest.raises(InputError, match=message):
            run(tmp_path, path, input_format)

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "none", "webdataset", r"none: no such file, nor a folder or glob with \*\.tar")
    refused(tmp_path / "empty", "parquet", r"empty: no such file, nor a folder or glob with \*\.parquet")
    (tmp_path / "a.parquet").write_text("caption,image")
    refused(tmp_path / "a.parquet", "parquet", r"a\.parquet: not readable as parquet")
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", "parquet", r"no column 'caption' \(--caption_key\); it has text")
    (tmp_path / "c.tar").write_text("no tar file")
    refused(tmp_path / "c.tar", "webdataset", "none of 1 rows was packed; most often: the shard is damaged")


def test_a_column_that_comes_twice_is_named(tmp_path):
    """Arrow writes such a file; a name does not say which of the two is meant."""
    columns = [pa.array(["a"]), pa.array([IMAGES[1]]), pa.array(["b"])]
    parquet.write_table(pa.table(columns, names=["caption", "image", "caption"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"most often: several columns 'caption' .*: it has caption, image, caption"):
        run(tmp_path, tmp_path / "a.parquet", "parquet")


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 2)])
def test_lists_of_captions_of_every_kind_are_read(tmp_path, kind):
    """The third is what the datasets library makes of a Sequence of a length."""
    table = pa.table({"caption": pa.array([["a", "b"], ["c", "d"]], kind), "image": [IMAGES[1], IMAGES[2]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    rows, report = run(tmp_path, tmp_path / "a.parquet", "parquet")
    assert (rows, report["outcomes"]) == ([("a", IMAGES[1]), ("c", IMAGES[2])], {"packed": 2})
