"""A packing run: the layout, the same bytes for any number of workers, going on, and refusing what does not fit."""

import fcntl
import gzip
import json
import os
import re
import subprocess
import sys

import pytest

from sd.data.packing.options import PackOptions
from sd.data.packing.packer import pack
from sd.data.packing.part import PartResult
from sd.data.packing.report import Progress
from sd.data.parts.filelist import read_file_list
from sd.data.parts.part import PartReader, load_index
from sd.data.parts.record import decode_row
from sd.errors import InputError, RunError
from tests.pack_input import contents, image_bytes, write_input


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Pack `data/data.jsonl` from a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    write_input(tmp_path / "data", 25, bad=(7,))

    def run_pack(output="out", **flags):
        flags = {"per_part_file_num": 4, "save_gzip_file": True, "num_workers": 1} | flags
        return pack(PackOptions("data/data.jsonl", output, **flags))

    return run_pack


def read_rows(parts):
    for path in parts:
        index = load_index(path)
        with PartReader(path, index) as reader:
            yield from (decode_row(reader.read(row)) for row in range(index.num_rows))


def test_the_layout_is_the_reference_s(run, tmp_path):
    file_list, _ = run("./processed_data", per_part_file_num=1000, num_repeat=3)
    folder = tmp_path / "processed_data"
    assert file_list == "./processed_data/filelist/custom_dataset.filelist.list"
    assert sorted(contents(folder)) == [
        "filelist/custom_dataset.filelist",
        "filelist/custom_dataset.filelist.list",
        "laion400m_format_data/part-000001.gz",
        "laion400m_format_data/part-000001.gz.idx",
        "rejected.jsonl",
        "report.json",
    ]
    part = "./processed_data/laion400m_format_data/part-000001.gz"
    assert (folder / "filelist/custom_dataset.filelist").read_text() == f"{part}\n" * 3
    assert (folder / "filelist/custom_dataset.filelist.list").read_text() == (
        "./processed_data/filelist/custom_dataset.filelist\n"
    )
    with gzip.open(folder / "laion400m_format_data/part-000001.gz", "rt") as rows:
        fields = [row.rstrip("\n").split("\t") for row in rows]
    assert [(caption, middle) for caption, middle, _ in fields] == [
        (f"caption {n}", "NONE") for n in range(1, 26) if n != 7
    ]


def test_without_gzip_parts_are_text_and_the_list_takes_its_name(run, tmp_path):
    file_list, _ = run(save_gzip_file=False, output_name="mine", per_part_file_num=20)
    assert file_list == "out/filelist/mine.filelist.list"
    assert read_file_list(file_list)[0].parts == [f"out/laion400m_format_data/part-00000{n}" for n in (1, 2)]
    assert (tmp_path / "out/laion400m_format_data/part-000001").read_bytes().startswith(b"caption 1\tNONE\t")


@pytest.mark.defect(9)
def test_defect_09_any_number_of_workers_gives_the_same_bytes_in_input_order(run, tmp_path):
    outputs = [tmp_path / name / "out" for name in ("one", "two", "three")]
    for num_workers, output in enumerate(outputs, 1):
        file_list, _ = run(str(output), num_workers=num_workers)
        records = list(read_rows(read_file_list(file_list)[0].parts))
        expected = [n for n in range(1, 26) if n != 7]
        assert [record.captions[0] for record in records] == [f"caption {n}" for n in expected]
        assert [record.image for record in records] == [image_bytes(40 + n, 40, n) for n in expected]
        for name in ("custom_dataset.filelist", "custom_dataset.filelist.list"):  # they hold the output's path
            (output / "filelist" / name).unlink()
    first, *others = map(contents, outputs)
    assert len(first) == 2 * 7 + 2
    assert all(other == first for other in others)


