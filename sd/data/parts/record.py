"""A record and the line of a part that holds it. Knows bytes, not pixels."""

import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pybase64

from sd.text import TextError, decode_text

# What ends a line or a field for some reader or other (str.splitlines and the tab), a NUL, which ends a text, and a
# byte order mark; each becomes a space.
_BREAKS = str.maketrans(dict.fromkeys("\0\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\ufeff", " "))


UNNAMED = "caption"  # the packer's default key
_NAMED = b'{"captions":'


class RowError(ValueError):
    """A row that cannot be used. The message says what is wrong; who reads parts adds part and row."""


@dataclass(frozen=True)
class Record:
    """Captions (one of them is drawn at random) and the bytes of an image file.

    sources: the name of each caption's source, UNNAMED where the row does not say it.
    """

    captions: tuple[str, ...]
    image: bytes
    sources: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.sources:
            object.__setattr__(self, "sources", (UNNAMED,) * len(self.captions))


def clean_caption(caption: str) -> str:
    """The caption with tabs, line breaks, NULs and byte order marks as spaces, and `?` for what UTF-8 cannot hold."""
    return caption.translate(_BREAKS).encode("utf-8", "replace").decode("utf-8")


def encode_row(caption: str, image: bytes) -> bytes:
    """`caption TAB NONE TAB base64(image) NEWLINE`, the row that the packer writes."""
    return b"%b\tNONE\t%b\n" % (clean_caption(caption).encode(), pybase64.b64encode(image))


def encode_named_row(captions: Sequence[tuple[str, str]], data: bytes) -> bytes:
    """`caption TAB {"captions": {SOURCE: [TEXT, ...], ...}} TAB base64(image) NEWLINE`, of pairs (source, text).

    Readers of the packer's rows do not look at the second field, and take the first caption. Captions of one source
    have to follow each other.
    """
    named: dict[str, list[str]] = {}
    for source, text in captions:
        named.setdefault(source, []).append(clean_caption(text))
    text = json.dumps({"captions": named}, ensure_ascii=False, separators=(",", ":"))
    first = clean_caption(captions[0][1])
    return b"%b\t%b\t%b\n" % (first.encode(), clean_caption(text).encode(), pybase64.b64encode(data))


def encode_captions_row(captions: Sequence[str], data: bytes, sources: Sequence[str] = ()) -> bytes:
    """The row of a Record: as `encode_row` where it has one caption, with names where its captions have them, else the
    row of six fields."""
    if {*sources} - {UNNAMED} or (len(captions) > 1 and "|" in "".join(captions)):
        return encode_named_row(list(zip(sources or (UNNAMED,) * len(captions), captions, strict=True)), data)
    if len(captions) == 1:
        return encode_row(captions[0], data)
    joined = "|".join(map(clean_caption, captions)).encode()
    return b"NONE\t%b\tNONE\tNONE\tNONE\t%b\n" % (joined, pybase64.b64encode(data))


def decode_row(line: bytes) -> Record:
    """Read one row of any known format into a Record.

    - 3 fields: caption, anything, base64 of the image (what the packer writes). Where the second is an object
      `{"captions": {SOURCE: [TEXT, ...]}}`, its captions in the place of the first.
    - 6 fields or more whose third is a JSON object (laion_aes): `caption_en`, else `blip_caption_en`; the image is the
      sixth field.
    - 6 fields: the second holds captions separated by `|`, the sixth the image.

    Text is read as `decode_text` does. Raises RowError.
    """
    fields = _fields(line.rstrip(b"\r\n"))
    if len(fields) == 3 and fields[1].startswith(_NAMED):
        sources, captions = _named_captions(_text(fields[1]))
        return Record(captions, _image_bytes(fields[2]), sources)
    if len(fields) == 3:
        captions, image = (_text(fields[0]),), fields[2]
    elif len(fields) >= 6 and fields[2].lstrip().startswith(b"{"):
        captions, image = (_aesthetic_caption(_text(fields[2])),), fields[5]
    elif len(fields) == 6:
        captions, image = tuple(_text(fields[1]).split("|")), fields[5]
    else:
        raise RowError(f"{len(fields)} fields, expected 3 or 6")
    return Record(captions, _image_bytes(image))


def _fields(line):
    """The fields of a line, the last one, mostly the image, as a view: a copy of it takes as long as its base64."""
    last = line.rfind(b"\t") + 1
    return [*line[: last - 1].split(b"\t"), memoryview(line)[last:]] if last else [line]


def _text(field):
    try:
        return decode_text(field)
    except TextError as error:
        raise RowError(f"the caption is no text: {error}") from error


def _named_captions(text):
    """(source of each caption, captions) of the second field of a row of several."""
    try:
        named = [(source, text) for source, texts in json.loads(text)["captions"].items() for text in texts]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise RowError(f"the second field does not hold captions: {error}") from error
    if not named or not all(isinstance(caption, str) for _, caption in named):
        raise RowError("the second field does not hold captions: expected lists of texts")
    sources, captions = zip(*named, strict=True)
    return sources, captions


def _aesthetic_caption(text):
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"the third field is not JSON: {error}") from error
    for key in ("caption_en", "blip_caption_en"):
        if isinstance(fields.get(key), str):
            return fields[key]
    raise RowError("the third field has neither 'caption_en' nor 'blip_caption_en'")


def _image_bytes(field):
    try:
        image = pybase64.b64decode(field, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError(f"the image is not base64: {error}") from error
    if not image:
        raise RowError("the image is empty")
    return image
