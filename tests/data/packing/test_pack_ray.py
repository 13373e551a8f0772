"""Packing on a real Ray cluster of two nodes: the same bytes as on one machine, also when a node dies half way."""

import sys
import threading
import time

import pytest

from sd.data.packing.options import PackOptions
from sd.data.packing.packer import pack
from sd.errors import InputError
from sd.processes import ray_engine
from tests.pack_input import contents, write_input

ray = pytest.importorskip("ray", reason="requirements-ray.txt is not installed")


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def without_lists(folder):
    return {name: digest for name, digest in contents(folder).items() if not name.startswith("filelist/")}


@pytest.mark.slow
@pytest.mark.ci
def test_a_node_that_dies_changes_no_byte(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_input(tmp_path / "data", 240, width=150, height=150, bad=(3,))
    flags = {"per_part_file_num": 6, "save_gzip_file": True, "resize": 100}
    pack(PackOptions("data/data.jsonl", "local", num_workers=1, **flags))

    node = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    parts = tmp_path / "on_ray" / "laion400m_format_data"

    parts_at_kill = []

    def kill_a_node():
        while len(list(parts.glob("part-??????.gz"))) < 5:
            time.sleep(0.01)
        parts_at_kill.append(len(list(parts.glob("part-??????.gz"))))
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    pack(PackOptions("data/data.jsonl", "on_ray", engine="ray", ray_address=cluster.address, **flags))
    killer.join()
    assert parts_at_kill[0] < 30
    assert without_lists(tmp_path / "on_ray") == without_lists(tmp_path / "local")
    assert len(list(parts.glob("part-??????.gz"))) == 40


def test_a_missing_cluster_or_ray_is_one_line(tmp_path, monkeypatch):
    write_input(tmp_path / "data", 1)
    options = PackOptions(str(tmp_path / "data/data.jsonl"), str(tmp_path / "out"), engine="ray", ray_address="1.2.3:x")
    with pytest.raises(InputError, match=r"--ray_address 1\.2\.3:x"):
        pack(options)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install -r requirements-ray\.txt"):
        list(ray_engine.run_on_ray(len, [[]], None))
