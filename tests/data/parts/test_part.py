"""Parts: written and read back, by any reader of gzip; and each kind of damage has its own clear error."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sd.data.parts.gunzip import DamageError, ForwardReader
from sd.data.parts.part import PartError, PartReader, PartWriter, load_header, load_index
from sd.data.parts.record import RowError, encode_row
from sd.data.parts.scan import MAX_ROW_BYTES, scan_part


def image_bytes(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


SIZES = [(40, 30), (64, 64), (8, 200), (33, 31), (500, 300)]
ROWS = [encode_row(f"caption {n}", image_bytes(w, h, n)) for n, (w, h) in enumerate(SIZES)]


def write_part(path, rows=ROWS, sizes=SIZES, save_gzip=True):
    with PartWriter(path, save_gzip=save_gzip) as part:
        for row, size in zip(rows, sizes, strict=True):
            part.add(row, *size)
    return part.index


def read_all(path, index):
    with PartReader(path, index) as reader:
        return [reader.read(row) + b"\n" for row in range(index.num_rows)]


@pytest.fixture
def part(tmp_path):
    path = tmp_path / "part-000001.gz"
    write_part(path)
    return path


@pytest.fixture
def bare_part(part):
    (part.parent / "part-000001.gz.idx").unlink()
    return part


@pytest.mark.parametrize("save_gzip", [True, False])
@settings(max_examples=30, deadline=None)
@given(lines=st.lists(st.binary(max_size=300).map(lambda line: line.replace(b"\n", b" ") + b"\n"), max_size=6))
def test_reading_is_the_inverse_of_writing(tmp_path_factory, save_gzip, lines):
    path = tmp_path_factory.mktemp("part") / "part-000001"
    write_part(path, lines, [(0, 0)] * len(lines), save_gzip)
    assert read_all(path, load_index(path)) == lines
    data = gzip.decompress(path.read_bytes()) if save_gzip else path.read_bytes()
    assert data == b"".join(lines)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_part(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a.idx").read_bytes() == (tmp_path / "b.idx").read_bytes()


def test_the_index_holds_sizes_and_usable_rows(part):
    index, header = load_index(part), load_header(part)
    assert list(zip(index.widths.tolist(), index.heights.tolist(), strict=True)) == SIZES
    assert (index.part_bytes, index.layout, index.kind) == (part.stat().st_size, "members", "image")
    for resolution, expected in [(8, 5), (16, 4), (32, 2), (64, 2), (72, 1), (304, 0), (2040, 0)]:
        assert index.num_usable(resolution) == header.num_usable(resolution) == expected
    assert index.num_usable(31) == 3
    assert header.num_usable(31) is None
    assert header.num_usable(4096) is None
    assert header.num_rows == index.num_rows == 5
    assert header.checksum == index.checksum == scan_part(part).checksum


@pytest.mark.parametrize("order", [[4, 0, 3, 3, 1], [0, 2, 4]])
@pytest.mark.parametrize("make", ["ours", "plain", "single member", "no last newline"])
def test_rows_are_read_in_any_order_from_any_part(tmp_path, make, order):
    path = tmp_path / "part"
    if make == "ours":
        write_part(path)
    elif make == "plain":
        write_part(path, save_gzip=False)
    else:
        text = b"".join(ROWS)
        path.write_bytes(gzip.compress(text.rstrip(b"\n") if make == "no last newline" else text))
    with PartReader(path, load_index(path, tmp_path / "cache")) as reader:
        assert [reader.read(row) for row in order] == [ROWS[row].rstrip(b"\n") for row in order]


@pytest.mark.parametrize("make", ["single member", "plain", "ours"])
def test_a_part_without_index_is_scanned_once(tmp_path, bare_part, make, monkeypatch):
    if make == "single member":
        bare_part.write_bytes(gzip.compress(b"".join(ROWS)))
    elif make == "plain":
        bare_part.write_bytes(b"".join(ROWS))
    cache = tmp_path / "cache"
    index = load_index(bare_part, cache)
    assert index.layout == {"single member": "stream", "plain": "lines", "ours": "members"}[make]
    assert index.damage == ""
    assert read_all(bare_part, index) == ROWS
    assert list(zip(index.widths.tolist(), index.heights.tolist(), strict=True)) == SIZES

    monkeypatch.setattr("sd.data.parts.part.scan_part", lambda path: pytest.fail("scanned again"))
    assert load_index(bare_part, cache).lengths.tolist() == index.lengths.tolist()
    assert load_header(bare_part, cache).num_usable(64) == 2


def test_a_changed_foreign_part_is_scanned_again(tmp_path, bare_part):
    assert load_index(bare_part, tmp_path / "cache").num_rows == 5
    bare_part.write_bytes(gzip.compress(b"".join(ROWS[:3])))
    assert load_index(bare_part, tmp_path / "cache").num_rows == 3


def test_where_the_cache_folder_takes_nothing_the_index_is_made_in_each_run(tmp_path, bare_part, monkeypatch, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setattr("sd.data.parts.part._unsaved_indexes", {})
    scans = []
    monkeypatch.setattr("sd.data.parts.part.scan_part", lambda path: scans.append(path) or scan_part(path))
    for _ in range(3):
        assert load_index(bare_part, tmp_path / "cache").num_rows == len(ROWS)
        assert load_header(bare_part, tmp_path / "cache").num_rows == len(ROWS)
    [line] = caplog.messages
    assert str(tmp_path / "cache") in line and "indexes of parts are rebuilt in each run" in line
    assert scans == [bare_part]  # once within a run


def test_a_damaged_cached_index_is_rebuilt(tmp_path, bare_part):
    before = load_index(bare_part, tmp_path / "cache").to_bytes()
    [stored] = (tmp_path / "cache").iterdir()
    for damaged in (b"", before[:2000], before[:-1] + b"?"):
        stored.write_bytes(damaged)
        assert load_index(bare_part, tmp_path / "cache").to_bytes() == before == stored.read_bytes()


def test_a_scan_marks_bad_rows_with_size_zero(tmp_path):
    path = tmp_path / "part"
    path.write_bytes(ROWS[0] + b"two\tfields\n" + b"a\tNONE\tAAAA\n" + b"\n" + ROWS[1])
    index = load_index(path, tmp_path)
    assert index.widths.tolist() == [40, 0, 0, 0, 64]
    assert index.num_usable(1) == 2


# -- damage ---------------------------------------------------------------------------------------------------------


def cut(path, num_bytes):
    path.write_bytes(path.read_bytes()[:num_bytes])


def test_an_indexed_part_cut_in_a_member_loses_only_later_rows(part):
    index = load_index(part)
    cut(part, int(index.offsets[3]) + 100)
    with PartReader(part, load_index(part)) as reader:
        assert [reader.read(row) + b"\n" for row in range(3)] == ROWS[:3]
        for row in (3, 4):
            with pytest.raises(RowError, match="cut: the part ends before this row"):
                reader.read(row)


def test_a_part_without_index_cut_in_a_member_names_the_row(bare_part, tmp_path):
    cut(bare_part, int(scan_part(bare_part).offsets[3]) + 100)
    index = load_index(bare_part, tmp_path / "cache")
    assert index.damage == "cut in the middle of gzip data, after row 3"
    assert read_all(bare_part, index) == ROWS[:3]


def test_a_part_without_index_cut_between_members_is_detected(bare_part, tmp_path):
    for num_rows in (5, 2, 1):
        cut(bare_part, int(scan_part(bare_part).offsets[num_rows]))
        index = load_index(bare_part, tmp_path / "cache")
        assert index.damage == f"cut between rows: the end mark is missing, after row {num_rows}"
        assert read_all(bare_part, index) == ROWS[:num_rows]


@pytest.mark.parametrize("make", ["ours", "plain", "single member"])
def test_a_flipped_bit_is_found_in_its_row(tmp_path, make):
    path = tmp_path / "part"
    if make == "single member":
        path.write_bytes(gzip.compress(b"".join(ROWS), 0))
    else:
        write_part(path, save_gzip=make == "ours")
    index = load_index(path, tmp_path / "cache")
    data = bytearray(path.read_bytes())
    place = data.index(b"caption 2") + 9 if make != "ours" else int(index.offsets[2]) + 60
    data[place + 20] ^= 4
    path.write_bytes(data)
    with PartReader(path, index) as reader:
        with pytest.raises(RowError, match="damaged"):
            reader.read(2)
        if make != "single member":  # whose only checksum is that of the whole
            for row in (0, 1, 3, 4):
                assert reader.read(row) + b"\n" == ROWS[row]


def test_a_flipped_bit_in_a_foreign_part_ends_the_scan_with_a_reason(tmp_path):
    data = bytearray(gzip.compress(b"".join(ROWS)))
    data[len(data) // 2] ^= 4
    (tmp_path / "part").write_bytes(data)
    assert "damaged" in load_index(tmp_path / "part", tmp_path).damage


def test_an_empty_file_is_a_part_of_no_rows_with_damage(bare_part, tmp_path):
    bare_part.write_bytes(b"")
    index = load_index(bare_part, tmp_path / "cache")
    assert (index.num_rows, index.damage) == (0, "the file is empty")


def test_a_missing_part_is_named(part, tmp_path):
    index = load_index(part)
    part.unlink()
    with pytest.raises(PartError, match=r"part-000001\.gz: cannot be opened: No such file"), PartReader(part, index):
        pass
    for load in (load_index, load_header):
        with pytest.raises(PartError, match="nothing: no such part"):
            load(tmp_path / "nothing", tmp_path)


def test_a_damaged_index_is_named_with_the_remedy(part):
    path = part.with_name(part.name + ".idx")
    whole = path.read_bytes()
    for damaged in (b"", whole[:500], whole[:-1], whole[:40] + b"x" + whole[41:], whole[:-1] + b"x", b"x" * 2000):
        path.write_bytes(damaged)
        with pytest.raises(PartError, match=r"part-000001\.gz\.idx: .*; delete it"):
            load_index(part)
    path.write_bytes(whole[:8] + b"\x09\x00" + whole[10:])
    with pytest.raises(PartError, match="version 9"):
        load_header(part)


def test_the_index_of_another_part_gives_no_row(part, tmp_path):
    other = tmp_path / "other.gz"
    write_part(other, ROWS[::-1], SIZES[::-1])
    other.with_name("other.gz.idx").write_bytes(part.with_name(part.name + ".idx").read_bytes())
    with PartReader(other, load_index(other)) as reader:
        for row in (0, 1, 3, 4):
            with pytest.raises(RowError):
                reader.read(row)


def test_a_decompression_bomb_stops_at_the_limit(bare_part, tmp_path):
    bare_part.write_bytes(gzip.compress(ROWS[0] + bytes(MAX_ROW_BYTES + 1), 9))
    assert bare_part.stat().st_size < MAX_ROW_BYTES / 500
    index = load_index(bare_part, tmp_path / "cache")
    assert index.damage == "row 2 is longer than 64 MiB, after row 1"
    assert read_all(bare_part, index) == ROWS[:1]


def test_a_bomb_in_a_member_stops_at_the_limit(part):
    index = load_index(part)
    bomb = gzip.compress(bytes(MAX_ROW_BYTES + 1), 9)
    data = part.read_bytes()
    start, end = int(index.offsets[2]), int(index.offsets[3])
    assert len(bomb) > end - start
    part.write_bytes(data[:start] + bomb + data[end:])
    object.__setattr__(index, "lengths", np.array([*index.lengths[:2], len(bomb), *index.lengths[3:]]))
    with PartReader(part, index) as reader, pytest.raises(RowError, match="longer than 64 MiB"):
        reader.read(2)


# -- writing --------------------------------------------------------------------------------------------------------


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), PartWriter(tmp_path / "part-000001.gz") as part:
        part.add(ROWS[0])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.defect(9)
def test_defect_09_the_part_appears_last_and_whole(tmp_path, monkeypatch):
    seen = []
    real = Path.rename

    def watch(temporary, path):
        seen.append((Path(path).name, sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".tmp")))
        real(temporary, path)

    monkeypatch.setattr(Path, "rename", watch)
    write_part(tmp_path / "part-000001.gz")
    assert seen == [("part-000001.gz.idx", []), ("part-000001.gz", ["part-000001.gz.idx"])]


def test_a_stream_read_past_its_end_or_damage_says_so_however_often(tmp_path):
    (tmp_path / "whole").write_bytes(gzip.compress(b"abcdef"))
    with (tmp_path / "whole").open("rb") as file:
        reader = ForwardReader(file)
        assert [reader.read(6, 1), reader.read(6, 1), reader.read(0, 2)] == [b"", b"", b"ab"]
    (tmp_path / "cut").write_bytes(gzip.compress(b"abcdef" * 1000, 0)[:-100])
    with (tmp_path / "cut").open("rb") as file:
        reader = ForwardReader(file)
        for _ in range(2):
            with pytest.raises(DamageError, match="cut in the middle"):
                reader.read(6000, 1)
        assert reader.read(0, 2) == b"ab"
