"""Resizing and scaled decoding: within their bounds of Pillow's, safe at every edge, the same in any thread."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from sd.data.images import decode as decoding
from sd.data.images.decode import Picture, decode, shrink
from sd.data.images.open import open_image
from sd.data.images.resize import EARLIER_RESIZER, resize, scaled_size, to_planes
from sd.flags.arguments import INTERPOLATIONS
from tests.data.images.files import encoded


def scene(width, height, seed=0):
    """Detail at every scale, and shapes with hard edges of all colours."""
    rng, pixels = np.random.default_rng(seed), np.zeros((height, width, 3))
    for octave in range(1, 10):
        for channel in range(3):
            grid = Image.fromarray(rng.normal(size=(2**octave, 2**octave)).astype(np.float32))
            pixels[..., channel] += 112 * 0.65**octave * np.asarray(grid.resize((width, height), Image.BICUBIC))
    image = Image.fromarray(np.clip(128 + pixels, 0, 255).astype(np.uint8))
    brush = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, side = rng.integers(width), rng.integers(height), rng.integers(10, width // 4)
        brush.ellipse((x, y, x + side, y + side), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def by_pillow(image, size, box):
    """Lanczos of `box`, first the height."""
    left, top, right, bottom = box
    flat = image.resize((image.width, size[1]), Image.LANCZOS, box=(0, top, image.width, bottom))
    return np.asarray(flat.resize(size, Image.LANCZOS, box=(left, 0, right, size[1]))).astype(int)


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), st.sampled_from(INTERPOLATIONS),
    st.tuples(*[st.fractions(0, 1, max_denominator=12)] * 4),
)  # fmt: skip
def test_any_box_of_any_size_can_be_resized(width, height, new_width, new_height, interpolation, where):
    """Boxes whose edges meet those of the picture and of pixels are where weights are exactly zero."""
    image = Image.new("RGB", (width, height), (200, 100, 50))
    (left, right), (top, bottom) = (
        sorted(float(share * side) for share in shares) if shares[0] != shares[1] else (0, side)
        for shares, side in ((where[:2], width), (where[2:], height))
    )
    box = (left, top, right, bottom)
    resized = np.asarray(resize(image, (new_width, new_height), box, interpolation)).astype(int)
    assert resized.shape == (new_height, new_width, 3) and np.abs(resized - (200, 100, 50)).max() <= 1


@pytest.mark.parametrize(("scale", "least"), [(2, 2.1), (4, 4.2), (8, 24)])
def test_a_jpeg_decoded_at_a_part_of_its_size_stays_within_its_bound(scale, least):
    """Of Pillow's resizing of all pixels: less than 1 level in the mean, at a half and a quarter of the size less than
    the JPEG itself lost of the picture; for all but a thousandth of the values 20, what it loses at half the size.
    """
    image = scene(1203, 901)
    data = encoded(image, "JPEG", quality=90)
    side = int(901 / least)
    picture = decode(open_image(data), side)
    assert picture.scale == scale and picture.size == (1203, 901)
    assert picture.pixels.size == (-(-1203 // scale), -(-901 // scale))
    size = scaled_size(*picture.size, side)
    ours = picture.crop(size, 3, 0, side).transpose(1, 2, 0).astype(int)
    x, y = 1203 / size[0], 901 / size[1]
    box = (3 * x, 0, (3 + side) * x, side * y)
    of_jpeg = by_pillow(Image.open(io.BytesIO(data)), (side, side), box)
    differences, lost = np.abs(ours - of_jpeg), np.abs(of_jpeg - by_pillow(image, (side, side), box))
    assert differences.mean() < (min(1, lost.mean()) if scale < 8 else 1)
    assert np.percentile(differences, 99.9) <= 20
    assert decode(open_image(data), side + 1).scale < scale


@pytest.mark.parametrize(("scale", "least"), [(2, 3.5), (4, 12), (8, 24)])
def test_a_run_with_the_earlier_resizer_decodes_as_it_began(scale, least):
    opened = open_image(encoded(scene(1203, 901), "JPEG"))
    side = int(901 / least)
    assert decode(opened, side, EARLIER_RESIZER).scale == scale
    assert decode(opened, side + 1, EARLIER_RESIZER).scale == scale // 2


def test_scaled_decoding_is_the_same_by_pillow_for_what_simplejpeg_leaves(monkeypatch):
    data = encoded(scene(600, 450), "JPEG")
    ours = decode(open_image(data), 140).array()
    monkeypatch.setattr(decoding, "_decode_jpeg", lambda opened, scale: None)
    np.testing.assert_array_equal(decode(open_image(data), 140).array(), ours)
    assert ours.shape == (225, 300, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_pictures_are_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene(600, 450), "JPEG", exif=exif)
    picture = decode(open_image(data), 140)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert picture.scale == 2 and picture.size == shown.size
    halved = shown.resize([side // 2 for side in shown.size], Image.BOX)
    assert np.abs(picture.array().astype(int) - np.asarray(halved)).mean() < 8  # another turn is at 40 or more


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_planes_are_the_resized_image_channel_by_channel(interpolation):
    image = scene(90, 70)
    for source in (image, Image.merge("CMYK", (*image.split(), Image.new("L", image.size, 7)))):
        whole = np.asarray(resize(source, (40, 31), (3.5, 2, 80, 70), interpolation))[..., :3]
        planes = to_planes(resize(source, (40, 31), (3.5, 2, 80, 70), interpolation))
        assert planes.flags.c_contiguous
        np.testing.assert_array_equal(planes, whole.transpose(2, 0, 1))


def test_the_same_pixels_in_any_thread_at_any_time():
    pictures = [Picture(scene(200 + n, 150, n), (200 + n, 150)) for n in range(4)] * 4
    alone = [picture.crop((85, 64), 5, 3, 57) for picture in pictures]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda picture: picture.crop((85, 64), 5, 3, 57), pictures))
    np.testing.assert_array_equal(np.stack(together), np.stack(alone))


def test_transparency_does_not_bleed_into_what_is_resized():
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((10, 200, 30, 255), (16, 16, 48, 48))
    picture = decode(open_image(encoded(image)), 16)
    white = Image.new("RGB", (64, 64), "white")
    white.paste((10, 200, 30), (16, 16, 48, 48))
    ours = picture.crop((16, 16), 0, 0, 16).transpose(1, 2, 0).astype(int)
    assert np.abs(ours - by_pillow(white, (16, 16), (0, 0, 64, 64))).max() <= 2


def test_shrunk_files_are_pillows_to_the_bounds_of_resizing():
    image = scene(400, 300).filter(ImageFilter.GaussianBlur(1))
    data, size = shrink(open_image(encoded(image)), 150, 95)
    assert size == (200, 150) == Image.open(io.BytesIO(data)).size
    pixels = image.resize((200, 150), Image.LANCZOS)
    losses = [
        np.sqrt(np.square(decode(open_image(file)).array() - np.asarray(pixels, float)).mean())
        for file in (data, encoded(pixels, "JPEG", quality=95))
    ]
    assert losses[0] < 1.03 * losses[1]  # simplejpeg's fast cosine transform costs 0.1 dB, 1%, below quality 96
