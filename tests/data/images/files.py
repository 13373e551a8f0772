"""Image files as people have them: every mode of Pillow, EXIF and XMP in every place, and metadata that is refused."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageFilter

WIDTH, HEIGHT = 48, 32
_NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
_SMOOTH = Image.fromarray(_NOISE[..., :3]).filter(ImageFilter.GaussianBlur(4))
_ALPHA = Image.fromarray(_NOISE[..., 3]).filter(ImageFilter.GaussianBlur(4))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _image(mode):
    if mode.startswith("I;16"):
        values = np.asarray(_SMOOTH.convert("L")).astype(np.uint16) * 257
        order = ">u2" if mode.endswith("B") else "<u2"
        return Image.frombytes(mode, (WIDTH, HEIGHT), values.astype(order).tobytes())
    if mode in ("I", "F"):
        return Image.fromarray(np.asarray(_SMOOTH.convert("L")).astype(np.int32 if mode == "I" else np.float32) * 200)
    if mode == "LAB":
        return Image.frombytes(mode, (WIDTH, HEIGHT), _SMOOTH.tobytes())
    image = _SMOOTH
    if mode in ("LA", "PA", "RGBA"):
        image = image.copy()
        image.putalpha(_ALPHA)
    return image.convert(mode)


_SAVED = {
    "PNG": ("1", "L", "LA", "P", "I;16", "I;16B", "RGB", "RGBA"),
    "TIFF": (
        *("1", "L", "LA", "P", "PA", "I", "I;16", "I;16L", "I;16B", "F"),
        *("RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"),
    ),
    "JPEG": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("L", "LA", "P", "RGB", "RGBA", "RGBX", "HSV"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
}
MODES = {
    f"{kind} {mode}": encoded(_image(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
    for kind, modes in _SAVED.items()
    for mode in modes
}
MODES["PNG L tRNS a"] = encoded(_image("L"), transparency=100)
MODES["PNG 1 tRNS a"] = encoded(_image("1"), transparency=0)
MODES["PNG P tRNS a"] = encoded(_image("P"), transparency=3)
MODES["PNG RGB tRNS a"] = encoded(_image("RGB"), transparency=_SMOOTH.getpixel((5, 5)))
MODES["GIF P tRNS a"] = encoded(_image("P"), "GIF", transparency=3)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def text_chunk(keyword, data):
    return chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(data))


def png_with(png=None, before=(), behind=()):
    """A PNG with chunks before and behind its pixels."""
    png = png or encoded(_SMOOTH)
    return png[:33] + b"".join(before) + png[33:-12] + b"".join(behind) + png[-12:]


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


_EXIF = _exif(6).removeprefix(b"Exif\0\0")
_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)
_EXIF_CHUNK = chunk(b"eXIf", _EXIF)
_XMP_CHUNK = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _XMP)
_PROFILE_CHUNK = text_chunk(b"Raw profile type exif", b"\nexif\n%8d\n%b" % (len(_EXIF), _EXIF.hex().encode()))
_LARGE_TEXT = text_chunk(b"Comment", b"a" * (2 << 20))
_NO_IMAGE, _TOO_LARGE = "not an image of JPEG.*: ", "Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK"

TURNED = {
    "PNG eXIf before": png_with(before=[_EXIF_CHUNK]),
    "PNG eXIf behind": png_with(behind=[_EXIF_CHUNK]),
    "PNG XMP before": png_with(before=[_XMP_CHUNK]),
    "PNG XMP behind": png_with(behind=[_XMP_CHUNK]),
    "PNG raw profile before": png_with(before=[_PROFILE_CHUNK]),
    "PNG raw profile behind": png_with(behind=[_PROFILE_CHUNK]),
    "JPEG EXIF": encoded(_SMOOTH, "JPEG", exif=_exif(6)),
    "JPEG XMP": encoded(_SMOOTH, "JPEG", xmp=_XMP),
    "MPO EXIF": encoded(_SMOOTH, "MPO", save_all=True, append_images=[_SMOOTH], exif=_exif(6)),
    "WEBP EXIF": encoded(_SMOOTH, "WEBP", exif=_exif(6), lossless=True),
    "WEBP XMP": encoded(_SMOOTH, "WEBP", xmp=_XMP, lossless=True),
    "TIFF tag": encoded(_SMOOTH, "TIFF", exif=_exif(6)),
    "TIFF XMP": encoded(_SMOOTH, "TIFF", tiffinfo={700: _XMP}),
}
METADATA = {
    "text too large before": (png_with(before=[_LARGE_TEXT]), _NO_IMAGE + _TOO_LARGE),
    "text too large behind": (png_with(behind=[_LARGE_TEXT]), f"the image cannot be decoded: {_TOO_LARGE}"),
    "profile too large": (
        png_with(before=[chunk(b"iCCP", _LARGE_TEXT[8:-4])]),
        _NO_IMAGE + _TOO_LARGE,
    ),
    "header cut": (png_with()[:20], _NO_IMAGE + "Truncated File Read"),
    "header damaged": (
        png_with()[:16] + b"????" + png_with()[20:],
        _NO_IMAGE + "PNG opening failed. broken",
    ),
}
