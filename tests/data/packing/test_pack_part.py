"""One part: each row has one outcome with its reason, images are checked, filtered and shrunk as asked."""

import io
import json
import os
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from sd.data.packing.options import PackOptions
from sd.data.packing.part import Task, pack_part
from sd.data.packing.sources.choose import open_source
from sd.data.parts.part import PartReader, load_index
from sd.data.parts.record import decode_row
from sd.errors import InputError
from tests.pack_input import image_bytes


@pytest.fixture
def pack_lines(tmp_path):
    """Pack lines into one part. Returns the result and the packed Records."""
    folder = tmp_path / "input"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "good.png").write_bytes(image_bytes())
    (tmp_path / "secret.png").write_bytes(image_bytes(seed=9))

    def run(*lines, **flags):
        (folder / "data.jsonl").write_bytes(
            b"".join(line if isinstance(line, bytes) else to_line(line) for line in lines)
        )
        options = PackOptions(str(folder / "data.jsonl"), str(tmp_path), save_gzip_file=True, num_workers=1, **flags)
        source = open_source(options)
        path = str(tmp_path / f"part-{len(list(tmp_path.iterdir()))}.gz")
        result = pack_part(Task(path, [item for item, _ in source.items()], 1.0), source, options)
        index = load_index(path)
        with PartReader(path, index) as reader:
            records = [decode_row(reader.read(row)) for row in range(index.num_rows)]
        assert len(records) == result.num_packed == index.num_rows
        return result, records, index

    run.folder = folder
    return run


def to_line(fields):
    return fields if isinstance(fields, bytes) else json.dumps(fields).encode() + b"\n"


def row(name="images/good.png", caption="a caption"):
    return {"caption": caption, "image": name}


@lru_cache
def hundred_megapixels():
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def only_reason(result, outcome="bad"):
    [rejected] = result.rejected
    assert rejected["outcome"] == outcome
    return rejected["reason"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"[1, 2]\n", "not a JSON object"),
        ({"image": "images/good.png"}, "no key 'caption'"),
        ({"caption": "a"}, "no key 'image'"),
        (row(caption=None), "'caption' is not text"),
        (row(name=7), "'image' is not text"),
        (row("images/none.png"), "image missing"),
        (row("no/such/folder/none.png"), "image missing"),
        (row(""), "no image in the row"),
        (row("images"), "image cannot be read"),
        (row("images/pipe"), "image cannot be read"),
        (row("images/\0.png"), "image cannot be read"),
        (row("images/" + "long" * 100), "image cannot be read"),
        (row("images/text.png"), "not an image of JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        (row("images/icon.ico"), "not an image of JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        (row("images/empty.png"), "image file is empty"),
        (row("images/hundred_megapixels.png"), "too many pixels"),
        (row("images/huge.png"), "image file too large"),
    ],
)
def test_each_bad_row_has_its_reason_and_the_others_are_packed(pack_lines, line, reason):
    images = pack_lines.folder / "images"
    os.mkfifo(images / "pipe")
    (images / "text.png").write_text("no image")
    (images / "icon.ico").write_bytes(image_bytes(16, 16, image_format="ICO"))
    (images / "empty.png").write_bytes(b"")
    (images / "hundred_megapixels.png").write_bytes(hundred_megapixels())
    with (images / "huge.png").open("wb") as file:
        file.truncate(48 << 20)
    result, records, _ = pack_lines(row(), line, row(caption="last"))
    assert only_reason(result) == reason
    assert result.rejected[0]["line"] == 2
    assert [record.captions for record in records] == [("a caption",), ("last",)]


