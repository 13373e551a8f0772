"""Image files of every kind of pixels and with every kind of metadata: the same picture on every path, or a refusal."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from sd.data.images.decode import decode_image, shrink
from sd.data.images.open import FORMATS, image_size, open_image
from sd.data.parts.record import RowError
from tests.data.images.files import METADATA, MODES, TURNED, chunk, encoded, png_with, text_chunk


def shown_by_pillow(data):
    """What Pillow and NumPy make of a file, pixels whole and upright, transparency on white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) // 256).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        colours = np.asarray(image.convert("RGBA"), np.float64)
        share = colours[..., 3:] / 255
        return np.round(colours[..., :3] * share + 255 * (1 - share))
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", MODES)
def test_every_kind_of_pixels_is_shown_alike_on_every_path_or_refused(name):
    data = MODES[name]
    if Image.open(io.BytesIO(data)).mode in ("I", "F"):
        for path in (open_image, image_size, decode_image):
            with pytest.raises(RowError, match=r"pixels of no known range: mode [IF] of 32 bits; convert"):
                path(data)
        return
    try:
        expected = shown_by_pillow(data)
    except OSError as error:  # Pillow 12 does not read the YCbCr TIFF that it has written
        with pytest.raises(RowError, match=re.escape(str(error))):
            decode_image(data)
        return
    pixels = decode_image(data)
    assert pixels.dtype == np.uint8 and image_size(data) == pixels.shape[1::-1]
    assert np.abs(pixels.astype(int) - expected).max() <= (1 if "A" in name or "a" in name else 0)
    small, size = shrink(open_image(data), 16, 95)
    mean = np.asarray(Image.fromarray(expected.astype(np.uint8)).resize(size, Image.Resampling.BOX), int)
    assert np.abs(decode_image(small).astype(int) - mean).mean() < 25  # the same picture, not one inverted or white


@pytest.mark.parametrize("name", TURNED)
def test_metadata_before_and_after_the_pixels_turns_the_picture_on_every_path(name):
    data = TURNED[name]
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert shown.shape == (48, 32, 3)
    assert image_size(data) == (32, 48)
    np.testing.assert_array_equal(decode_image(data), shown)
    small, size = shrink(open_image(data), 16, 95)
    assert size == (16, 24) == Image.open(io.BytesIO(small)).size
    assert np.abs(decode_image(small)[:8].mean((0, 1)) - shown[:16].mean((0, 1))).max() < 12


@pytest.mark.parametrize("name", METADATA)
def test_what_cannot_be_read_is_refused_at_once_with_the_librarys_reason(name):
    data, reason = METADATA[name]
    for path in (open_image, image_size, decode_image):
        with pytest.raises(RowError, match=reason):
            path(data)


def test_damaged_exif_does_not_spoil_the_picture():
    data = png_with(before=[chunk(b"eXIf", b"no exif")])
    np.testing.assert_array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(png_with()))))


def test_the_transparent_value_of_16_bit_grey_is_white():
    grey = np.full((16, 16), 0x1234, np.uint16)
    grey[:4] = 0x8000
    data = png_with(encoded(Image.fromarray(grey)), before=[chunk(b"tRNS", struct.pack(">H", 0x8000))])
    pixels = decode_image(data)
    assert (pixels[:4] == 255).all() and (pixels[4:] == 0x12).all()


def test_text_after_the_pixels_keeps_the_orientation():
    data = png_with(behind=[text_chunk(b"Comment", b"a" * 100)])
    assert image_size(data) == (48, 32) and decode_image(data).shape == (32, 48, 3)


def test_a_truncated_png_with_text_after_the_pixels_is_refused():
    data = bytearray(png_with(behind=[text_chunk(b"Comment", b"words")]))
    at = data.index(b"IDAT") + 40
    data[at] ^= 0xFF
    with pytest.raises(RowError, match="the image cannot be decoded: broken data stream"):
        open_image(bytes(data))


def test_files_of_other_kinds_are_refused_with_their_first_bytes():
    with pytest.raises(RowError, match=r"not an image of JPEG.*: it begins with b'<html><body>403 '"):
        open_image(b"<html><body>403 Forbidden</body></html>")


