"""Damaged rows and parts on their way through TextImagePair: replaced, counted, named, and never a hang."""

import base64
import gzip
import io
import json
import logging
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sd.data.parts.part import PartError, PartWriter, load_index
from sd.data.parts.record import encode_row
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.dataset import TextImagePair
from sd.errors import InputError, RunError
from tests.data.streaming.test_dataset import batches, joined
from tests.data_maker import SIDE, caption, jpeg, make_data, tokenize, untokenize, write_lists

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def dataset(file_list, **changed):
    options = {
        "resolution": 32,
        "batch_size": 4,
        "lanes": 2,
        "deal_size": 4,
        "buffer_size": 10,
        "caption_dropout": 0.0,
        "max_bad_fraction": 0.5,
    }
    return TextImagePair(file_list, tokenize, **(options | changed))


def png_of_100_megapixels():
    """100 megapixels in a few hundred kilobytes, black, written without ever holding them."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    packer = zlib.compressobj(9)
    line = bytes(1 + 3 * 10_000)
    data = b"".join(packer.compress(line) for _ in range(10_000)) + packer.flush()
    head = (10_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def row(number, image=None):
    return encode_row(caption(0, number), image or jpeg(number))


BAD_ROWS = {
    "bad base64": lambda: b"caption\tNONE\t@@@@\n",
    "no image": lambda: row(0, b"this is no image"),
    "cut image": lambda: row(0, jpeg(0)[: len(jpeg(0)) // 2]),
    "two fields": lambda: b"caption\tNONE\n",
    "empty image": lambda: b"caption\tNONE\t\n",
    "100 megapixels": lambda: row(0, png_of_100_megapixels()),
    "smaller than the index says": lambda: row(0, jpeg(0, 20, 20)),
    "a picture format nobody asked for": lambda: row(0, ppm()),
    "a line of 80 MiB": lambda: row(0, bytes(60 << 20)),
}


def ppm():
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(buffer, "PPM")
    return buffer.getvalue()


def part_with(folder, bad_row, at, num_rows=40):
    """A part whose index believes all its rows to be good."""
    path = Path(folder) / "part-000000.gz"
    with PartWriter(path) as part:
        for number in range(num_rows):
            part.add(bad_row if number == at else row(number), SIDE, SIDE)
    return write_lists(folder, (1, [path]))


@pytest.mark.defect(11)
@pytest.mark.parametrize("kind", BAD_ROWS)
def test_defect_11_a_bad_row_is_named_and_the_next_of_its_window_takes_its_place(tmp_path, caplog, kind):
    data = dataset(part_with(tmp_path, BAD_ROWS[kind](), 17))
    place = next(s for s in range(60) if data.order.position(s) == (0, 17))
    substitute = list(data.order.candidates(place))[1]
    with caplog.at_level(logging.WARNING):
        actual = joined(batches(data, 10))
    assert "bad row replaced: part-000000.gz row 18: " in caplog.text
    rows = {int(s): tuple(p) for s, p in zip(actual["sample"], actual["position"], strict=True)}
    expected = {s: data.order.position(s) for s in range(40)} | {place: substitute}
    assert rows == expected
    names = {int(s): untokenize(ids) for s, ids in zip(actual["sample"], actual["input_ids"], strict=True)}
    assert names[place] == caption(0, substitute[1])


@pytest.mark.defect(11)
def test_defect_11_replacements_do_not_depend_on_ranks_and_workers(tmp_path):
    name = part_with(tmp_path, BAD_ROWS["no image"](), 17)
    reference = joined(batches(dataset(name), 20))
    assert 17 not in reference["position"][:, 1]
    for num_workers in (1, 2):
        np.testing.assert_array_equal(
            joined(batches(dataset(name), 20, num_workers=num_workers))["position"], reference["position"]
        )
    ranks = [batches(dataset(name, rank=rank, world_size=2), 10, num_workers=rank) for rank in (0, 1)]
    np.testing.assert_array_equal(joined(ranks[0] + ranks[1])["position"], reference["position"])


@pytest.mark.defect(11)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_defect_11_too_many_bad_rows_end_the_run(tmp_path, num_workers):
    path = tmp_path / "part-000000.gz"
    with PartWriter(path) as part:
        for number in range(40):
            part.add(row(number, None if number % 4 else b"no image"), SIDE, SIDE)
    data = dataset(write_lists(tmp_path, (1, [path])), max_bad_fraction=0.2)
    with pytest.raises(RunError, match=r"rows read by this worker are bad.*part-000000.gz row \d+: not an image") as e:
        batches(data, 40, num_workers=num_workers)
    assert "\n" not in str(e.value)
    assert len(batches(dataset(write_lists(tmp_path, (1, [path])), max_bad_fraction=0.3), 40)) == 40


def test_other_failures_arrive_whole_instead_of_hanging(tmp_path):
    def broken(text):
        raise KeyError("no such token")

    data = TextImagePair(make_data(tmp_path, [20]), broken, resolution=32, batch_size=4)
    for num_workers in (0, 2):
        with pytest.raises(RunError, match="no such token"):
            batches(data, 1, num_workers=num_workers)


def cut(path, num_bytes):
    path.write_bytes(path.read_bytes()[:num_bytes])


def cut_in_a_member(path, index):
    cut(path, int(index.offsets[12]) - 100)


def cut_between_members(path, index):
    cut(path, int(index.offsets[12]))


def flip_a_bit(path, index):
    data = bytearray(path.read_bytes())
    data[int(index.offsets[12]) + 200] ^= 4
    path.write_bytes(data)


def without_bytes(path, index):
    path.write_bytes(b"")


def missing(path, index):
    path.unlink()


def rewritten_as_a_bomb(path, index):
    """1000:1 and more: 200 MB of one letter in 200 KB, and no newline."""
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(200):
            file.write(b"a" * (1 << 20))


# damage -> how many of the part's 20 rows are left, with our index and without any
DAMAGES = {
    cut_in_a_member: (11, 11),
    cut_between_members: (12, 12),
    flip_a_bit: (19, 12),
    without_bytes: (0, 0),
    missing: (0, 0),
    rewritten_as_a_bomb: (0, 0),
}


@pytest.mark.defect(11)
@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_defect_11_a_damaged_part_is_named_and_the_others_are_read(tmp_path, caplog, damage, with_index):
    name = make_data(tmp_path, [20, 20, 20])
    part = tmp_path / "part-000001.gz"
    damage(part, load_index(part))
    if not with_index:
        part.with_name(part.name + ".idx").unlink()
    with caplog.at_level(logging.WARNING):
        actual = joined(batches(dataset(name), 15))
    assert "part-000001.gz" in caplog.text
    left = DAMAGES[damage][0 if with_index else 1]
    rows = {tuple(place) for place in actual["position"].tolist()}
    assert {r for p, r in rows if p == 1} <= set(range(20)) and len({r for p, r in rows if p == 1}) <= left
    assert len([r for p, r in rows if p != 1]) >= 30
    with pytest.raises((InputError, RunError), match="max_bad_fraction"):
        batches(dataset(name, max_bad_fraction=0.01), 15)


def test_a_damaged_index_excludes_its_part_and_is_reported(tmp_path, caplog):
    name = make_data(tmp_path, [20, 20])
    index = tmp_path / "part-000001.gz.idx"
    index.write_bytes(index.read_bytes()[:500])
    with caplog.at_level(logging.WARNING):
        data = dataset(name)
    assert data.num_usable == 20 and "part-000001.gz.idx" in caplog.text


def six_fields(number):
    return b"\t".join([b"id", b"first %d|second %d" % (number, number), b"", b"", b"", base64.b64encode(jpeg(number))])


def aesthetic(number):
    fields = json.dumps({"caption_en": caption(0, number), "other": 1}).encode()
    return b"\t".join([b"id", b"x", fields, b"", b"", base64.b64encode(jpeg(number))])


def chinese(number):
    return "红色的圆".encode("gb18030") + b"\tNONE\t" + base64.b64encode(jpeg(number))


@pytest.mark.parametrize("packed", ["gzip stream", "plain"])
@pytest.mark.parametrize(
    ("make_row", "expected"),
    [
        (lambda n: row(n)[:-1], lambda n: {caption(0, n)}),
        (aesthetic, lambda n: {caption(0, n)}),
        (six_fields, lambda n: {f"first {n}", f"second {n}"}),
        (chinese, lambda n: {"红色的圆"}),
    ],
)
def test_foreign_parts_of_every_row_format_are_read(tmp_path, own_cache, packed, make_row, expected):
    path = tmp_path / ("part-000000.gz" if packed == "gzip stream" else "part-000000")
    text = b"\n".join(make_row(number) for number in range(24)) + b"\n"
    path.write_bytes(gzip.compress(text) if packed == "gzip stream" else text)
    name = write_lists(tmp_path, (1, [path]))
    actual = joined(batches(dataset(name), 24, num_workers=2))
    seen = {}
    for ids, (_, number) in zip(actual["input_ids"], actual["position"].tolist(), strict=True):
        seen.setdefault(number, set()).add(untokenize(ids))
    assert sorted(seen) == list(range(24))
    for number, captions in seen.items():
        assert captions <= expected(number)
    if make_row is six_fields:
        assert any(len(captions) == 2 for captions in seen.values())
    copies = list((own_cache / "sd_parts").glob("*.part"))
    assert len(copies) == (packed == "gzip stream")


def test_a_missing_part_is_a_part_error(tmp_path):
    with pytest.raises(PartError, match="no such part"):
        load_index(tmp_path / "nothing.gz")


def test_out_of_memory_is_not_a_damaged_image(tmp_path, monkeypatch):
    """It would count against --max_bad_fraction, and the row would be replaced."""
    from sd.data.images import decode
    from sd.data.images import open as images
    from sd.data.streaming.stream import raise_if_failed

    def full(*arguments, **options):
        raise MemoryError

    for owner, name in ((images.Image, "open"), (images.Image.Image, "load")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(MemoryError):
                images.load(images.open_image(jpeg(0)).image)
    data = dataset(make_data(tmp_path, [20]))
    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", full)
    with pytest.raises(RunError, match="a data worker ran out of memory; fewer --dataloader_num_workers"):
        raise_if_failed(next(iter(data)))


@pytest.mark.parametrize("data_filter", [None, "width > 0"])
def test_a_picture_of_few_pixels_is_small_and_not_bad(tmp_path, caplog, data_filter):
    """Lines between paragraphs and the single pixels that count visitors, as crawls of the web have them."""
    sizes = [(SIDE, SIDE)] * 3 + [(468, 3), (1, 1), (7, 900)] + [(0, 0)]
    with PartWriter(tmp_path / "part-000001.gz") as part:
        for number, (width, height) in enumerate(sizes):
            part.add(row(number, jpeg(number, width, height) if width else b"no image"), width, height)
    file_list = write_lists(tmp_path, (1.0, [tmp_path / "part-000001.gz"]))
    caplog.set_level(logging.WARNING)
    catalog = Catalog(file_list, 32, max_bad_fraction=1 / 7, data_filter=data_filter)
    assert (catalog.num_rows, catalog.num_usable, catalog.num_bad) == (7, 3, 1)
    assert "3 of 7 images are smaller than 32 px and left out" in caplog.text
    enlarged = Catalog(file_list, 32, max_bad_fraction=1 / 7, data_filter=data_filter, enlarge=True)
    assert (enlarged.num_usable, enlarged.num_bad) == (6, 1)
    with pytest.raises(InputError, match="about 1 of 7 rows are bad"):
        Catalog(file_list, 32, max_bad_fraction=0.1)