def test_every_row_has_one_outcome(run, tmp_path):
    with (tmp_path / "data/data.jsonl").open("a") as lines:
        lines.write("\nnot json\n")
    _, report = run(min_size=40, max_aspect_ratio=1.5, max_bad_fraction=0.5)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert report["outcomes"] == {
        "packed": 19,
        "bad: image missing": 1,
        "bad: not JSON": 1,
        "filtered: aspect ratio too large": 5,
    }
    assert report["rows"] == sum(report["outcomes"].values()) == 26
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rejected] == [7, 21, 22, 23, 24, 25, 27]
    assert rejected[0] == {"line": 7, "outcome": "bad", "reason": "image missing", "detail": "images/7.png"}


def test_too_many_bad_rows_end_the_run_without_lists(run, tmp_path):
    message = (
        r"1 of 25 rows are bad, more than --max_bad_fraction 0\.03; most often: image missing \(1 rows, first line 7"
    )
    with pytest.raises(RunError, match=message):
        run(max_bad_fraction=0.03)
    assert list((tmp_path / "out/filelist").iterdir()) == []
    assert (tmp_path / "out/rejected.jsonl").read_text().count("\n") == 1
    assert run(max_bad_fraction=0.04)[1]["outcomes"]["packed"] == 24


def test_rows_that_were_filtered_are_not_bad(run):
    assert run(min_caption_length=10, max_bad_fraction=0.05)[1]["outcomes"]["packed"] == 16
    with pytest.raises(InputError, match=r"none of 25 rows was packed; most often: caption too short"):
        run("other", min_caption_length=100)


def test_the_bar_counts_images_from_the_first_part_to_the_last(capsys):
    with Progress() as progress:
        for done in (0.25, 0.5, 1.0):
            progress.update(PartResult("part", done_fraction=done, num_packed=3, rejected=[{}]))
    lines = capsys.readouterr().err.replace("\r", "\n").split("\n")
    shown = [match[1] for line in lines if (match := re.search(r"\| (\d+/\d+) ", line))]
    assert shown[0] == "4/16" and shown[-1] == "12/12"


def test_the_bar_ends_at_the_images_that_there_were(capsys):
    """Texts and JSON beside the images are input too, so that the last part may stand at less than all of it."""
    with Progress() as progress:
        progress.update(PartResult("part", done_fraction=0.75, num_packed=6))
    assert re.findall(r"\| (\d+/\d+) ", capsys.readouterr().err)[-1] == "6/6"


def test_an_empty_part_is_in_no_list(run, tmp_path):
    for number in (5, 6, 8):
        (tmp_path / f"data/images/{number}.png").unlink()
    file_list, report = run(max_bad_fraction=1.0)
    assert report["parts"] == 6
    assert [part[-5:-3] for part in read_file_list(file_list)[0].parts] == ["01", "03", "04", "05", "06", "07"]


# -- going on -------------------------------------------------------------------------------------------------------


def test_a_second_run_resumes_from_finished_parts(run, tmp_path):
    run()
    before = contents(tmp_path / "out")
    parts = tmp_path / "out/laion400m_format_data"
    untouched = (parts / "part-000001.gz").stat().st_mtime_ns
    (parts / "part-000002.gz").unlink()  # as after a kill between index and part
    (parts / "part-000003.gz.idx").write_bytes(b"")
    (parts / "part-000004.gz").write_bytes(b"cut")
    (parts / "part-000005.gz.0a1b2c3d.tmp").write_bytes(b"unfinished")
    for name in ("part-000007.gz", "part-000007.gz.idx"):
        (parts / name).unlink()
    run(num_workers=2)
    assert contents(tmp_path / "out") == before
    assert (parts / "part-000001.gz").stat().st_mtime_ns == untouched


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"resize": 30}, "part-000001.gz: it was packed with --resize None, now 30"),
        ({"per_part_file_num": 5}, "it was packed with --per_part_file_num 4, now 5"),
        ({"save_gzip_file": False}, "part-000001.gz: it was packed otherwise, now without --save_gzip_file"),
    ],
)
def test_another_flag_is_noticed_and_refused(run, tmp_path, flags, message):
    run()
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match=f"{message}; take another --output_path, or --overwrite"):
        run(**flags)
    assert contents(tmp_path / "out") == before


