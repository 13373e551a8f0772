"""Inputs that are changed, cut, of another encoding or never downloaded: each row has its own true outcome."""

import json
import os

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from sd.data.images.resize import EARLIER_RESIZER, RESIZER
from sd.data.packing import options
from sd.data.packing.options import PackOptions
from sd.data.packing.part import Task, pack_part
from sd.data.packing.sources.choose import open_source
from sd.errors import InputError
from tests.data.images.files import METADATA, encoded
from tests.data.packing.test_pack_sources import run
from tests.data.packing.test_tar import write_tar
from tests.pack_input import image_bytes

IMAGES = [image_bytes(40, 40, number) for number in range(6)]
PADDED = [image.ljust(max(map(len, IMAGES)), b"\0") for image in IMAGES]  # of one size; what is behind a PNG is ignored


def blank(width, height):
    return encoded(Image.new("1", (width, height)))


def rejected(folder):
    return [json.loads(line) for line in (folder / "out/rejected.jsonl").read_text().splitlines()]


def write(kind, folder, captions, images):
    """An input of one kind; returns its path."""
    folder.mkdir(exist_ok=True)
    if kind == "parquet":
        parquet.write_table(pa.table({"caption": captions, "image": images}), folder / "a.parquet", compression="none")
    elif kind == "webdataset":
        members = zip(captions, images, strict=True)
        write_tar(
            folder / "a.tar",
            [member for n, (c, i) in enumerate(members) for member in ((f"{n}.png", i), (f"{n}.txt", c.encode()))],
        )
    else:
        for number, image in enumerate(images):
            (folder / f"{number}.png").write_bytes(image)
        rows = [json.dumps({"caption": c, "image": f"{n}.png"}) for n, c in enumerate(captions)]
        (folder / "data.jsonl").write_text("\n".join(rows))
        return folder / "data.jsonl"
    return folder


# -- changes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "webdataset", "parquet"])
@pytest.mark.parametrize("changed", ["caption", "image"])
def test_a_change_that_keeps_the_size_is_seen(tmp_path, kind, changed):
    captions = ["one", "two"]
    path = write(kind, tmp_path / "in", captions, PADDED[:2])
    sizes = {file: file.stat().st_size for file in (tmp_path / "in").iterdir()}
    run(tmp_path, path, kind)
    run(tmp_path, path, kind)  # nothing has changed
    if changed == "caption":
        write(kind, tmp_path / "in", ["one", "six"], PADDED[:2])
    else:
        write(kind, tmp_path / "in", captions, PADDED[1:3])
    assert {file: file.stat().st_size for file in (tmp_path / "in").iterdir()} == sizes
    with pytest.raises(InputError, match=r"part-000001\.gz: its input has changed since; .* --overwrite"):
        run(tmp_path, path, kind)
    rows, _ = run(tmp_path, path, kind, overwrite=True)
    assert rows == [("one", PADDED[0]), ("six", PADDED[1])] if changed == "caption" else rows[1] == ("two", PADDED[2])


def test_empty_parts_are_packed_again(tmp_path):
    """The corrected command goes on where the wrong one left parts without rows, of any number and suffix."""
    path = write("jsonl", tmp_path / "in", list("abcdef"), IMAGES)
    with pytest.raises(InputError, match="none of 6 rows was packed; most often: no key 'text'"):
        run(tmp_path, path, "jsonl", caption_key="text", per_part_file_num=2, save_gzip_file=False)
    with pytest.raises(InputError, match="none of 6 rows was packed; most often: caption too short"):
        run(tmp_path, path, "jsonl", min_caption_length=9, per_part_file_num=1)
    rows, report = run(tmp_path, path, "jsonl", per_part_file_num=4)
    assert [caption for caption, _ in rows] == list("abcdef") and report["parts"] == 2
    assert len(list((tmp_path / "out/laion400m_format_data").iterdir())) == 4
    with pytest.raises(InputError, match="it was packed with --min_caption_length 0, now 9"):
        run(tmp_path, path, "jsonl", min_caption_length=9, per_part_file_num=4)


def test_parts_of_an_earlier_version_are_refused_by_name(tmp_path, monkeypatch):
    path = write("jsonl", tmp_path / "in", ["a"], IMAGES[:1])
    monkeypatch.setattr("sd.data.packing.sources.jsonl.JsonlLoader.signature", lambda self, items: 7)
    options = PackOptions(str(path), str(tmp_path / "out"), engine="local", num_workers=1)
    source = open_source(options)
    (tmp_path / "out").mkdir()
    task = Task(str(tmp_path / "out/part-000001"), [item for item, _ in source.items()], 1.0)
    assert not pack_part(task, source, options).changed
    monkeypatch.undo()
    assert "packed by an earlier version" in pack_part(task, source, options).changed


