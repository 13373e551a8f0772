"""Text of unknown encoding: one decoder for captions, tables, prompt files and file lists, whoever wrote them."""

import codecs
import re

# Longest marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_BREAK = re.compile(r"\r\n|\n|\r")
_ASCII_LETTER = re.compile("[A-Za-z]")
_NOT_ASCII = re.compile(r"(?<![A-Za-z])[^\x00-\x7f]|[^\x00-\x7f](?![A-Za-z])")


class TextError(ValueError):
    """Bytes that are no text, or text of an encoding that cannot be known. The message is one line."""


def decode_text(data: bytes) -> str:
    """UTF-8 with or without a byte order mark, UTF-16 or UTF-32 with one, else gb18030; the mark is left out.

    Raises TextError for what is none of them, for NUL characters (UTF-16 without a mark), and for bytes that are as
    likely Windows-1252 as gb18030, which nothing but a reader can tell apart.
    """
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    try:
        text = data.decode(encoding or "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if encoding:
            raise TextError(f"byte {error.start} is not {encoding.upper()}, as the byte order mark says") from None
        text = _decode_gb18030(data, error.start)
    if "\0" in text:
        raise TextError("NUL characters: not text, or UTF-16 without a byte order mark; convert it to UTF-8")
    return text


def text_lines(data: bytes) -> list[str]:
    """Decoded lines of a text file, ended as on Unix, Windows or old Macs; other separators of Unicode end none.

    Raises TextError.
    """
    return split_lines(decode_text(data))


def split_lines(text: str) -> list[str]:
    """Lines of a text, ended as on Unix, Windows or old Macs; other separators of Unicode end none."""
    return _LINE_BREAK.split(text)


def check_characters(text: str) -> None:
    """Raise TextError for what no text file can hold: half of a surrogate pair, as a cut JSON string ends in, or a byte
    of a command line that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = (
            f"byte {code - 0xDC00:#x}, which is not UTF-8" if 0xDC80 <= code <= 0xDCFF else f"half of one, U+{code:X}"
        )
        raise TextError(f"character {error.start + 1} is {what}; take it out or write it in UTF-8") from None


def unquoted(field: str) -> str:
    """A field of a TSV: one wholly in quotation marks loses them; a bare one, common in captions, stays."""
    return field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field


def _decode_gb18030(data, not_utf8):
    try:
        text = data.decode("gb18030")
    except UnicodeDecodeError:
        raise TextError(f"neither UTF-8 nor gb18030 (byte {not_utf8} is not UTF-8); convert it to UTF-8") from None
    others = [char for char in text if not char.isascii()]
    common = sum(map(_is_common_chinese, _NOT_ASCII.findall(text)))
    if _ASCII_LETTER.search(text) and 2 * common < len(others):
        raise TextError("neither UTF-8 nor plainly gb18030 (Windows-1252?); convert it to UTF-8")
    return text


def _is_common_chinese(char):
    """Whether gb18030 has the character among GB2312's symbols and 3,755 most common ideographs, or in four bytes.

    A letter with an accent of Windows-1252 and the letter behind it make a rare ideograph, one alone in a Latin word:
    `Stra\\xdfe` becomes one of 7,000 that no other text holds.
    """
    code = char.encode("gb18030")
    return len(code) == 4 or (code[1] >= 0xA1 and (0xA1 <= code[0] <= 0xA3 or 0xB0 <= code[0] <= 0xD7))
