"""The emoji example: what is rendered, its tokenizer beside the package's own, and the measure beside a brute force."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from PIL import Image
from tokenizers import CharBPETokenizer

from examples.emoji.measure import nearest, spread
from examples.emoji.pictures import SIDE, find_font, load_font, picture_of, write
from examples.emoji.text import MAX_LENGTH, make_tokenizer, tokenize
from sd.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
CAPTIONS = [
    "grinning face",
    "grinning cat face with smiling eyes",
    "e-mail symbol",
    "squared cjk ideograph-6709",
    "dove",
]


@pytest.fixture(scope="module")
def font():
    try:
        return find_font("Noto Color Emoji")
    except InputError as error:
        pytest.skip(str(error))


def test_a_font_that_is_not_there_is_named_with_the_package_that_brings_it():
    with pytest.raises(InputError, match=r"^No Such Font: no such font; install it .*fonts-noto-color-emoji"):
        find_font("No Such Font")


def test_a_file_that_is_no_font_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a.ttf").write_bytes(b"no font")
    with pytest.raises(InputError, match=r"a\.ttf: unknown file format; expected a TrueType font"):
        load_font(str(tmp_path / "a.ttf"))


def test_pictures_have_the_names_of_unicode_and_no_flags(font, tmp_path):
    jsonl = write(tmp_path, [(font, "")])
    rows = {row["image_id"]: row for row in map(json.loads, jsonl.read_text().splitlines())}
    assert len(rows) > 1200 and len({row["caption"] for row in rows.values()}) == len(rows)
    assert rows["U+1F34E"]["caption"] == "red apple" and rows["U+2764"]["caption"] == "heavy black heart"
    assert not {"U+1F1E6", "U+1F3F4", "U+1F3FB", "U+0041"} & rows.keys()
    with Image.open(tmp_path / rows["U+1F34E"]["image"]) as apple:
        pixels = np.asarray(apple)
    assert pixels.shape == (SIDE, SIDE, 4) and not pixels[0, 0].any()
    red, green, blue = pixels[SIDE // 2, SIDE // 2, :3].astype(int)
    assert red > 150 > max(green, blue), "the middle of a red apple"


def test_a_picture_stands_in_the_middle_and_is_not_cut(font):
    alpha = np.asarray(picture_of(load_font(font), "\N{LARGE RED CIRCLE}"))[..., 3] > 128
    rows, columns = np.nonzero(alpha)
    for places in (rows, columns):
        assert abs((places.min() + places.max()) / 2 - (SIDE - 1) / 2) <= 3
        assert places.min() > 0 and places.max() < SIDE - 1


def test_a_letter_has_no_picture(font):
    assert picture_of(load_font(font), "A") is None


def test_tokens_are_those_of_the_package_that_learned_them(tmp_path):
    tokenizer = make_tokenizer(CAPTIONS * 3, tmp_path)
    reference = CharBPETokenizer(
        str(tmp_path / "vocab.json"),
        str(tmp_path / "merges.txt"),
        unk_token="<|endoftext|>",
        split_on_whitespace_only=False,
    )
    ids = tokenize(tokenizer, [*CAPTIONS, "winking dove"])
    assert ids.shape == (6, MAX_LENGTH) and (ids[:, 0] == tokenizer.bos_token_id).all()
    for row, caption in zip(ids, [*CAPTIONS, "winking dove"], strict=True):
        words = [token for token in row[1:] if token != tokenizer.eos_token_id]
        if "-" not in caption:  # CLIP splits at hyphens and digits, which the reference does not
            assert words == reference.encode(caption).ids
        assert tokenizer.decode(words).replace(" ", "") == caption.replace(" ", "")
    assert len([token for token in ids[0] if token != tokenizer.eos_token_id]) == 3, (
        "a word of the captions is one token"
    )


def test_the_same_captions_give_the_same_tokenizer(tmp_path):
    letters = np.random.default_rng(0).choice(list("abcdefghij"), (400, 6))
    captions = ["".join(word) for word in letters]  # many pairs that are equally frequent
    for number in range(3):
        make_tokenizer(captions, tmp_path / str(number))
    assert len({(tmp_path / str(number) / "merges.txt").read_text() for number in range(3)}) == 1


class Pooling:
    """Stands for a VAE: the mean of each 8 x 8 pixels."""

    def encode(self, pixel_values):
        means = paddle.nn.functional.avg_pool2d(pixel_values, 8)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=means))


def pooled(picture):
    return (picture.astype(np.float64) / 127.5 - 1).reshape(8, 8, 8, 8, 3).mean((1, 3)).transpose(2, 0, 1).ravel()


def test_the_nearest_picture_is_that_of_a_brute_force_over_all_shifts():
    """Half of the training pictures are decoys, nearer to the drawn ones as they stand than what they show shifted."""
    rng = np.random.default_rng(0)
    large = [np.full((80, 80, 3), 255, np.uint8) for _ in range(12)]
    for picture in large:
        picture[20:60, 20:60] = rng.integers(0, 256, (5, 5, 3)).repeat(8, 0).repeat(8, 1)
    shifts = rng.choice([-4, -3, 3, 4], (12, 2))
    drawn = [picture[8 + y : 72 + y, 8 + x : 72 + x] for picture, (y, x) in zip(large, shifts, strict=True)]
    shown = np.stack([pooled(picture[8:72, 8:72]) for picture in large])
    decoys = (shown + np.stack([pooled(picture) for picture in drawn])) / 2
    training = np.concatenate([decoys, shown])
    rows = nearest(Pooling(), drawn, training.astype(np.float32))
    assert rows.tolist() == list(range(12, 24))
    for picture, row in zip(drawn[:2], rows, strict=False):
        padded = np.pad(picture, ((4, 4), (4, 4), (0, 0)), constant_values=255)
        moved = [pooled(padded[y : 64 + y, x : 64 + x]) for y in range(9) for x in range(9)]
        distances = [min(np.square(latents - one).sum() for one in moved) for latents in training]
        assert row == np.argmin(distances)


def test_captions_of_the_measure_are_spread_over_the_set():
    assert spread([str(number) for number in range(10)], 4) == ["0", "2", "5", "7"]


def test_captions_that_were_not_trained_on_are_refused(tmp_path):
    (tmp_path / "emoji.jsonl").write_text('{"caption": "dove", "image": "a.png"}\n')
    program = [sys.executable, "-m", "examples.emoji.measure", "--pictures", "emoji.jsonl", "--samples", "."]
    result = subprocess.run(
        program, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )
    assert result.returncode == 2 and "no pictures of eval.py; draw the captions" in result.stderr


def test_models_need_the_pictures_first(tmp_path):
    program = [sys.executable, "-m", "examples.emoji.make_models", "--pictures", "a.jsonl", "--output", str(tmp_path)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    assert done.stderr == "error: --pictures a.jsonl: no such file; python -m examples.emoji.pictures writes it\n"


@pytest.mark.slow
def test_the_whole_way_at_a_small_size_and_again(font, tmp_path):
    """Eleven processes of a few steps; started again, what is there is skipped."""
    sizes = {"STEPS": "4", "VAE_STEPS": "2", "TEXT_STEPS": "2", "CAPTIONS": "5", "OUT": str(tmp_path / "out")}
    command = ["sh", "examples/emoji/run.sh"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | sizes, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search(r"^5 pictures: \d+\.\d% are nearest to the captioned one of 1[23]\d\d$", done.stdout, re.MULTILINE)
    for prompts, number in (("captions", 5), ("mixtures", 50)):
        assert len(list(tmp_path.glob(f"out/samples_{prompts}/*.png"))) == number + 1, "and a grid"
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/model*/*/*.safetensors")}
    assert len(weights) == 3
    assert subprocess.run(command, cwd=ROOT, env=os.environ | sizes, capture_output=True).returncode == 0
    assert weights == {path: path.stat().st_mtime_ns for path in weights}