def test_a_changed_input_is_noticed_and_refused(run, tmp_path):
    run()
    lines = tmp_path / "data/data.jsonl"
    text = lines.read_text()

    def refused(message):
        with pytest.raises(InputError, match=message):
            run()

    lines.write_text(text.replace("caption 14", "caption fourteen"))
    refused(r"part-000004\.gz: its input has changed since")
    lines.write_text("".join(text.splitlines(keepends=True)[:20]))
    refused(r"part-000006\.gz: it is left from longer input")
    lines.write_text(text)
    (tmp_path / "data/images/9.png").write_bytes(image_bytes(200, 200))
    refused(r"part-000003\.gz: its input has changed since")
    assert run(overwrite=True)[1]["outcomes"]["packed"] == 24
    (tmp_path / "data/images/7.png").write_bytes(image_bytes())
    refused(r"part-000002\.gz: its input has changed since")


def test_parts_of_another_program_are_not_touched(run, tmp_path):
    part = tmp_path / "out/laion400m_format_data/part-000001.gz"
    part.parent.mkdir(parents=True)
    part.write_bytes(gzip.compress(b"a\tNONE\tAAAA\n"))
    with pytest.raises(InputError, match="it was made by another program"):
        run()
    assert gzip.decompress(part.read_bytes()) == b"a\tNONE\tAAAA\n"


def test_overwrite_leaves_nothing_of_the_old_run(run, tmp_path):
    run(per_part_file_num=2)
    run(overwrite=True, save_gzip_file=False)
    parts = sorted(path.name for path in (tmp_path / "out/laion400m_format_data").iterdir())
    assert parts == sorted(f"part-00000{n}{suffix}" for n in range(1, 8) for suffix in ("", ".idx"))


def test_files_of_others_are_left_alone(run, tmp_path):
    folder = tmp_path / "out/laion400m_format_data"
    folder.mkdir(parents=True)
    others = [tmp_path / "out/notes.tmp", folder / "part-of-a-novel.txt", folder / "draft.gz.tmp"]
    for path in others:
        path.write_text("mine")
    run(overwrite=True)
    run(overwrite=True)
    assert [path.read_text() for path in others] == ["mine"] * 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_lists_of_a_cache_are_not_replaced(run, tmp_path, overwrite):
    """Of one source, and of several, whose lists have other names than the packer's."""
    lists = tmp_path / "out/filelist"
    for name in ("mine", "mine-1"):
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{name}.filelist").write_text("out/latents/part-000001.gz\n")
        (lists / "mine.filelist.list").write_text(f"out/filelist/{name}.filelist 0.7\n")
        before = contents(lists)
        with pytest.raises(InputError, match=r"mine\.filelist\.list: names other data \(out/latents/part-000001\.gz\)"):
            run(output_name="mine", overwrite=overwrite)
        assert contents(lists) == before
    file_list, _ = run(overwrite=overwrite)
    assert file_list == "out/filelist/custom_dataset.filelist.list"


def test_two_runs_do_not_share_an_output(run, tmp_path):
    """A lock on the folder, as a run in this process has it, and a record lock, as one on another machine has it."""
    folder = tmp_path / "out/laion400m_format_data"
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another run is at work there"):
        run()
    os.close(descriptor)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(7, file=f, flush=True)"
    command = [sys.executable, "-c", f"{hold}; print(flush=True); input()", str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match=r"another run is at work there \(7\)"):
            run()
        other.stdin.close()
    run()
    assert not (folder / ".lock").exists()


@pytest.mark.defect(11)
def test_defect_11_nothing_usable_is_an_error_with_the_reason(run):
    with pytest.raises(InputError, match=r"none of 25 rows was packed; most often: no key 'text' \(25 rows, first"):
        run(caption_key="text")