@pytest.mark.defect(10)
@pytest.mark.parametrize("name", ["../secret.png", "images/../../secret.png", "{absolute}", "link.png", "out/a.png"])
def test_defect_10_images_outside_the_folder_need_a_flag(pack_lines, tmp_path, name):
    (pack_lines.folder / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(image_bytes(seed=9))
    (pack_lines.folder / "out").symlink_to(tmp_path / "elsewhere")
    name = name.format(absolute=tmp_path / "secret.png")
    result, _, _ = pack_lines(row(name))
    assert only_reason(result) == "image outside the input's folder"
    _, [record], _ = pack_lines(row(name), allow_outside=True)
    assert record.image == image_bytes(seed=9)


def test_paths_and_links_inside_the_folder_are_followed(pack_lines):
    (pack_lines.folder / "link.png").symlink_to(pack_lines.folder / "images" / "good.png")
    absolute = str(pack_lines.folder / "images" / "good.png")
    _, records, _ = pack_lines(row("link.png"), row(absolute), row("images/../images/./good.png"))
    assert [record.image for record in records] == [image_bytes()] * 3


@pytest.mark.defect(10)
def test_defect_10_the_pixel_limit_is_a_flag(pack_lines):
    result, _, _ = pack_lines(row(), max_pixels=48 * 40 - 1)
    assert only_reason(result) == "too many pixels"
    result, _, _ = pack_lines(row(), max_pixels=48 * 40)
    assert result.num_packed == 1


@pytest.mark.defect(8)
def test_defect_08_captions_with_breaks_and_empty_ones_are_packed(pack_lines):
    _, records, _ = pack_lines(row(caption="tab\tnew\nline"), row(caption=""), row(caption="红\ud800"))
    assert [record.captions[0] for record in records] == ["tab new line", "", "红?"]


@pytest.mark.defect(7)
def test_defect_07_the_keys_are_those_of_the_flags(pack_lines):
    line = {"text": "right", "file": "images/good.png", "caption": "wrong", "image": "wrong"}
    _, [record], _ = pack_lines(line, caption_key="text", image_key="file")
    assert record.captions == ("right",)


def test_blank_lines_are_no_rows_and_numbers_are_those_of_the_file(pack_lines):
    result, _, _ = pack_lines(b"\xef\xbb\xbf", row(), b"\n", b"  \r\n", b"x")
    assert (result.num_packed, result.rejected[0]["line"]) == (1, 4)


def test_filters_take_out_but_are_not_bad(pack_lines):
    images = pack_lines.folder / "images"
    (images / "long.png").write_bytes(image_bytes(90, 30))
    flags = {"min_size": 40, "max_aspect_ratio": 2.0, "min_caption_length": 3}
    for name, caption, reason in [
        ("images/good.png", " ab ", "caption too short"),
        ("images/long.png", "a caption", "image too small"),
    ]:
        result, _, _ = pack_lines(row(name, caption), **flags)
        assert only_reason(result, "filtered") == reason
    result, _, _ = pack_lines(row("images/long.png"), max_aspect_ratio=2.9)
    assert only_reason(result, "filtered") == "aspect ratio too large"
    assert pack_lines(row("images/long.png"), max_aspect_ratio=3.0)[0].num_packed == 1
    assert pack_lines(row(), min_size=40)[0].num_packed == 1


def test_verify_checks_header_pixels_or_nothing(pack_lines):
    whole = image_bytes(200, 200, image_format="JPEG")
    (pack_lines.folder / "images" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (pack_lines.folder / "images" / "text.jpg").write_text("no image")
    _, _, index = pack_lines(row("images/cut.jpg"), verify="header")
    assert (index.widths[0], index.heights[0]) == (200, 200)
    result, _, _ = pack_lines(row("images/cut.jpg"), verify="decode")
    assert only_reason(result) == "the image cannot be decoded"
    _, [record], index = pack_lines(row("images/text.jpg"), verify="none")
    assert (record.image, index.num_usable(1)) == (b"no image", 0)


def test_shrinking_goes_only_downward(pack_lines):
    big = image_bytes(200, 100, image_format="PNG")
    (pack_lines.folder / "images" / "big.png").write_bytes(big)
    _, [small, same], index = pack_lines(row("images/big.png"), row(), resize=50, quality=80)
    assert same.image == image_bytes()
    assert (index.widths.tolist(), index.heights.tolist()) == ([100, 48], [50, 40])
    with Image.open(io.BytesIO(small.image)) as image:
        assert (image.format, image.size) == ("JPEG", (100, 50))
    _, [same], _ = pack_lines(row("images/big.png"), resize=100)
    assert same.image == big
    less = pack_lines(row("images/big.png"), resize=50, quality=30)[1][0]
    assert len(less.image) < len(small.image)


def test_shrinking_puts_transparency_on_white_and_keeps_16_bits_in_range(pack_lines):
    clear = Image.new("RGBA", (80, 80), (0, 0, 0, 0))
    clear.save(pack_lines.folder / "images" / "clear.png")
    Image.fromarray(np.full((80, 80), 0x80FF, np.uint16)).save(pack_lines.folder / "images" / "deep.png")
    _, records, _ = pack_lines(row("images/clear.png"), row("images/deep.png"), resize=40)
    for record, value in zip(records, (255, 128), strict=True):
        with Image.open(io.BytesIO(record.image)) as image:
            assert np.abs(np.asarray(image, int) - value).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_counts_in_the_index_and_is_applied_when_shrinking(pack_lines, orientation):
    corners = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)]  # from the top left, by row
    shown = np.zeros((80, 120, 3), np.uint8)
    shown[:40, :60], shown[:40, 60:], shown[40:, :60], shown[40:, 60:] = corners
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose that stores it so
    stored = Image.fromarray(shown)
    stored = stored if undo is None else stored.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(pack_lines.folder / "images" / "turned.jpg", exif=exif, quality=95)

    _, _, index = pack_lines(row("images/turned.jpg"))
    assert (index.widths[0], index.heights[0]) == (120, 80)
    _, [small], index = pack_lines(row("images/turned.jpg"), resize=40)
    assert (index.widths[0], index.heights[0]) == (60, 40)
    with Image.open(io.BytesIO(small.image)) as image:
        pixels = np.asarray(image, int)
    for (y, x), color in zip([(5, 5), (5, 55), (35, 5), (35, 55)], corners, strict=True):
        assert np.abs(pixels[y, x] - color).max() < 30


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"per_part_file_num": 0}, "per_part_file_num=0; expected at least 1"),
        ({"num_repeat": 0}, "num_repeat=0"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"max_aspect_ratio": 0.5}, "max_aspect_ratio=0.5"),
        ({"quality": 101}, "quality=101; expected at least 1 and at most 100"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction=1.5"),
        ({"output_name": "a/b"}, "output_name='a/b'"),
        ({"output_name": ""}, "output_name=''"),
        ({"verify": "none", "resize": 256}, "--verify none looks at no image"),
        ({"ray_address": "auto"}, "--ray_address auto needs --engine ray"),
    ],
)
def test_wrong_options_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        PackOptions("in.jsonl", "out", **flags)
