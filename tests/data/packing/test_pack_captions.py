"""Several captions of a row, from every kind of input: all are packed, each with the name of its key."""

import csv
import json
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyarrow import parquet

from sd.data.packing.options import INPUT_FORMATS, PackOptions
from sd.data.packing.packer import pack
from sd.data.parts.part import PartReader, load_index
from sd.data.parts.record import decode_row
from sd.errors import InputError
from tests.data.packing.test_pack_sources import rejected_rows, write_shard
from tests.data.parts.test_record import read_by_the_reference
from tests.pack_input import image_bytes

pytestmark = pytest.mark.usefixtures("packs_in_process")
IMAGES = [image_bytes(40 + number, 40, number) for number in range(4)]
KEYS = "caption,long_caption,tags"
ROWS = [
    {"caption": "short", "long_caption": "a long one | with a bar", "tags": "a, b"},
    {"caption": "only"},
    {"long_caption": "no short one", "tags": "c"},
    {"other": "none of them"},
]
EXPECTED = [
    [("caption", "short"), ("long_caption", "a long one | with a bar"), ("tags", "a, b")],
    [("caption", "only")],
    [("long_caption", "no short one"), ("tags", "c")],
]


def write(kind, folder, rows):
    """An input of one kind with the rows of captions; returns its path."""
    folder.mkdir()
    columns = [*dict.fromkeys(key for row in rows for key in row)]
    if kind == "webdataset":
        members = [
            (f"{n}.{s}", d)
            for n, row in enumerate(rows)
            for s, d in (("png", IMAGES[n]), ("json", json.dumps(row).encode()))
        ]
        write_shard(folder / "a.tar", members)
        return folder
    if kind == "parquet":
        table = {key: [row.get(key) for row in rows] for key in columns} | {"image": IMAGES[: len(rows)]}
        parquet.write_table(pa.table(table), folder / "a.parquet")
        return folder
    for number, image in enumerate(IMAGES[: len(rows)]):
        (folder / f"{number}.png").write_bytes(image)
    if kind == "folder":
        for number, row in enumerate(rows):
            for key, text in row.items():
                (folder / f"{number}.{'txt' if key == 'caption' else key}").write_text(text)
        return folder
    image_key, name = ("file_name", "metadata.jsonl") if kind == "imagefolder" else ("image", f"data.{kind}")
    with (folder / name).open("w") as file:
        if kind in ("csv", "tsv"):
            writer = csv.DictWriter(file, [*columns, image_key], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(row | {image_key: f"{number}.png"} for number, row in enumerate(rows))
        else:
            file.writelines(json.dumps(row | {image_key: f"{n}.png"}) + "\n" for n, row in enumerate(rows))
    return folder if kind == "imagefolder" else folder / name


def run(folder, path, kind, **flags):
    file_list, report = pack(PackOptions(str(path), str(folder / "out"), input_format=kind, num_workers=1, **flags))
    part = str(folder / "out/laion400m_format_data/part-000001")
    index = load_index(part)
    with PartReader(part, index) as reader:
        lines = [reader.read(row) for row in range(index.num_rows)]
    return SimpleNamespace(list=file_list, report=report, lines=lines, records=[decode_row(line) for line in lines])


@pytest.mark.parametrize("kind", INPUT_FORMATS)
def test_every_format_packs_all_captions_with_their_names(tmp_path, kind):
    path = write(kind, tmp_path / "in", ROWS)
    done = run(tmp_path, path, kind, caption_key=KEYS, max_bad_fraction=0.3)
    if kind in ("csv", "tsv"):  # an empty field is an empty caption
        assert done.records.pop().captions == ("",)
    assert [list(zip(r.sources, r.captions, strict=True)) for r in done.records] == EXPECTED
    if kind in ("csv", "tsv"):
        return
    assert [record.image for record in done.records] == IMAGES[:3]
    assert done.report["rows_with_caption"] == {"caption": 2, "long_caption": 2, "tags": 2}
    assert len(rejected_rows(tmp_path)) == 1 and rejected_rows(tmp_path)[0]["outcome"] in ("bad", "filtered")
    again = run(tmp_path, path, kind, caption_key=KEYS, max_bad_fraction=0.3)  # resumes from the finished part
    assert again.report == done.report
    firsts = [read_by_the_reference(line) for line in done.lines]
    assert firsts == [(captions[0][1], image) for captions, image in zip(EXPECTED, IMAGES, strict=False)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "webdataset", "imagefolder"])
def test_lists_of_texts_are_captions_of_one_key(tmp_path, kind):
    """COCO's five sentences of a picture."""
    five = [f"sentence {n}" for n in range(5)]
    done = run(tmp_path, write(kind, tmp_path / "in", [{"caption": five}, {"caption": ["one"]}]), kind)
    assert [record.captions for record in done.records] == [tuple(five), ("one",)]
    assert done.records[0].sources == ("caption",) * 5
    assert done.lines[1].startswith(b"one\tNONE\t")


def test_one_key_with_one_text_keeps_the_row_of_the_reference(tmp_path):
    done = run(tmp_path, write("jsonl", tmp_path / "in", ROWS[:2]), "jsonl")
    assert [line.split(b"\t")[:2] for line in done.lines] == [[b"short", b"NONE"], [b"only", b"NONE"]]
    assert "rows_with_caption" not in done.report


def test_short_and_blank_captions_go_alone_and_a_row_goes_with_its_last(tmp_path):
    rows = [
        {"caption": "  ", "long_caption": "long enough"},
        {"caption": "four", "long_caption": "x"},
        {"caption": " "},
    ]
    done = run(tmp_path, write("jsonl", tmp_path / "in", rows), "jsonl", caption_key="caption,long_caption")
    assert [record.captions for record in done.records] == [("long enough",), ("four", "x"), (" ",)]
    flags = {"caption_key": "caption,long_caption", "min_caption_length": 4}
    done = run(tmp_path / "b", tmp_path / "in/data.jsonl", "jsonl", **flags)
    assert [record.captions for record in done.records] == [("long enough",), ("four",)]
    assert rejected_rows(tmp_path / "b")[0]["reason"] == "caption too short"


@pytest.mark.parametrize("keys", ["caption,,tags", "caption,caption", ""])
def test_keys_that_are_empty_or_twice_are_refused(keys):
    with pytest.raises(InputError, match="expected different keys, with commas between them"):
        PackOptions("a", "b", caption_key=keys)


def test_a_value_that_is_no_text_is_named(tmp_path):
    done = run(
        tmp_path,
        write("jsonl", tmp_path / "in", [{"caption": "a"}, {"caption": ["a", 1]}]),
        "jsonl",
        max_bad_fraction=0.5,
    )
    assert len(done.records) == 1
    assert [row["reason"] for row in rejected_rows(tmp_path)] == ["'caption' is not text"]
