"""The pixel classifier, on drawings with seeds that nothing was tuned on, and what it must refuse."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from demo.classify import classify, read_samples, score
from demo.compare_formats import SHOWN, is_whole
from demo.shapes import ALL_LABELS, caption_of, draw, example, short_caption_of


def cropped(picture, index):
    """As the trainer does for 32 pixels: the short side to 35, then a random square of 32."""
    small = np.asarray(Image.fromarray(picture).resize((35, 35), Image.Resampling.LANCZOS))
    top, left = np.random.default_rng(index).integers(0, 4, 2)
    return small[top : top + 32, left : left + 32]


@pytest.mark.parametrize("size", [70, 32, 64])
def test_every_drawing_is_read_right(size):
    for index in range(1440):
        picture, labels = example(index, 987_000 + size, size)
        assert classify(picture) == labels, index


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (80, 48)])
def test_every_drawing_of_another_format_is_read_right_and_as_whole(size):
    for index in range(1440):
        picture, labels = example(index, 988_000 + size[0], size)
        assert classify(picture) == labels and is_whole(picture), index


@pytest.mark.parametrize("size", [(24, 40), (40, 24)])
def test_a_cut_shape_is_not_whole(size):
    whole = draw("red", "square", "black", np.random.default_rng(0), size)
    rows, columns = np.nonzero(whole[..., 0] > 128)
    assert not is_whole(whole[(rows.min() + rows.max()) // 2 :, :])
    assert not is_whole(whole[:, (columns.min() + columns.max()) // 2 :])
    assert not is_whole(np.zeros_like(whole))


def test_every_cropped_training_picture_is_read_right():
    for index in range(1440):
        picture, labels = example(index, 55_555, 70)
        assert classify(cropped(picture, index)) == labels, index


@pytest.mark.parametrize("background", ["black", "white"])
def test_a_picture_of_nothing_shows_nothing(background):
    picture = np.full((32, 32, 3), 0 if background == "black" else 255, np.uint8)
    assert classify(picture) == (None, None, background)


def test_a_bar_is_none_of_the_shapes():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[12:20, 2:30] = (224, 32, 32)
    assert classify(picture) == ("red", None, "black")


def test_the_shares_equal_a_count():
    pictures = [example(index, 3, 32)[0] for index in range(36)]
    captions = [caption_of(*labels) for labels in ALL_LABELS]
    assert score(pictures, captions)["all"] == 1
    assert score(pictures, captions)["shuffled"] < 0.1
    pictures[0] = pictures[1]  # the other background
    pictures[8] = pictures[2]  # the other colour
    pictures[16] = pictures[14]  # the other shape
    shares = score(pictures, captions)
    wrong_one = pytest.approx(35 / 36)
    assert (shares["background"], shares["colour"], shares["shape"]) == (wrong_one, wrong_one, wrong_one)
    assert shares["all"] == pytest.approx(33 / 36)


def test_a_background_that_is_left_open_is_right():
    pictures = [example(index, 3, 64)[0] for index in range(4)]
    actual = score(pictures, [short_caption_of(*ALL_LABELS[index][:2]) for index in range(4)])
    assert actual["all"] == actual["background"] == 1.0
    actual = score(pictures, ["a red triangle"] * 4)
    assert (actual["colour"], actual["shape"], actual["background"], actual["all"]) == (1.0, 0.0, 1.0, 0.0)


def test_the_command_reads_captions_from_the_pngs(tmp_path):
    for index in range(36):
        picture, labels = example(index, 4, 32)
        text = PngInfo()
        text.add_text("prompt", caption_of(*labels))
        Image.fromarray(picture).save(tmp_path / f"{index:03d}.png", pnginfo=text)
    Image.new("RGB", (64, 64)).save(tmp_path / "grid.png")
    pictures, captions = read_samples(tmp_path)
    assert len(pictures) == 36 and captions[5] == caption_of(*ALL_LABELS[5])
    command = [sys.executable, "-m", "demo.classify", str(tmp_path), "--min_all"]
    done = subprocess.run([*command, "0.9"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("36 pictures: colour 100.0%, background 100.0%, shape 100.0%, all 100.0%")
    Image.fromarray(example(1, 4, 32)[0]).save(tmp_path / "000.png", pnginfo=text)
    assert subprocess.run([*command, "0.999"], capture_output=True, text=True).returncode == 1


def test_the_grid_of_formats_shows_each_colour_on_both_backgrounds_and_each_shape_on_both():
    assert len({(colour, background) for colour, _, background in SHOWN}) == 12
    assert sorted((shape, background) for _, shape, background in SHOWN) == sorted(
        2 * [(shape, background) for shape in ("circle", "square", "triangle") for background in ("black", "white")]
    )
