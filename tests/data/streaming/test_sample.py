"""Record to sample: pixels as Pillow would resize and crop them, rotation, odd image modes, captions, draws."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps

from sd.data.images.decode import Picture, decode, decode_image
from sd.data.images.open import open_image
from sd.data.images.resize import EARLIER_RESIZER, RESIZER, scaled_size
from sd.data.parts.record import Record, RowError
from sd.data.streaming.order import CAPTION, CROP, rng
from sd.data.streaming.sample import Framing, SampleMaker, centre_crop, choose_caption, random_crop, short_side
from sd.flags.arguments import INTERPOLATIONS
from tests.data_maker import draw, tokenize, untokenize

PILLOW = {
    "lanczos": Image.LANCZOS,
    "bicubic": Image.BICUBIC,
    "bilinear": Image.BILINEAR,
    "linear": Image.BILINEAR,
    "hamming": Image.HAMMING,
    "box": Image.BOX,
}


def picture(width, height, seed=0, kind="noise"):
    """Noise, a photograph's kind of smoothness, or hard black and white edges, where Lanczos overshoots most."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels)
    if kind == "smooth":
        return image.filter(ImageFilter.GaussianBlur(3))
    return image.filter(ImageFilter.GaussianBlur(4)).point(lambda v: 255 * (v > 127)) if kind == "edges" else image


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def resized_then_cropped(image, size, left, top, resolution, interpolation):
    """Pillow's result, first the height and then the width: by itself it turns the order round for some shapes."""
    if interpolation == "box":  # a pixel whose centre is an edge of two others is either one's, by rounding
        x, y = image.width / size[0], image.height / size[1]
        right, bottom = min(left + resolution, size[0]) * x, min(top + resolution, size[1]) * y
        box = (left * x, top * y, min(right, image.width), min(bottom, image.height))
        flat = image.resize((image.width, resolution), Image.BOX, box=(0, box[1], image.width, box[3]))
        part = flat.resize((resolution, resolution), Image.BOX, box=(box[0], 0, box[2], resolution))
        return np.asarray(part).transpose(2, 0, 1)
    flat = image.resize((image.width, size[1]), PILLOW[interpolation])
    whole = flat.resize(size, PILLOW[interpolation])
    return np.asarray(whole.crop((left, top, left + resolution, top + resolution))).transpose(2, 0, 1)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(["noise", "smooth", "edges"]),
    st.sampled_from(list(PILLOW)),
    st.integers(1, 120),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_pixels_equal_resize_then_crop_within_two_levels(width, height, kind, interpolation, resolution, where):
    image = picture(width, height, kind=kind)
    size = scaled_size(width, height, short_side(resolution))
    left, top = (int(at * (side - resolution)) for at, side in zip(where, size, strict=True))
    ours = Picture(image, image.size).crop(size, left, top, resolution, interpolation)
    pillow = resized_then_cropped(image, size, left, top, resolution, interpolation)
    assert ours.dtype == np.uint8 and ours.shape == (3, resolution, resolution)
    assert np.abs(ours.astype(int) - pillow).max() <= 2


@pytest.mark.parametrize("size", [(300, 700), (500, 375), (700, 700), (256, 400), (2000, 1500)])
def test_pixels_equal_resize_then_crop_at_real_sizes(size):
    image = picture(*size, kind="smooth")
    width, height = scaled_size(*size, short_side(256))
    ours = Picture(image, size).crop((width, height), 13, 20, 256)
    pillow = resized_then_cropped(image, (width, height), 13, 20, 256, "lanczos")
    assert np.abs(ours.astype(int) - pillow).max() <= 2
    assert (ours == pillow).mean() > 0.6


def test_nearest_takes_pixels_as_they_are():
    image = picture(60, 40)
    np.testing.assert_array_equal(
        Picture(image, (60, 40)).crop((120, 80), 10, 20, 50, "nearest"),
        np.asarray(image.resize((120, 80), Image.NEAREST).crop((10, 20, 60, 70))).transpose(2, 0, 1),
    )
    assert set(INTERPOLATIONS) == {*PILLOW, "nearest"}


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((500, 400), 256, (355, 284)),
        ((400, 500), 256, (284, 355)),
        ((256, 256), 256, (284, 284)),
        ((37, 1), 8, (296, 8)),
    ],
)
def test_the_short_side_becomes_resolution_over_nine_tenths(size, resolution, expected):
    assert scaled_size(*size, short_side(resolution)) == expected


