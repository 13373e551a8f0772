"""The default order: how many parts and images a step comes from, and what of a remote set it fetches and keeps."""

from types import SimpleNamespace

import numpy as np
import pytest

from sd.data.parts import storage
from sd.data.streaming import dataset as dataset_module
from sd.data.streaming.dataset import MIN_WINDOW_ROWS, WINDOW_ROWS, default_window
from sd.data.streaming.order import Order
from sd.errors import RunError
from tests.data.packing.test_pack_s3 import bucket
from tests.data.streaming.test_cache import bytes_below, dataset
from tests.data_maker import make_data, write_lists

assert bucket  # the fixture: imported, since it starts the server


@pytest.mark.parametrize(("ranks", "least_images"), [(1, 31.5), (8, 8 * 31)])
def test_a_step_of_the_defaults_comes_from_many_parts_and_images(ranks, least_images):
    """500 parts of 1,000 rows, batches of 32 a rank, five captions of an image in a row as COCO has them.

    32 draws without return from 20 whole parts come from 20 * (1 - 0.95**32) = 16.1 of them.
    """
    order = Order([(1.0, np.full(500, 1000))], seed=23, lanes=1, deal_size=32 * ranks, buffer_size=WINDOW_ROWS)
    batch, parts, images = 32 * ranks, [], []
    for step in range(0, 4000, 40):
        places = [order.position(sample) for sample in range(step * batch, (step + 1) * batch)]
        parts.append(len({part for part, _ in places}))
        images.append(len({(part, row // 5) for part, row in places}))
    assert np.mean(parts) >= 16 and np.mean(images) >= least_images


def test_the_window_is_what_half_the_cache_holds():
    local = SimpleNamespace(copied=set())
    assert default_window(local, 0) == WINDOW_ROWS == 20_000
    remote = SimpleNamespace(copied={0, 1, 2}, copied_rows=3000, copied_bytes=3000 * 80_000)
    assert default_window(remote, 10 * 2**30) == WINDOW_ROWS
    # Half of 800 MB is 5,000 rows of 80 KB; a window of 3,000 may begin and end within a part of 1,000.
    assert default_window(remote, 800_000_000) == 3000
    assert default_window(remote, 0) == MIN_WINDOW_ROWS


def test_a_pass_over_s3_fetches_each_part_once_and_stays_within_the_cache(bucket, tmp_path, monkeypatch):
    """Two ranks of one machine, each with a worker; the cache holds a third of the data."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [10] * 18
    make_data(tmp_path / "local", rows)
    fs, name = storage.filesystem(bucket)
    fs.put(str(tmp_path / "local"), f"{name}/data", recursive=True)
    file_list = write_lists(tmp_path, (1.0, [f"{bucket}/data/part-{number:06d}.gz" for number in range(len(rows))]))
    sizes = [(tmp_path / f"local/part-{number:06d}.gz").stat().st_size for number in range(len(rows))]
    limit = sum(sizes) // 3
    monkeypatch.setattr(dataset_module, "MIN_WINDOW_ROWS", 1)
    fetched, open_binary = [], storage.open_binary
    largest = 0

    def counted(path):
        if str(path).endswith(".gz") and storage.is_remote(path):
            fetched.append(str(path))
        return open_binary(path)

    monkeypatch.setattr(storage, "open_binary", counted)
    ranks = [
        iter(dataset(file_list, rank=rank, world_size=2, lanes=1, cache_bytes=limit, buffer_size=None))
        for rank in range(2)
    ]
    seen = set()
    for _ in range(sum(rows) // 2 - 1):
        for samples in ranks:
            sample = next(samples)
            if "error" in sample:
                raise RunError(bytes(sample["error"]).decode())
            seen.add(tuple(sample["position"].tolist()))
        largest = max(largest, bytes_below(tmp_path / "cache/sd_parts"))
    assert len(seen) > 0.9 * sum(rows)
    assert largest <= limit
    assert len(fetched) <= 1.2 * len(rows), len(fetched)