@pytest.mark.parametrize(
    ("resizer", "reason"), [(EARLIER_RESIZER, ""), ("another", f"packed with resizer another, now {RESIZER}")]
)
def test_parts_of_the_earlier_resizer_stay(tmp_path, monkeypatch, resizer, reason):
    path = write("jsonl", tmp_path / "in", ["a"], IMAGES[:1])
    flags = PackOptions(str(path), str(tmp_path / "out"), engine="local", num_workers=1, resize=30)
    source = open_source(flags)
    (tmp_path / "out").mkdir()
    task = Task(str(tmp_path / "out/part-000001"), [item for item, _ in source.items()], 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(options, "RESIZER", resizer)
        assert not pack_part(task, source, flags).changed
    changed = pack_part(task, source, flags).changed
    assert reason in changed and bool(changed) == bool(reason)


# -- reasons --------------------------------------------------------------------------------------------------------


def test_a_rejected_row_names_its_image_and_the_librarys_reason(tmp_path):
    data, _ = METADATA["text too large before"]
    path = write("jsonl", tmp_path / "in", ["a", "b", "c"], [IMAGES[0], data, b"<html>"])
    run(tmp_path, path, "jsonl", max_bad_fraction=1.0)
    assert [(row["line"], row["detail"]) for row in rejected(tmp_path)] == [
        (2, "1.png: Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK"),
        (3, "2.png: it begins with b'<html>'"),
    ]


def test_a_path_that_leads_out_names_the_flag_and_the_place(tmp_path):
    path = write("jsonl", tmp_path / "in", ["a", "b"], IMAGES[:2])
    (tmp_path / "in/1.png").rename(tmp_path / "far.png")
    (tmp_path / "in/1.png").symlink_to(tmp_path / "far.png")
    run(tmp_path, path, "jsonl", max_bad_fraction=1.0)
    [row] = rejected(tmp_path)
    assert row["reason"] == "image outside the input's folder"
    assert row["detail"] == f"1.png; --allow_outside takes it from {tmp_path}/far.png"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_jsonl_in_utf16_is_refused_with_the_conversion(tmp_path, encoding):
    path = write("jsonl", tmp_path / "in", ["a"], IMAGES[:1])
    path.write_bytes(path.read_text().encode(encoding))
    with pytest.raises(InputError, match=r"data\.jsonl: UTF-16, expected UTF-8; convert it: iconv -f UTF-16"):
        run(tmp_path, path, "jsonl")


def test_jsonl_of_another_encoding_is_read_or_refused_row_by_row(tmp_path):
    path = write("jsonl", tmp_path / "in", ["a", "b", "c"], IMAGES[:3])
    lines = [
        {"caption": text, "image": f"{n}.png"} for n, text in enumerate(["plain", "红色的圆和绿色的方块", "Straße"])
    ]
    encodings = ["utf-8-sig", "gb18030", "cp1252"]
    path.write_bytes(
        b"\r\n".join(json.dumps(line, ensure_ascii=False).encode(e) for line, e in zip(lines, encodings, strict=True))
    )
    rows, _ = run(tmp_path, path, "jsonl", max_bad_fraction=1.0)
    assert [caption for caption, _ in rows] == ["plain", "红色的圆和绿色的方块"]
    [row] = rejected(tmp_path)
    assert (row["line"], row["reason"]) == (3, "not JSON") and "Windows-1252" in row["detail"]


def test_more_pixels_than_readers_take_are_packed_only_where_they_are_shrunk(tmp_path):
    with pytest.raises(InputError, match=r"--max_pixels 100000000 without --resize: training reads at most 89478485"):
        PackOptions("in", "out", max_pixels=100_000_000)
    path = write("jsonl", tmp_path / "in", ["large", "long"], [blank(11_000, 9_000), blank(300_000, 300)])
    options = {"max_pixels": 100_000_000, "max_bad_fraction": 1.0, "num_workers": 1}
    rows, _ = run(tmp_path, path, "jsonl", resize=400, **options)
    assert [caption for caption, _ in rows] == ["large"]
    assert rejected(tmp_path)[0]["detail"] == "1.png: 300000x300, readers of parts take 89478485"


# -- parquet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["jpg", "png", "webp"])
def test_img2datasets_image_columns_are_found(tmp_path, key):
    (tmp_path / "in").mkdir()
    parquet.write_table(pa.table({"caption": ["a"], key: [IMAGES[0]]}), tmp_path / "in/a.parquet")
    assert run(tmp_path, tmp_path / "in", "parquet")[0] == [("a", IMAGES[0])]
    with pytest.raises(InputError, match=rf"no column 'picture' \(--image_key\); it has caption, {key}"):
        run(tmp_path, tmp_path / "in", "parquet", image_key="picture", output_name="other")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rows_that_were_not_downloaded_are_an_outcome_of_their_own(tmp_path, kind):
    (tmp_path / "in").mkdir()
    rows = [
        {"caption": "a", "status": "success", "error_message": None, "image": 0},
        {"caption": "b", "status": "failed_to_download", "error_message": "HTTP Error 404", "image": None},
        {"caption": None, "status": "failed_to_download", "error_message": "timed out", "image": None},
        {"caption": "d", "status": "failed_to_resize", "error_message": None, "image": None},
        {"caption": "e", "status": "success", "error_message": None, "image": None},
    ]
    if kind == "parquet":
        for row in rows:
            row["image"] = IMAGES[0] if row["image"] == 0 else None
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in/a.parquet")
        path, bad = tmp_path / "in", "bad: no image in the row"
    else:
        (tmp_path / "in/0.png").write_bytes(IMAGES[0])
        path = tmp_path / "in/data.jsonl"
        path.write_text("\n".join(json.dumps(row | {"image": "0.png" if row["image"] == 0 else None}) for row in rows))
        bad = "bad: 'image' is not text"
    _, report = run(tmp_path, path, kind, max_bad_fraction=0.2)
    assert report["outcomes"] == {
        "packed": 1,
        bad: 1,
        "not downloaded: failed_to_download": 2,
        "not downloaded: failed_to_resize": 1,
    }
    assert "HTTP Error 404" in rejected(tmp_path)[0]["detail"]


def test_a_data_set_without_any_downloaded_image_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    table = pa.table({"caption": ["a"], "jpg": pa.array([None], pa.binary()), "status": ["failed_to_download"]})
    parquet.write_table(table, tmp_path / "in/a.parquet")
    with pytest.raises(InputError, match="none of 1 rows was packed; most often: failed_to_download"):
        run(tmp_path, tmp_path / "in", "parquet")


def test_a_parquet_file_that_is_empty_or_cut_is_one_bad_entry_among_good_ones(tmp_path):
    for name in ("a", "b", "c", "d"):
        write("parquet", tmp_path / name, [name], IMAGES[:1])
        os.renames(tmp_path / name / "a.parquet", tmp_path / "in" / f"{name}.parquet")
    (tmp_path / "in/a.parquet").write_bytes(b"")
    cut = tmp_path / "in/c.parquet"
    cut.write_bytes(cut.read_bytes()[:-20])
    parquet.write_table(pa.table({"text": ["no caption", "no image"]}), tmp_path / "in/e.parquet")
    rows, report = run(tmp_path, tmp_path / "in", "parquet", max_bad_fraction=1.0)
    assert [caption for caption, _ in rows] == ["b", "d"]
    assert report["outcomes"] == {"packed": 2, "bad: not readable as parquet": 2, "bad: no column 'image'": 2}
    assert [row["file"][-9:] for row in rejected(tmp_path)] == ["a.parquet", "c.parquet", "e.parquet", "e.parquet"]
    assert "0 bytes" in rejected(tmp_path)[0]["detail"]


def test_parquet_text_of_another_encoding_is_decoded_as_all_text_is(tmp_path):
    (tmp_path / "in").mkdir()
    texts = ["红色的圆".encode("gb18030"), "Mädchen läuft".encode("cp1252"), b"plain"]
    not_utf8 = pa.array(texts, pa.binary()).view(pa.string())
    for name, captions in (("a", not_utf8), ("b", pa.array(texts, pa.binary()))):
        parquet.write_table(pa.table({"caption": captions, "image": IMAGES[:3]}), tmp_path / f"in/{name}.parquet")
    rows, report = run(tmp_path, tmp_path / "in", "parquet", max_bad_fraction=1.0)
    assert [caption for caption, _ in rows] == ["红色的圆", "plain"] * 2
    assert report["outcomes"]["bad: text of another encoding"] == 2
