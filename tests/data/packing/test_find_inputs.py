"""Inputs on real file systems: links, names in capitals, hidden folders, files that are not what they seem."""

import bz2
import csv
import gzip
import io
import lzma
import os
import tarfile
import zipfile

import pytest

from sd.data.packing.options import PackOptions
from sd.data.packing.packer import pack
from sd.data.packing.sources.find import find_inputs
from sd.data.packing.sources.tar import list_members
from sd.errors import InputError
from tests.data.packing.test_pack_sources import rejected_rows, run
from tests.pack_input import image_bytes

pytestmark = pytest.mark.usefixtures("packs_in_process")
IMAGE = image_bytes()


def write_csv(path, caption):
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "a.png").write_bytes(IMAGE)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("caption", "image"), (caption, "a.png")])


def test_linked_folders_and_capitals_are_found_and_hidden_folders_are_not(tmp_path):
    write_csv(tmp_path / "in/a.csv", "plain")
    write_csv(tmp_path / "in/B.CSV", "capitals")
    write_csv(tmp_path / "other/disk/c.csv", "linked")
    write_csv(tmp_path / "in/.ipynb_checkpoints/a-checkpoint.csv", "what Jupyter keeps")
    (tmp_path / "in/linked").symlink_to(tmp_path / "other/disk")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/itself.txt").symlink_to("itself.txt")
    rows, _ = run(tmp_path, tmp_path / "in", "csv")
    assert [caption for caption, _ in rows] == ["capitals", "plain", "linked"]
    names = ["B.CSV", "a.csv", "linked/c.csv"]
    assert find_inputs(f"{tmp_path}/in/", ".csv") == [str(tmp_path / "in" / name) for name in names]


def test_a_folder_that_cannot_be_read_ends_the_run(tmp_path, monkeypatch):
    write_csv(tmp_path / "in/a.csv", "a")
    write_csv(tmp_path / "in/closed/b.csv", "b")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"in/closed: Permission denied; make it readable, or move it away"):
        run(tmp_path, tmp_path / "in", "csv")


def test_a_link_to_nothing_is_one_bad_entry(tmp_path):
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/0.tar", "w") as tar:
        for name, data in (("a.png", IMAGE), ("a.txt", b"a")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "in/1.tar").symlink_to(tmp_path / "gone.tar")
    rows, report = run(tmp_path, tmp_path / "in", "webdataset", max_bad_fraction=0.5)
    assert [caption for caption, _ in rows] == ["a"]
    assert report["outcomes"] == {"packed": 1, "bad: the shard is damaged": 1}
    assert [row["detail"] for row in rejected_rows(tmp_path)] == ["no such file"]


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("xl/workbook.xml", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "pack"),
    [
        ("gzip", lambda data: gzip.compress(data, mtime=0)),
        ("bzip2", bz2.compress),
        ("xz", lzma.compress),
        ("zip", zipped),
    ],
)
@pytest.mark.parametrize("input_format", ["jsonl", "csv", "tsv"])
def test_a_compressed_text_is_named_as_what_it_is(tmp_path, kind, pack, input_format):
    path = tmp_path / f"data.{input_format}"
    path.write_bytes(pack(b"caption,image\na,a.png\n"))
    workbook = ", or if it is a workbook, save its table as CSV" if kind == "zip" else ""
    with pytest.raises(
        InputError, match=rf"data\.{input_format}: compressed with {kind}, expected text; unpack it{workbook}$"
    ):
        run(tmp_path, path, input_format)


def test_utf32_is_not_called_utf16(tmp_path):
    for encoding in ("utf-32", "utf-32-be"):
        (tmp_path / "data.csv").write_bytes("caption,image\n".encode(encoding))
        with pytest.raises(InputError, match="UTF-32, expected UTF-8; convert it: iconv -f UTF-32 -t UTF-8"):
            run(tmp_path, tmp_path / "data.csv", "csv")


@pytest.mark.parametrize("name", ["PKU_0001.png", "BZhang_0001.png", "BZh9.png"])
def test_a_tar_whose_first_name_begins_like_an_archive_is_read(tmp_path, name):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(IMAGE)
        tar.addfile(info, io.BytesIO(IMAGE))
    with (tmp_path / "0.tar").open("rb") as file:
        members, damage = list_members(file)
    assert ([member.name for member in members], damage) == ([name], "")


@pytest.mark.parametrize("name", ["input_path", "output_path"])
def test_an_empty_path_is_refused(name):
    paths = {"input_path": "in", "output_path": "out", name: ""}
    with pytest.raises(InputError, match=f"{name}=''; expected a path, not an empty text"):
        PackOptions(**paths, input_format="csv")


@pytest.mark.parametrize("name", ["output_path", "output_name"])
def test_an_output_that_file_lists_cannot_name_is_refused_before_the_work(name):
    paths = {"input_path": "in", "output_path": "out", name: os.fsdecode(b"\xd6\xd0")}
    with pytest.raises(InputError, match="expected a path in UTF-8, as file lists are"):
        PackOptions(**paths)


def test_overwrite_into_an_empty_store_that_knows_no_removal_of_nothing(tmp_path):
    """As Google's and Azure's; S3 takes the removal of what is not there."""
    write_csv(tmp_path / "in/a.csv", "a")
    options = PackOptions(str(tmp_path / "in"), "memory://empty/out", input_format="csv", overwrite=True, num_workers=1)
    assert pack(options)[1]["outcomes"] == pack(options)[1]["outcomes"] == {"packed": 1}


def test_a_name_with_signs_of_a_pattern_is_that_file_or_folder(tmp_path):
    write_csv(tmp_path / "in [1]*?/data [a].csv", "a")
    for root in ("", "file://"):
        path = f"{root}{tmp_path}/in [1]*?"
        assert find_inputs(f"{path}/data [a].csv", ".csv") == find_inputs(path, ".csv") == [f"{path}/data [a].csv"]


@pytest.mark.parametrize("input_format", ["csv", "tsv"])
def test_a_file_that_is_no_table_is_answered_with_one_short_printable_line(tmp_path, input_format):
    path = tmp_path / f"data.{input_format}"
    path.write_bytes(b"PAR1\x1b[31m\x07" + b"name, other;" * 100_000)
    with pytest.raises(InputError, match="line 1: no column 'caption'") as refused:
        run(tmp_path, path, input_format)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 500
