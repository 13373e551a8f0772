"""What is said of captions that are too long and images that are too small, and small images taken all the same."""

import logging

import numpy as np
import pytest
from PIL import Image

from sd.commands.pack import main as pack_main
from sd.data import inspect
from sd.data.parts.part import PartWriter
from sd.data.parts.record import encode_row
from sd.data.streaming.captions import describe_truncation, num_tokens, sample_captions
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.dataset import TextImagePair
from sd.data.streaming.eval_pairs import EvalPairs
from sd.data.streaming.sample import short_side
from tests.data_maker import jpeg, make_data, tokenize, write_lists
from tests.pack_input import write_input

# Captions with the length that CLIP's own tokenizer gives them (openai/clip-vit-large-patch14), both ends included.
CLIP_LENGTHS = {
    "a photo of an astronaut riding a horse on mars": 12,
    "a cat": 4,
    "": 2,
    "it's 2024!": 9,  # it 's 2 0 2 4 !
}


@pytest.mark.parametrize(("caption", "length"), CLIP_LENGTHS.items())
def test_pieces_are_as_many_as_clips_tokens_of_common_words(caption, length):
    assert num_tokens(caption, 77) == length


def test_truncated_captions_are_counted_by_pieces_or_by_a_tokenizer():
    class Letters:
        @staticmethod
        def tokenize(text):
            return list(text)

    captions = ["word " * 75, "word " * 78, "a" * 75, "a" * 76]
    reported = "captions read are longer than the 77 tokens of --model_max_length and are truncated,"
    assert describe_truncation({"caption": captions}, 77) == [f"at least 25% of 4 {reported} 3 words (1.9%)"]
    [line] = describe_truncation({"caption": captions}, 77, Letters)  # 18 words of four letters fit, of 76 letters none
    assert line == f"75% of 4 {reported} {75 - 18 + 78 - 18 + 1} words (76.1%)"
    assert describe_truncation({"caption": captions[:1]}, 77) == []
    by_name = {"caption": ["a cat"] * 3, "long_caption": ["word " * 150, "short"]}
    assert describe_truncation(by_name, 77) == [f"long_caption: at least 50% of 2 {reported} 75 words (49.7%)"]
    assert num_tokens("a" * 10**7, 77, Letters) == 77 * 40 + 2  # no more is looked at


def test_the_sample_is_spread_over_the_parts_and_leaves_bad_rows_out(tmp_path):
    catalog = Catalog(make_data(tmp_path, [12, 9]), 1)
    assert sample_captions(catalog, 3) == ["part 0 row 0", "part 0 row 10", "part 1 row 8"]
    assert len(set(sample_captions(catalog))) == 21


@pytest.fixture
def small(tmp_path):
    """Six images of 40 x 60 and four of 20 x 30."""
    sizes = [(40, 60)] * 6 + [(20, 30)] * 4
    with PartWriter(tmp_path / "part-000001.gz") as part:
        for row, size in enumerate(sizes):
            part.add(encode_row(f"row {row} " + "word " * 80 * (row == 9), jpeg(row, *size)), *size)
    return write_lists(tmp_path, (1.0, [tmp_path / "part-000001.gz"]))


def test_small_images_are_left_out_with_a_line_or_enlarged(small, caplog):
    caplog.set_level(logging.WARNING, logger="sd")
    assert TextImagePair(small, tokenize, resolution=32).num_usable == 6
    assert "4 of 10 images are smaller than 32 px and left out; --enlarge True takes them" in caplog.text
    caplog.clear()
    dataset = TextImagePair(small, tokenize, resolution=32, enlarge=True)
    assert dataset.num_usable == 10 and caplog.text == ""
    samples = [sample for sample, _ in zip(dataset, range(10), strict=False)]
    assert sorted(int(sample["position"][1]) for sample in samples) == list(range(10))
    assert {sample["pixel_values"].shape for sample in samples} == {(3, 32, 32)}


def test_an_enlarged_image_is_what_pillow_makes_of_it(tmp_path):
    columns, rows = np.meshgrid(np.linspace(30, 220, 20), np.linspace(60, 200, 30))
    slope = np.stack([columns, rows, (columns + rows) / 2], axis=2).astype(np.uint8)  # nothing that a filter overshoots
    Image.fromarray(slope).save(tmp_path / "slope.png")
    with PartWriter(tmp_path / "part-000001.gz") as part:
        part.add(encode_row("a slope", (tmp_path / "slope.png").read_bytes()), 20, 30)
    file_list = write_lists(tmp_path, (1.0, [tmp_path / "part-000001.gz"]))
    pairs = EvalPairs(Catalog(file_list, 32, enlarge=True), tokenize, limit=1)
    side = short_side(32)
    larger = Image.fromarray(slope).resize((side, side * 30 // 20), Image.Resampling.LANCZOS)
    left, top = (side - 32) // 2, (larger.height - 32) // 2
    expected = np.asarray(larger.crop((left, top, left + 32, top + 32))).transpose(2, 0, 1).astype(int)
    assert (
        np.abs(pairs[0]["pixel_values"].astype(int) - expected).max() <= 1
    )  # where each rounds between its two passes


def test_packing_reports_what_training_will_leave_out(tmp_path, monkeypatch, capsys):
    source = write_input(tmp_path / "in", 5)  # 41 to 45 x 40
    text = source.read_text().replace("caption 5", "word " * 90)
    source.write_text(text)
    monkeypatch.setattr("sys.argv", ["pack", "--input_path", str(source), "--output_path", str(tmp_path / "out")])
    pack_main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("of 5 images 5 are smaller than 256 px and 5 are smaller than 512 px; ")
    assert "--enlarge True" in lines[1]
    assert lines[2].startswith("at least 20% of 5 captions read are longer than the 77 tokens")
    assert lines[-1].startswith("train with --file_list")


def test_inspect_reports_what_training_will_leave_out(small, tmp_path, capsys):
    inspect.main([small, "--resolution", "16", "--output", str(tmp_path / "sheet.png")])
    assert "at least 10% of 10 captions read are longer than the 77 tokens" in capsys.readouterr().out
    inspect.main([small, "--resolution", "16", "--model_max_length", "99", "--output", str(tmp_path / "sheet.png")])
    assert "captions read" not in capsys.readouterr().out
