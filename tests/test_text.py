"""Bytes of text in any encoding come back as they were written, or are refused; none comes back as another text."""

import json
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sd.text import TextError, check_characters, decode_text, text_lines

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"))
latin = st.text("abcdefghijklmnopqrstuvwxyz ABC,.àâäãåæçéèêëíîïñóôöõøùûüýÿß'\u2019\u201c\u201d\u2013", max_size=40)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@given(texts)
def test_what_names_its_encoding_comes_back(encoding, text):
    assert decode_text(text.encode(encoding)) == text


@given(texts)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_and_utf32_with_a_mark_are_read_in_either_byte_order(encoding, text):
    assert decode_text("\ufeff".encode(encoding) + text.encode(encoding)) == text


@given(st.text("的一是不了人我在有他这为之大来以个中上们", min_size=1), st.text("abc ,.T", max_size=9))
@example("国语", " Mandarin")
def test_chinese_in_gb18030_comes_back(chinese, ascii_text):
    text = chinese + ascii_text
    data = text.encode("gb18030")
    try:
        assert data.decode("utf-8")  # a few words are UTF-8 too
    except UnicodeDecodeError:
        assert decode_text(data) == text


@given(texts)
def test_gb18030_comes_back_or_is_refused(text):
    data = text.encode("gb18030")
    try:
        assert data.decode("utf-8") == decode_text(data).encode().decode()
    except UnicodeDecodeError:
        try:
            assert decode_text(data) == text
        except TextError as error:
            assert "plainly gb18030" in str(error)


@given(latin)
@example("Ein Mädchen läuft über die Straße")
@example("coração de mãe")
@example("it\u2019s a café")
@example("\u00e2\u2013\u2013")  # its bytes are UTF-8's for one sign
def test_western_europes_text_is_never_taken_for_chinese(text):
    data = f"a word {text}".encode("cp1252")
    try:
        assert data.decode("utf-8") == decode_text(data)  # a few words are UTF-8 too
    except UnicodeDecodeError:
        try:
            assert decode_text(data) == f"a word {text}"
        except TextError:
            assert not text.isascii()


@given(st.binary())
def test_any_bytes_are_text_or_a_text_error(data):
    try:
        assert "\0" not in decode_text(data)
    except TextError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a cat".encode("utf-16-le"), "NUL characters: not text, or UTF-16 without a byte order mark"),
        (b"\xff\xfea\x00b", "byte 4 is not UTF-16, as the byte order mark says"),
        (b"\xff\xff", "neither UTF-8 nor gb18030"),
    ],
)
def test_the_reason_names_the_remedy(data, message):
    with pytest.raises(TextError, match=message):
        decode_text(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.loads('"a \\ud83d cat"'), r"character 3 is half of one, U\+D83D; take it out"),
        (os.fsdecode(b"caf\xe9"), "character 4 is byte 0xe9, which is not UTF-8; "),
    ],
)
def test_what_is_no_character_is_named(text, message):
    with pytest.raises(TextError, match=message):
        check_characters(text)
    check_characters(json.loads('"a \\ud83d\\ude00 cat, \\u0000, \\uffff"'))


def test_lines_end_as_on_every_system():
    assert text_lines("\ufeffone\r\ntwo\nthree\rfour\u2028still four".encode()) == [
        "one",
        "two",
        "three",
        "four\u2028still four",
    ]