def jpegs():
    """JPEGs of every kind that Pillow writes, and what stands in the headers of others."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8))
    options = [{"subsampling": kind} for kind in range(3)] + [{"progressive": True}, {"icc_profile": b"a profile"}]
    options += [{"comment": b"Orientation"}, {"restart_marker_blocks": 2}, {"keep_rgb": True}, {"exif": Image.Exif()}]
    files = [encoded(image, "JPEG", **option) for option in options]
    files += [encoded(image.convert(mode), "JPEG") for mode in ("L", "CMYK", "YCbCr")]
    several = io.BytesIO()
    image.save(several, "MPO", save_all=True, append_images=[image])
    return [*files, several.getvalue()]


def test_a_jpegs_header_is_read_as_pillow_reads_it():
    """In every kind of JPEG; where a byte of the header is another one, Pillow says the same or refuses the file."""
    plain = 0
    for data in jpegs():
        opened, image = open_image(data), Image.open(io.BytesIO(data))
        assert (opened.file_format, opened.mode, opened.size) == (image.format, image.mode, image.size)
        plain += opened.by_pillow is None
        if opened.by_pillow is None:
            for at in range(2, min(700, len(data)), 5):
                changed = bytearray(data)
                changed[at] ^= 1 + at % 255
                _same_or_refused(bytes(changed))
                _same_or_refused(data[:at])
    assert 7 <= plain < len(jpegs())


def _same_or_refused(data):
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:
        return
    try:
        opened = open_image(data)
    except RowError:
        return
    assert (opened.file_format, opened.mode) == (image.format, image.mode)
    if opened.by_pillow is None:
        assert opened.size == image.size and image.getexif().get(0x0112, 1) == 1


def grey_png(levels, num_bits, transparent):
    """A PNG of one line of grey of 2 or 4 bits, two or four pixels a byte, by the PNG specification."""
    per_byte = 8 // num_bits
    line = bytes(
        sum(level << 8 - num_bits * (place + 1) for place, level in enumerate(levels[at : at + per_byte]))
        for at in range(0, len(levels), per_byte)
    )
    header = struct.pack(">IIBBBBB", len(levels), 1, num_bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tRNS", struct.pack(">H", transparent)), (b"IDAT", zlib.compress(b"\0" + line)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in (*chunks, (b"IEND", b"")))


@pytest.mark.parametrize("num_bits", [2, 4])
def test_the_transparent_value_of_grey_of_few_bits_is_white(num_bits):
    """As optipng writes a logo: tRNS holds a value of the file's own bits, of which the lowest count."""
    levels, highest = [*range(4)], 2**num_bits - 1
    grey = [level * 255 // highest for level in levels]
    for transparent in levels:
        expected = [255 if level == transparent else value for level, value in zip(levels, grey, strict=True)]
        for stored in (transparent, transparent | 1 << num_bits):
            pixels = decode_image(grey_png(levels, num_bits, stored))
            assert pixels[0].tolist() == [[value] * 3 for value in expected]


def test_the_transparent_value_of_16_bit_colour_is_white():
    colours = [(0x1234, 0x5678, 0x9ABC), (0x3434, 0x7878, 0xBCBC), (0, 0, 0)]
    header = struct.pack(">IIBBBBB", 3, 1, 16, 2, 0, 0, 0)
    line = b"\0" + b"".join(struct.pack(">3H", *colour) for colour in colours)
    chunks = ((b"IHDR", header), (b"tRNS", struct.pack(">3H", *colours[0])), (b"IDAT", zlib.compress(line)))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in (*chunks, (b"IEND", b"")))
    assert decode_image(data)[0].tolist() == [[255] * 3, [0x34, 0x78, 0xBC], [0] * 3]


def grey_tiff(line, num_bits, photometric, width):
    """A TIFF of one line of grey by the TIFF 6.0 specification, little-endian, without compression."""
    tags = ((256, width), (257, 1), (258, num_bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1))
    tags = (*tags, (279, len(line)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    line += b"\0" * (len(line) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(line)) + line + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def test_grey_tiffs_of_12_bits_and_with_white_at_zero_are_shown_as_they_are_meant():
    values = struct.pack("<4H", 0, 0x4000, 0x8000, 0xFFFF)
    for photometric, expected in ((1, [0, 0x40, 0x80, 0xFF]), (0, [0xFF, 0xBF, 0x7F, 0])):
        assert decode_image(grey_tiff(values, 16, photometric, 4))[0, :, 0].tolist() == expected
    packed = bytes.fromhex("000400800fff")  # four values of 12 bits, the first in the highest bits
    assert decode_image(grey_tiff(packed, 12, 1, 4))[0, :, 0].tolist() == [0, 0x40, 0x80, 0xFF]
