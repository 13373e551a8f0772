"""The table of where a sample's time goes: every step has its line, and is timed by what it does."""

import time

import numpy as np
import pytest

from sd.data import timing
from sd.data.inspect import main
from tests.data_maker import make_data, tokenize


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
    from sd.data.streaming.catalog import Catalog

    own = timing.decode

    def slow(*arguments):
        time.sleep(0.05)
        return own(*arguments)

    monkeypatch.setattr(timing, "decode", slow)
    seconds, count = timing.time_samples(Catalog(file_list, 32), 20, "lanczos", tokenize)
    assert count == 20 and seconds["decode"] >= 0.05
    assert seconds["tokenise"] > 0 and all(np.isfinite(list(seconds.values())))
