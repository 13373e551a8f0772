"""What `python -m sd.data.inspect` says of a data set, in numbers."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sd.data import findings, inspect
from sd.data.parts.columns import from_arrow
from sd.data.parts.moments import Manifest, encode_payload
from sd.data.parts.part import PartWriter
from sd.data.parts.record import encode_row
from sd.errors import InputError
from tests.data_maker import jpeg, write_lists

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def file_list(tmp_path):
    """20 rows: 12 of 40 x 40, 4 of 100 x 50, 2 of 20 x 20, 1 unreadable by its index, 1 with a broken image."""
    sizes = [(40, 40)] * 12 + [(100, 50)] * 4 + [(20, 20)] * 2
    with PartWriter(tmp_path / "part-000001.gz") as part:
        for row, size in enumerate(sizes):
            part.add(encode_row("x" * (10 * row), jpeg(row, *size)), *size)
        part.add(encode_row("bad", b"?"), 0, 0)
        part.add(encode_row("worse", b"?"), 40, 40)
    return write_lists(tmp_path, (1.0, [tmp_path / "part-000001.gz"]))


def test_the_report_counts_rows_sizes_captions_and_bad_rows(file_list, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    inspect.main([file_list, "--resolution", "32", "--samples", "4", "--output", str(sheet)])
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert "1 parts, 20 rows" in text
    assert "usable at 32 px: 17 (85.0%)" in text
    shares = [line.split()[:2] for line in lines if line.startswith("    ")]
    assert ["0", "5.0%"] in shares and ["1-63", "95.0%"] in shares
    assert "rows read and decoded: 17, bad: 1" in text
    assert "part-000001.gz row 20: not an image" in text
    assert "caption length: 0 to 150 characters, median 75, mean 75.0" in text
    assert ["1-19", "6.2%"] in shares and ["100-199", "37.5%"] in shares
    assert "long to short side: median 1.00, largest 2.00" in text
    assert Image.open(sheet).size == (2 * 160, 2 * 190)


@pytest.fixture
def scored(tmp_path):
    """40 rows with a score of 0.0 to 3.9 (two missing), a text, a flag; a second part without columns."""
    scores = [None, None, *(row / 10 for row in range(2, 40))]
    with PartWriter(tmp_path / "part-000001.gz") as part:
        for row in range(40):
            part.add(encode_row(f"row {row}", jpeg(row)), 40, 40)
        part.columns = {
            "score": from_arrow(pa.array(scores)),
            "license": from_arrow(pa.array(["cc0"] * 30 + ["a\tlong text " * 5] * 10)),
            "duplicate": from_arrow(pa.array([row % 4 == 0 for row in range(40)])),
            "nothing": from_arrow(pa.nulls(40)),
        }
    with PartWriter(tmp_path / "part-000002.gz") as part:
        for row in range(10):
            part.add(encode_row(f"more {row}", jpeg(100 + row)), 40, 40)
    return write_lists(tmp_path, (1.0, [tmp_path / "part-000001.gz", tmp_path / "part-000002.gz"]))


def test_columns_are_described(scored, tmp_path, capsys):
    inspect.main([scored, "--resolution", "32", "--samples", "0"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    at = lines.index("columns of 2 parts, 1 of them without any, 50 rows: type, missing, values")
    assert lines[at + 1].startswith("score     float64   24.0%  0%: 0.2, 1%: 0.2, 25%: 1.1, 50%: 2")
    assert lines[at + 1].endswith("100%: 3.9  ▄█▄█▄█▄█▄█▄██▄█▄█▄█▄█▄█▄")
    assert lines[at + 2].startswith(
        "license   text      20.0%  2 different of 40 read: 'cc0' 75.0%, 'a long text a long text ...'"
    )
    assert lines[at + 3 : at + 5] == ["duplicate bool      20.0%  true 25.0%", "nothing   missing  100.0%"]


def test_a_filter_is_counted_by_clause_and_has_a_sheet_of_what_goes(scored, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    arguments = [scored, "--resolution", "32", "--output", str(sheet), "--data_filter"]
    inspect.main([*arguments, "score >= 1 and not duplicate"])
    text = capsys.readouterr().out
    assert "usable at 32 px: 23 (46.0%)" in text
    assert "23 of the 50 rows of 32 px or more pass the filter (46.0%); each by itself: " in text
    assert "score >= 1 removes 20, not duplicate removes 20" in text
    assert f"contact sheet of what the filter leaves out: {tmp_path}/sheet_left_out.png" in text
    assert Image.open(sheet).size == (5 * 160, 5 * 190)  # 23 pictures
    assert Image.open(tmp_path / "sheet_left_out.png").size == (6 * 160, 5 * 190)  # 27
    inspect.main([*arguments, "score > 100"])
    text = capsys.readouterr().out
    assert "no row passes the filter, so training would refuse the list" in text and "score > 100 removes 50" in text
    assert Image.open(tmp_path / "sheet_left_out.png").size == (8 * 160, 7 * 190)  # all 50


def test_damaged_columns_are_reported(scored, tmp_path, capsys):
    (tmp_path / "part-000001.gz.columns").write_bytes(b"?")
    inspect.main([scored, "--resolution", "32", "--samples", "0"])
    assert "columns that cannot be read: part-000001.gz.columns: damaged" in capsys.readouterr().out


def test_the_sheet_shows_the_crops_with_their_captions(file_list, tmp_path):
    sheets = []
    for number in range(2):
        sheets.append(tmp_path / f"{number}.png")
        inspect.main([file_list, "--resolution", "32", "--samples", "9", "--output", str(sheets[-1])])
    one, other = (np.asarray(Image.open(sheet)) for sheet in sheets)
    np.testing.assert_array_equal(one, other)
    assert one.shape == (3 * 190, 3 * 160, 3)
    tile, label = one[:160, :160], one[160:190, :160]
    assert tile.std() > 20 and (label == 255).mean() > 0.5 and label.min() < 100


def test_inspect_of_a_cache_prints_its_settings_and_the_distribution_of_latents(tmp_path, capsys):
    manifest = Manifest("a" * 64, 0.5, 32, (2, 4, 4), "random", num_crops=2, num_rows=51, num_bad=1)
    draw = np.random.default_rng(0)
    with PartWriter(tmp_path / "part-000001.gz", kind="moments") as part:
        for row in range(50):
            mean, logvar = draw.normal(0.2, 1.2, (2, 2, 4, 4)), np.full((2, 2, 4, 4), 2 * np.log(1.6))
            payload = encode_payload(np.concatenate([mean, logvar], axis=1).astype(np.float16))
            part.add(encode_row("x" * row, payload), 32, 32)
        part.add(b"\tNONE\t\n")
        part.notes = {"cache": manifest.id}
    (tmp_path / "source0.cache.json").write_bytes(manifest.to_bytes())
    inspect.main([write_lists(tmp_path, (1.0, [tmp_path / "part-000001.gz"])), "--output", str(tmp_path / "sheet.png")])
    text = capsys.readouterr().out
    assert "usable at 32 px: 50 (98.0%)" in text and "rows read and decoded: 50, bad: 0" in text
    assert "a cache of latents, 2 x 4 x 4 of 32 px, no text states" in text
    assert "a row holds 2: --crop random --num_crops 2, lanczos, seed 23" in text
    reported = dict(re.findall(r"(mean|deviation|own) (-?[\d.]+)", re.search("latents as trained on.*", text)[0]))
    assert float(reported["mean"]) == pytest.approx(0.1, abs=0.03)
    assert float(reported["deviation"]) == pytest.approx(1.0, abs=0.03)  # half of the root of 1.2^2 + 1.6^2
    assert float(reported["own"]) == pytest.approx(0.8, abs=0.002)
    assert "caption length: 0 to 49 characters" in text
    assert not (tmp_path / "sheet.png").exists()


def test_inspect_shows_rows_even_if_none_is_large_enough(file_list, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    inspect.main([file_list, "--samples", "4", "--output", str(sheet)])
    text = capsys.readouterr().out
    assert "no row is usable at 256 px, so training would refuse the list; this is in it:" in text
    assert "usable at 256 px: 0 (0.0%)" in text and "rows read and decoded: 19, bad: 1" in text
    assert "caption length: 0 to 170 characters" in text and sheet.exists()


def test_a_list_of_missing_parts_is_shown_too(tmp_path, capsys):
    inspect.main([write_lists(tmp_path, (1.0, [tmp_path / "gone.gz"])), "--output", str(tmp_path / "sheet.png")])
    text = capsys.readouterr().out
    assert "usable at 256 px: 0 (0.0%)" in text and "gone.gz: no such part" in text
    assert not (tmp_path / "sheet.png").exists()


def test_a_wide_picture_is_shown_whole(tmp_path):
    wide = np.zeros([3, 40, 120], np.uint8)
    sheet = np.asarray(findings.contact_sheet([(wide, "wide", "row 1")]))
    dark = (sheet[:160] == 0).all(-1)
    assert dark.any(0).sum() == 156 and dark.any(1).sum() == 52


@pytest.mark.parametrize("flags", [["--rows", "-1"], ["--resolution", "0"], ["--caption_dropout", "2"]])
def test_wrong_flags_are_refused(file_list, flags):
    with pytest.raises(InputError, match=flags[0].lstrip("-")):
        inspect.main([file_list, *flags])


def test_a_missing_list_ends_with_one_line_and_exit_code_2():
    command = [sys.executable, "-m", "sd.data.inspect", "nowhere.filelist.list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "nowhere.filelist.list" in done.stderr


def test_buckets_are_counted_and_shown_at_their_shapes(tmp_path, capsys):
    from tests.bucket_maker import SIZES, make_pictures

    name = make_pictures(tmp_path / "pictures", [[*SIZES] * 4 + [SIZES[0]] * 3])
    sheet = tmp_path / "sheet.png"
    inspect.main([name, "--resolution", "32", "--aspect_buckets", "3", "--side_multiple", "8", "--output", str(sheet)])
    reported = capsys.readouterr().out
    assert "usable at 32 px: 15 (100.0%)" in reported and sheet.is_file()
    assert "bucket 24x40: 7 rows (46.7%)" in reported and "bucket 40x24: 4 rows (26.7%)" in reported
    inspect.main(
        [name, "--resolution", "32", "--aspect_buckets", "24x40,32x32", "--aspect_group_size", "5", "--samples", "0"]
    )
    reported = capsys.readouterr().out
    assert "bucket 32x32 has 4 rows, fewer than a group of 5 samples: they go to 24x40" in reported
    with pytest.raises(InputError, match="side_multiple=0; expected at least 1"):
        inspect.main([name, "--aspect_buckets", "3", "--side_multiple", "0"])


@pytest.mark.parametrize("output", ["", ".", "/"])
def test_an_output_without_a_name_is_refused_before_any_row_is_read(output):
    with pytest.raises(InputError, match=r"output=.*; expected the path of a file"):
        inspect.main(["none.filelist.list", "--output", output])


@pytest.mark.parametrize(
    ("values", "bars"),
    [([1.0, 2.0, None], "█                      █"), ([1, 2], "█                      █"), ([-1.7e308, 1.7e308], "")],
)
def test_a_column_of_two_values_is_described(tmp_path, capsys, values, bars):
    """As the first pictures of a trial have them, or scores of which nearly all are missing."""
    with PartWriter(tmp_path / "part-000001.gz") as part:
        for row in range(len(values)):
            part.add(encode_row("a", jpeg(row)), 40, 40)
        part.columns = {"score": from_arrow(pa.array(values))}
    inspect.main([write_lists(tmp_path, (1.0, [tmp_path / "part-000001.gz"])), "--resolution", "32", "--samples", "0"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("score"))
    assert line.endswith(f"100%: {max(filter(None, values)):.4g}  {bars}".rstrip())