def test_crops_are_uniform_over_every_position():
    """A 50 x 40 image at resolution 36 becomes 50 x 40: corners 0 to 14 and 0 to 4."""
    ramp = np.zeros((40, 50, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(50), np.arange(40)[:, None]
    ramp = Picture(Image.fromarray(ramp), (50, 40))
    corners = [random_crop(ramp, 36, "lanczos", rng(23, CROP, s))[:2, 0, 0] for s in range(3000)]
    counts = np.zeros((15, 5), int)
    np.add.at(counts, tuple(np.array(corners).T), 1)
    assert counts.sum() == 3000 and counts.min() >= 15 and counts.max() <= 70  # 40 expected, deviation 6.3
    np.testing.assert_array_equal(centre_crop(ramp, 36, "lanczos")[:2, 0, 0], [7, 2])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_honoured(kind, orientation):
    image = picture(60, 40, kind="smooth")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_image(data), np.asarray(shown))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"quality": 95, "subsampling": 0}, {"progressive": True}])
def test_jpeg_pixels_are_those_of_pillow(mode, options):
    data = encoded(picture(83, 61, kind="smooth").convert(mode), "JPEG", **options)
    np.testing.assert_array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 40), 200 * 257, np.uint16))
    else:
        image = Image.new("RGB", (40, 40), (200, 200, 200)).convert(mode)
    decoded = decode_image(encoded(image, kind))
    assert decoded.shape == (40, 40, 3)
    level = 255 if mode == "1" else 200
    assert np.abs(decoded.astype(int).mean((0, 1)) - level).max() <= (60 if mode == "1" else 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_formats_people_have_are_read(kind):
    decoded = decode_image(encoded(Image.new("RGB", (40, 30), (250, 10, 20)), kind))
    assert decoded.shape == (30, 40, 3) and np.abs(decoded.astype(int) - (250, 10, 20)).max() <= 6


def test_transparency_is_shown_on_white():
    image = Image.new("RGBA", (20, 20), (9, 9, 9, 0))
    image.putpixel((3, 4), (200, 100, 50, 255))
    decoded = decode_image(encoded(image))
    assert (decoded[0, 0] == 255).all() and decoded[4, 3].tolist() == [200, 100, 50]


@pytest.mark.parametrize("data", [b"", b"no image", encoded(picture(64, 64), "JPEG")[:900], b"\x89PNG\r\n\x1a\n" * 9])
def test_what_is_no_image_is_a_row_error(data):
    with pytest.raises(RowError, match="image"):
        decode_image(data)


def test_one_of_several_captions_is_drawn_and_dropout_has_its_rate():
    drawn = [choose_caption(("a", "b", "c", "d"), 0.2, rng(5, CAPTION, s)) for s in range(5000)]
    shares = {text: drawn.count(text) / 5000 for text in ("", "a", "b", "c", "d")}
    assert all(abs(share - 0.2) < 0.025 for share in shares.values()), shares


def test_a_sample_depends_on_its_number_and_seed_alone():
    record = Record(("one", "two"), encoded(picture(80, 60), "JPEG"))
    options = {"framing": Framing(32, "lanczos", 32), "caption_dropout": 0.1, "draw": draw}
    first, again, other = (SampleMaker(tokenize, seed=seed, **options) for seed in (1, 1, 2))
    for key, value in first.train(record, 7).items():
        np.testing.assert_array_equal(value, again.train(record, 7)[key])
    assert (first.train(record, 7)["noise"] != first.train(record, 8)["noise"]).all()
    assert (first.train(record, 7)["noise"] != other.train(record, 7)["noise"]).all()


def test_the_draws_do_not_depend_on_the_record():
    """So that training from cached latents, or with a bad row replaced, keeps its noise."""
    options = {"framing": Framing(32, "lanczos", 32), "caption_dropout": 0.1, "draw": draw, "seed": 3}
    maker = SampleMaker(tokenize, **options)
    one = maker.train(Record(("one",), encoded(picture(80, 60))), 7)
    other = maker.train(Record(("a", "b", "c"), encoded(picture(50, 90))), 7)
    np.testing.assert_array_equal(one["noise"], other["noise"])


def test_a_run_that_goes_on_cuts_its_pictures_as_it_began():
    """A picture of three times the size is halved for today's resizer, not for the earlier one."""
    image = encoded(picture(240, 192), "JPEG")
    expected = decode(open_image(image)).crop((88, 71), 12, 3, 64)
    for resizer, as_it_began in ((EARLIER_RESIZER, True), (RESIZER, False)):
        framing = Framing(64, "lanczos", 64, resizer=resizer)
        assert np.array_equal(framing.cut(framing.decode(image, None), None), expected) == as_it_began


def test_evaluation_takes_the_first_caption_and_the_middle():
    options = {"framing": Framing(32, "lanczos", 32), "caption_dropout": 1.0, "seed": 3}
    image = picture(80, 60)
    arrays = SampleMaker(tokenize, **options).evaluate(Record(("one", "two"), encoded(image)), 7, rng(0, 1))
    assert untokenize(arrays["input_ids"]) == "one" and arrays["sample"] == 7
    np.testing.assert_array_equal(arrays["pixel_values"], centre_crop(Picture(image, image.size), 32, "lanczos"))
