"""The table of where a sample's time goes: every step has its line, and is timed by what it does."""

import time
from collections import Counter

import numpy as np
import pytest

from sd.data import timing
from sd.data.inspect import main
from sd.data.streaming import sample
from sd.data.streaming.catalog import Catalog
from tests.bucket_maker import BUCKETS, SIZES, make_pictures
from tests.data_maker import caption, make_data, tokenize


@pytest.fixture
def file_list(tmp_path):
    return str(make_data(tmp_path, [20, 15]))


def test_each_step_has_its_line(file_list, capsys):
    main([file_list, "--resolution", "32", "--time"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(timing.STEPS)
    shares = [float(line.split()[3].rstrip("%")) for line in lines[1:-1]]
    assert abs(sum(shares) - 100) < 1 and "give --tokenizer_name" in "".join(lines)


def test_a_slow_step_is_the_one_that_is_named(file_list, monkeypatch):
    own = sample.decode_for

    def slow(*arguments):
        time.sleep(0.05)
        return own(*arguments)

    monkeypatch.setattr(sample, "decode_for", slow)
    seconds, count = timing.time_samples(Catalog(file_list, 32), 20, "lanczos", tokenize)
    assert count == 20 and seconds["decode"] >= 0.05
    assert seconds["tokenise"] > 0 and all(np.isfinite(list(seconds.values())))


def test_pictures_are_timed_at_the_shapes_of_their_buckets(tmp_path, monkeypatch, capsys):
    name = make_pictures(tmp_path, [[*SIZES] * 4 + [SIZES[0]] * 30, [SIZES[2]] * 5])
    shapes, own = Counter(), timing.collate

    def note(batch):
        arrays = own(batch)
        count, _, height, width = arrays["pixel_values"].shape
        assert arrays["noise"].shape == (count, 4, height // 8, width // 8)
        shapes[width, height] += count
        return arrays

    monkeypatch.setattr(timing, "collate", note)
    main([name, "--resolution", "32", "--aspect_buckets", BUCKETS, "--time"])
    assert shapes == {SIZES[0]: 34, SIZES[1]: 4, SIZES[2]: 9}
    assert "mean of 47 samples" in capsys.readouterr().out


def test_the_rows_that_pass_the_filter_are_timed(tmp_path):
    name, captions = make_pictures(tmp_path, [[*SIZES] * 4]), []
    catalog = Catalog(name, 24, data_filter="width < height")
    timing.time_samples(catalog, 12, "lanczos", lambda text: captions.append(text) or tokenize(text))
    assert captions == [caption(0, row) for row in range(0, 12, 3)]
