"""Rows: the writer and the reader are inverses, every known format is read, and what is wrong is said."""

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd.data.parts.record import (
    RowError,
    clean_caption,
    decode_row,
    encode_captions_row,
    encode_named_row,
    encode_row,
)

captions = st.text(st.characters(exclude_categories=["Cs"]))
IMAGE = b"\x89PNG bytes"
IMAGE64 = base64.b64encode(IMAGE)


@given(captions, st.binary(min_size=1))
def test_decode_is_the_inverse_of_encode(caption, image):
    record = decode_row(encode_row(caption, image))
    assert record.image == image
    assert record.captions == (clean_caption(caption),)


@given(st.lists(captions.map(lambda text: text.replace("|", "/")), min_size=1, max_size=4), st.binary(min_size=1))
def test_several_captions_come_back_too(several, image):
    record = decode_row(encode_captions_row(several, image))
    assert record.image == image
    assert record.captions == tuple(map(clean_caption, several))


@given(st.text())
def test_a_clean_caption_keeps_its_length_and_is_one_field_of_one_line(caption):
    cleaned = clean_caption(caption)
    assert len(cleaned) == len(caption)
    assert "\t" not in cleaned
    assert cleaned.splitlines() in ([cleaned], [])


@pytest.mark.defect(8)
def test_defect_08_tab_newline_and_empty_caption_keep_the_row():
    row = encode_row("two\tfields\nand lines\r", IMAGE)
    assert row.count(b"\n") == 1
    assert decode_row(row).captions == ("two fields and lines ",)
    assert decode_row(encode_row("", IMAGE)).captions == ("",)


@given(st.binary())
def test_any_bytes_give_a_record_or_a_row_error(line):
    with contextlib.suppress(RowError):
        assert decode_row(line).image


def test_the_bytes_of_a_row_are_those_of_the_reference_layout():
    assert encode_row("a cat", IMAGE) == b"a cat\tNONE\t" + IMAGE64 + b"\n"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"caption_en": "one", "blip_caption_en": "two"}, "one"),
        ({"blip_caption_en": "two"}, "two"),
        ({"caption_en": None, "blip_caption_en": "two"}, "two"),
    ],
)
def test_laion_aes_rows_are_read(texts, expected):
    line = b"\t".join([b"0", b"x|y", json.dumps(texts).encode(), b"", b"", IMAGE64, b"more"])
    assert decode_row(line).captions == (expected,)
    assert decode_row(line).image == IMAGE


def test_six_field_rows_hold_several_captions():
    line = b"\t".join([b"0", b"one|two|three", b"", b"", b"", IMAGE64]) + b"\r\n"
    assert decode_row(line).captions == ("one", "two", "three")


def test_text_that_is_not_utf8_is_read_as_gb18030():
    assert decode_row("红色的圆".encode("gb18030") + b"\tNONE\t" + IMAGE64).captions == ("红色的圆",)
    with pytest.raises(RowError, match="neither UTF-8 nor gb18030"):
        decode_row(b"\xff\xff\tNONE\t" + IMAGE64)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "1 fields, expected 3 or 6"),
        (b"caption\t" + IMAGE64, "2 fields"),
        (b"a\tNONE\t", "the image is empty"),
        (b"a\tNONE\tabc", "not base64"),
        (b"a\tNONE\tab!d", "not base64"),
        (b"\t\t{not json\t\t\t" + IMAGE64, "not JSON"),
        (b'\t\t{"caption_en": 3}\t\t\t' + IMAGE64, "neither 'caption_en' nor"),
    ],
)
def test_a_bad_row_has_its_reason(line, message):
    with pytest.raises(RowError, match=message):
        decode_row(line)


# -- rows of several captions by name -------------------------------------------------------------------------------

sources = st.text('ab_ 红|"\\,', min_size=1)
named = st.dictionaries(sources, st.lists(captions, min_size=1, max_size=3), min_size=1, max_size=4)


def read_by_the_reference(row, filename="out/laion400m_format_data/part-000001.gz"):
    """(caption, image) as `parse_line` of PaddleMIX's sd/text_image_pair_dataset.py takes them."""
    vec = row.decode("utf-8").strip().split("\t")
    assert "laion_aes" not in filename and "laion400m" in filename
    caption, _, img_b64 = vec[:3]
    return caption, base64.b64decode(img_b64)


@given(named, st.binary(min_size=1))
def test_named_captions_come_back_with_their_sources(texts, image):
    pairs = [(source, text) for source, several in texts.items() for text in several]
    row = encode_named_row(pairs, image)
    record = decode_row(row)
    assert record.image == image and row.count(b"\n") == 1
    assert record.captions == tuple(clean_caption(text) for _, text in pairs)
    assert record.sources == tuple(source for source, _ in pairs)
    assert decode_row(encode_captions_row(record.captions, image, record.sources)) == record


@given(named, st.binary(min_size=1))
def test_the_reference_reads_the_first_caption_of_a_named_row(texts, image):
    pairs = [(source, text) for source, several in texts.items() for text in several]
    first = clean_caption(pairs[0][1])
    if first.strip():  # the reference loses rows whose caption is empty
        assert read_by_the_reference(encode_named_row(pairs, image)) == (first.lstrip(), image)


def test_the_reference_would_lose_a_row_of_six_fields_in_the_packed_folder():
    row = encode_captions_row(["one", "two"], IMAGE)
    assert row.startswith(b"NONE\tone|two\t")
    assert read_by_the_reference(row) == ("NONE", base64.b64decode("NONE"))


def test_a_bar_in_a_caption_cuts_nothing():
    texts = ["a | b", "tags|more"]
    assert decode_row(encode_named_row([("caption", texts[0]), ("tags", texts[1])], IMAGE)).captions == tuple(texts)
    assert decode_row(encode_captions_row(texts, IMAGE)).captions == tuple(texts)
    assert decode_row(encode_row("a | b", IMAGE)).captions == ("a | b",)


def test_rows_without_names_are_of_the_usual_source():
    for row in (encode_row("a", IMAGE), encode_captions_row(["a", "b"], IMAGE)):
        assert set(decode_row(row).sources) == {"caption"}
    other = b'a\t{"url": "http://x"}\t' + IMAGE64  # of another program
    assert decode_row(other).captions == ("a",)


@pytest.mark.parametrize("text", ['{"captions":', '{"captions":{}}', '{"captions":{"a":[1]}}', '{"captions":[1]}'])
def test_a_damaged_field_of_captions_is_reported(text):
    with pytest.raises(RowError, match="the second field does not hold captions"):
        decode_row(b"a\t" + text.encode() + b"\t" + IMAGE64)
