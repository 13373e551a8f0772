"""Samples that are left out: the run's numbering against a list from which they were struck."""

import numpy as np
import pytest

from sd.data.streaming.skipped import Gaps, merged
from sd.errors import InputError
from tests.data.streaming.test_dataset import assert_equal, batches, dataset, joined
from tests.data_maker import make_data


@pytest.mark.parametrize("seed", range(20))
def test_a_run_reads_all_samples_but_the_skipped_ones(seed):
    rng = np.random.default_rng(seed)
    intervals = [(first, first + rng.integers(1, 30)) for first in rng.integers(0, 300, rng.integers(0, 8)).tolist()]
    struck = {number for first, stop in intervals for number in range(first, stop)}
    left = [number for number in range(1000) if number not in struck][:500]
    gaps = Gaps(intervals)
    assert [gaps.number(sample) for sample in range(500)] == left
    assert {number for first, stop in gaps.intervals for number in range(first, stop)} == struck
    assert all(stop < after for (_, stop), (after, _) in zip(gaps.intervals, gaps.intervals[1:], strict=False))
    for first, stop in zip(rng.integers(0, 200, 50).tolist(), rng.integers(201, 400, 50).tolist(), strict=True):
        assert gaps.contains(first, stop) == set(range(first, stop)).issubset(struck)


@pytest.mark.parametrize("interval", [(3, 3), (-1, 2), (5, 2)])
def test_an_interval_without_samples_is_refused(interval):
    with pytest.raises(InputError, match="expected 0 <= first < stop"):
        merged([interval])


def test_the_stream_continues_after_skipped_samples_for_any_ranks_and_workers(tmp_path):
    name = make_data(tmp_path, [30, 20, 14])
    whole = joined(batches(dataset(name), 16))
    stored = np.r_[0:8, 20:40, 44:64]  # two intervals, one of them begins within a batch of two ranks
    expected = {key: value[stored] for key, value in whole.items()}
    skipped = [(40, 44), (8, 20)]
    one = joined(batches(dataset(name, skipped=skipped), 12, num_workers=1))
    two = joined([b for rank in (0, 1) for b in batches(dataset(name, skipped=skipped, rank=rank, world_size=2), 6)])
    resumed = joined(batches(dataset(name, skipped=skipped, start_sample=12), 9))
    assert_equal([one, two], [expected, expected])
    assert_equal([resumed], [{key: value[12:] for key, value in expected.items()}])
