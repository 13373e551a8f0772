"""Folders as people have them: texts beside pictures, metadata files, kohya's and OneTrainer's names."""

import csv
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sd.data.packing.options import INPUT_FORMATS, PackOptions
from sd.data.packing.packer import pack
from sd.data.parts.filelist import read_file_list
from sd.data.parts.record import decode_row
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.order import Order
from sd.errors import InputError
from tests.data.packing.test_pack_sources import rejected_rows, run, write_shard
from tests.pack_input import contents, image_bytes

pytestmark = pytest.mark.usefixtures("packs_in_process")
IMAGES = [image_bytes(40 + number, 40, number) for number in range(8)]


def write(folder, files):
    """Write files of bytes or text below a folder; a number stands for that image."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = IMAGES[content] if isinstance(content, int) else content
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def outcomes(folder):
    return {row["file"]: f"{row['outcome']}: {row['reason']}" for row in rejected_rows(folder)}


def test_every_picture_and_every_lone_text_has_one_outcome(tmp_path):
    files = {
        "b.PNG": 0,
        "b.Txt": "红色的圆\n".encode("gb18030"),
        "sub/deep/a b.png": 1,
        "sub/deep/a b.txt": b"\xef\xbb\xbfa cat,\r\nasleep",
        "sub/c.PnG": 2,
        "sub/c.caption": "kohya's suffix",
        "sub/d.png": 3,
        "sub/d.png.txt": "named after the whole picture",
        "sub/e.v2.png": 4,
        "sub/e.v2.txt": "",
        "z/none.png": 5,
        "z/other.TXT": "Straße".encode("cp1252"),
        "z/other.png": 6,
        "z/notes.txt": "no picture",
        "z/a-masklabel.png": 7,
        "z/model.safetensors": "neither",
        ".hidden.txt": "x",
        ".cache/x.png": 1,
    }
    rows, report = run(tmp_path, write(tmp_path / "in", files), "folder", max_bad_fraction=0.3)
    assert rows == [
        ("红色的圆 ", IMAGES[0]),
        ("kohya's suffix", IMAGES[2]),
        ("named after the whole picture", IMAGES[3]),
        ("", IMAGES[4]),
        ("a cat,  asleep", IMAGES[1]),
    ]
    assert outcomes(tmp_path) == {
        "z/none.png": "bad: no caption beside the image",
        "z/other.png": "bad: text of another encoding",
        "z/notes.txt": "unpaired: a text without an image",
        "z/a-masklabel.png": "filtered: a mask of OneTrainer's",
    }
    assert report["rows"] == sum(report["outcomes"].values()) == 9


def test_lines_of_a_text_are_captions_with_caption_lines(tmp_path):
    """As OneTrainer reads them."""
    folder = write(tmp_path / "in", {"1.png": 0, "1.txt": "one\r\n\n two \n", "2.png": 1, "2.txt": "\n"})
    file_list, _ = pack(PackOptions(str(folder), str(tmp_path / "out"), input_format="folder", caption_lines=True))
    [part] = read_file_list(file_list)[0].parts
    rows = [decode_row(line) for line in Path(part).read_bytes().splitlines()]
    assert [row.captions for row in rows] == [("one", " two "), ("",)]
    with pytest.raises(InputError, match="it was packed with --caption_lines True, now None"):
        pack(PackOptions(str(folder), str(tmp_path / "out"), input_format="folder"))


def test_two_pictures_of_one_name_share_their_text_and_json_goes_before_it(tmp_path):
    fields = {"caption": "from JSON", "long": "by key", "url": "http://x"}
    files = {"1.png": 0, "1.webp": 1, "1.txt": "from text", "1.json": json.dumps(fields), "stats.json": "{}"}
    rows, _ = run(tmp_path, write(tmp_path / "in", files), "folder")
    assert rows == [("from JSON", IMAGES[0]), ("from JSON", IMAGES[1])]
    assert run(tmp_path / "k", tmp_path / "in", "folder", caption_key="long")[0][0][0] == "by key"
    assert run(tmp_path / "n", tmp_path / "in", "folder", caption_key="none")[0][0][0] == "from text"


@pytest.mark.defect(10)
def test_defect_10_links_out_of_the_folder_need_a_flag_and_loops_end(tmp_path):
    write(tmp_path / "far", {"a.png": 0, "a.txt": "a"})
    write(tmp_path / "in", {"b.png": 1, "b.txt": "b"})
    (tmp_path / "in/linked").symlink_to(tmp_path / "far")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    rows, _ = run(tmp_path, tmp_path / "in", "folder", max_bad_fraction=1.0)
    assert [caption for caption, _ in rows] == ["b"]
    assert outcomes(tmp_path) == {"linked/a.png": "bad: image outside the input's folder"}
    assert len(run(tmp_path / "all", tmp_path / "in", "folder", allow_outside=True)[0]) == 2


def kohya(folder):
    files = {f"{name}/{n}.png": n for name, count in (("3_cat", 4), ("1_dog", 3), ("0_off", 1)) for n in range(count)}
    texts = {f"3_cat/{n}.txt": f"cat {n}" for n in range(4)}
    return write(folder, files | texts | {"loose/1.png": 5, "loose/1.txt": "loose"})


def test_kohyas_repeats_are_how_often_a_row_is_drawn(tmp_path):
    flags = {"kohya_folders": True, "per_part_file_num": 3}
    rows, report = run(tmp_path, kohya(tmp_path / "in"), "folder", **flags)
    assert report["outcomes"] == {"packed": 8, "filtered: a folder of repeat 0": 1}
    file_list = tmp_path / "out/filelist/custom_dataset.filelist.list"
    parts = read_file_list(file_list)[0].parts
    by_part = Counter(Path(part).name for part in parts)
    assert by_part == {"part-000002.gz": 1, "part-000003.gz": 3, "part-000004.gz": 3, "part-000005.gz": 1}
    catalog = Catalog(file_list, 32)
    order = Order(catalog.sources, seed=1, lanes=1, deal_size=1, buffer_size=100)
    ends = np.cumsum(catalog.usable)
    assert ends[-1] == 3 + 3 * 4 + 1
    captions = dict.fromkeys(caption for caption, _ in rows)
    assert list(captions) == ["dog", *(f"cat {n}" for n in range(4)), "loose"]
    drawn = Counter()
    for sample in range(ends[-1]):  # one pass
        part, _ = order.position(sample)
        drawn[Path(catalog.paths[part]).name] += 1
    assert drawn == {"part-000002.gz": 3, "part-000003.gz": 9, "part-000004.gz": 3, "part-000005.gz": 1}


def test_kohyas_folder_names_are_text_of_any_encoding(tmp_path):
    """As `unzip` leaves the names of an archive that was made on a Chinese Windows."""
    for number, name in enumerate(["2_红色的狗".encode("gb18030"), "1_狗".encode(), b"1_Stra\xdfe"]):
        write(tmp_path / "in" / os.fsdecode(name), {f"{number}.png": number})
    rows, report = run(tmp_path, tmp_path / "in", "folder", kohya_folders=True, max_bad_fraction=0.5)
    assert {caption for caption, _ in rows} == {"红色的狗", "狗"}
    assert report["outcomes"] == {"packed": 2, "bad: text of another encoding": 1}


def test_without_the_flag_kohyas_folders_count_once_and_lack_captions(tmp_path):
    rows, _ = run(tmp_path, kohya(tmp_path / "in"), "folder", max_bad_fraction=0.5)
    assert sorted(caption for caption, _ in rows) == [f"cat {n}" for n in range(4)] + ["loose"]
    write(tmp_path / "in", {"99999_x/1.png": 1})
    with pytest.raises(InputError, match="99999_x: a repeat of 99999, expected at most 10000; rename the folder"):
        run(tmp_path / "new", tmp_path / "in", "folder", kohya_folders=True)
    with pytest.raises(InputError, match="--kohya_folders needs --input_format folder, not csv"):
        PackOptions("a", "b", input_format="csv", kohya_folders=True)


def test_a_stopped_run_resumes_to_the_same_bytes_and_a_change_is_refused(tmp_path):
    folder = write(tmp_path / "in", {f"{n}.{s}": c for n in range(8) for s, c in (("png", n), ("txt", f"text {n}"))})
    run(tmp_path, folder, "folder", per_part_file_num=3)
    whole = contents(tmp_path / "out")
    for name in ("part-000002.gz", "part-000002.gz.idx"):
        (tmp_path / "out/laion400m_format_data" / name).unlink()
    stored = tmp_path / "out/laion400m_format_data/part-000001.gz"
    before = stored.stat().st_mtime_ns
    run(tmp_path, folder, "folder", per_part_file_num=3)
    assert contents(tmp_path / "out") == whole and stored.stat().st_mtime_ns == before
    (folder / "1.txt").write_text("other!")
    with pytest.raises(InputError, match=r"part-000001\.gz: its input has changed since"):
        run(tmp_path, folder, "folder", per_part_file_num=3)


# -- imagefolder ----------------------------------------------------------------------------------------------------


def test_imagefolder_reads_the_metadata_of_every_split(tmp_path):
    images = {f"{split}/{n}.png": n for split in ("test", "train", "valid") for n in range(2)}
    rows = [{"file_name": f"{n}.png", "text": f'a "{n}", and\nmore'} for n in range(2)]
    folder = write(tmp_path / "in", images | {"test/metadata.jsonl": "\n".join(map(json.dumps, rows))})
    with (folder / "train/metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["text", "file_name"])
        writer.writeheader()
        writer.writerows([*rows, {"file_name": "gone.png", "text": "x"}])
    parquet.write_table(pa.Table.from_pylist(rows), folder / "valid/metadata.parquet")
    flags = {"caption_key": "text", "max_bad_fraction": 0.2, "per_part_file_num": 3}
    actual, _ = run(tmp_path, folder, "imagefolder", **flags)
    assert actual == [(row["text"].replace("\n", " "), IMAGES[n]) for _ in range(3) for n, row in enumerate(rows)]
    [lost] = rejected_rows(tmp_path)
    assert (lost["file"], lost["line"]) == (f"{folder}/train/metadata.csv", 6)
    assert (lost["reason"], lost["detail"]) == ("image missing", "gone.png")
    assert run(tmp_path, folder, "imagefolder", **flags)[1]["rows"] == 7  # goes on
    (folder / "train/1.png").write_bytes(IMAGES[5])
    with pytest.raises(InputError, match="its input has changed since"):
        run(tmp_path, folder, "imagefolder", **flags)


def test_two_metadata_files_in_a_folder_are_refused(tmp_path):
    write(tmp_path / "in", {"metadata.csv": "file_name,caption\n", "metadata.jsonl": "{}"})
    with pytest.raises(InputError, match=r"metadata\.jsonl and metadata\.csv; keep one of them"):
        run(tmp_path, tmp_path / "in", "imagefolder")


# -- the wrong format -----------------------------------------------------------------------------------------------


def inputs(folder):
    """Format -> (path, what the error has to name)."""
    write(folder / "pairs", {"x/a.png": 0, "x/a.txt": "a"})
    write(folder / "hf", {"train/a.png": 0, "train/metadata.csv": "file_name,caption\na.png,a\n"})
    write(folder / "csv", {"data.csv": "image,caption\na.png,a\n", "a.png": 0})
    write(folder / "tsv", {"data.tsv": "image\tcaption\na.png\ta\n", "a.png": 0})
    write(folder / "jsonl", {"data.jsonl": '{"image": "a.png", "caption": "a"}\n', "a.png": 0})
    (folder / "tar").mkdir()
    write_shard(folder / "tar/0.tar", [("a.png", IMAGES[0]), ("a.txt", b"a")])
    (folder / "parquet").mkdir()
    parquet.write_table(pa.table({"caption": ["a"], "image": [IMAGES[0]]}), folder / "parquet/0.parquet")
    names = {"folder": "pairs", "imagefolder": "hf", "webdataset": "tar"}
    return {name: folder / names.get(name, name) for name in INPUT_FORMATS}


@pytest.mark.parametrize("right", INPUT_FORMATS)
def test_an_input_of_another_format_names_its_own(tmp_path, right):
    path = inputs(tmp_path / "in")[right]
    words = f"--input_format {right}"
    if right == "jsonl":
        words += f" --input_path {path}/data.jsonl"
        assert run(tmp_path / "right", path / "data.jsonl", "jsonl")[1]["outcomes"] == {"packed": 1}
    else:
        assert run(tmp_path / "right", path, right)[1]["outcomes"] == {"packed": 1}
    for wrong in INPUT_FORMATS:
        if wrong != right:
            with pytest.raises(InputError) as error:
                run(tmp_path / wrong, path, wrong)
            assert str(error.value).endswith(f"so give {words}"), f"{wrong}: {error.value}"
            assert len(str(error.value).splitlines()) == 1


def test_a_table_that_lacks_a_column_is_not_taken_for_the_texts_beside_it(tmp_path):
    write(tmp_path / "in", {"a.png": 0, "a.txt": "a", "data.csv": "image,text\na.png,a\n"})
    with pytest.raises(InputError, match=r"no column 'caption' \(--caption_key\); the header has image, text$"):
        run(tmp_path, tmp_path / "in", "csv")


def test_a_folder_without_pictures_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    for path, message in ((tmp_path / "in", "no picture in it or its sub-folders"), (tmp_path / "no", "No such file")):
        with pytest.raises(InputError, match=message):
            run(tmp_path, path, "folder")
    file = write(tmp_path, {"a.txt": "x"}) / "a.txt"
    with pytest.raises(InputError, match="Not a directory"):
        run(tmp_path, file, "folder")
    assert list((tmp_path / "in").iterdir()) == []
