"""Training batches from parts on a real S3 server on loopback, read by DataLoader workers."""

import pytest

from sd.data.parts import storage
from tests.data.packing.test_pack_s3 import bucket
from tests.data.streaming.test_cache import dataset
from tests.data.streaming.test_dataset import assert_equal, batches
from tests.data_maker import make_data, write_lists

assert bucket  # the fixture: imported, since it starts the server


@pytest.mark.parametrize("num_workers", [0, 2])
def test_parts_on_s3_stream_as_local_ones(bucket, tmp_path, monkeypatch, num_workers):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = make_data(tmp_path / "local", [12, 9, 15])
    fs, name = storage.filesystem(bucket)
    fs.put(str(tmp_path / "local"), f"{name}/data", recursive=True)
    file_list = write_lists(tmp_path, (1.0, [f"{bucket}/data/part-{number:06d}.gz" for number in range(3)]))
    lanes = {"lanes": 2, "deal_size": 4}
    assert_equal(
        batches(dataset(file_list, **lanes), 18, num_workers=num_workers), batches(dataset(local, **lanes), 18)
    )
