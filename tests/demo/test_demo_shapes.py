"""The generator of captioned shapes."""

import json

import numpy as np
import pytest
from PIL import Image

from demo.shapes import ALL_LABELS, caption_of, example, labels_of, write


def test_a_seed_gives_the_same_files_again(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, count=72, seed=5, size=35)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 73
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not np.array_equal(example(0, 5, 35)[0], example(0, 6, 35)[0])
    assert not np.array_equal(example(0, 5, 35)[0], example(36, 5, 35)[0])


def test_the_jsonl_has_the_packers_layout(tmp_path):
    jsonl = write(tmp_path, count=72, seed=0, size=40)
    rows = [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()]
    assert len({row["image_id"] for row in rows}) == 72
    assert [labels_of(row["caption"]) for row in rows] == [*ALL_LABELS, *ALL_LABELS]
    formats = []
    for row in rows:
        with Image.open(jsonl.parent / row["image"]) as image:
            assert (image.size, image.mode) == ((40, 40), "RGB")
            formats.append(image.format)
    assert formats == ["PNG"] * 36 + ["JPEG"] * 36


def test_a_short_caption_leaves_the_background_open(tmp_path):
    jsonl = write(tmp_path, count=36, seed=0, size=40, long_captions=True)
    rows = [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()]
    assert [labels_of(row["long_caption"]) for row in rows] == list(ALL_LABELS)
    assert [labels_of(row["caption"]) for row in rows] == [(colour, shape, None) for colour, shape, _ in ALL_LABELS]
    assert rows[0]["caption"] == "a red circle"


def test_no_crop_of_nine_tenths_cuts_a_shape():
    for index in range(720):
        chroma = np.ptp(example(index, 11, 70)[0].astype(int), axis=-1)
        rows, columns = np.nonzero(chroma > 60)
        assert min(rows.min(), columns.min()) >= 7
        assert max(rows.max(), columns.max()) <= 62


def test_captions_and_labels_are_inverses():
    assert caption_of("red", "circle", "black") == "a red circle on a black background"
    assert [labels_of(caption_of(*labels)) for labels in ALL_LABELS] == list(ALL_LABELS)
    assert len(set(ALL_LABELS)) == 36


@pytest.mark.parametrize(
    "caption", ["", "a pink circle", "a pink circle on a black background", "a red  circle on a black background x"]
)
def test_another_sentence_is_no_caption(caption):
    with pytest.raises(ValueError, match="is no caption of this demo"):
        labels_of(caption)
