"""Data workers of a real DataLoader: none outlives its parent, hangs on what it inherited, or takes much memory."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sd.data.streaming.dataset import TextImagePair
from tests.data.streaming.test_dataset import batches
from tests.data_maker import jpeg, make_data, tokenize, write_lists, write_part
from tests.holding import wait_until_ended

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def file_list(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), [30, 20, 14])


def test_a_worker_destroys_no_garbage_that_it_inherited(file_list, tmp_path):
    """One of Paddle's queues among it would wait for ever for threads that only the parent has."""

    class Garbage:
        def __init__(self):
            self.itself = self

        def __del__(self):
            (tmp_path / f"destroyed-by-{os.getpid()}").touch()

    def collect_and_tokenize(text):
        gc.collect()
        (tmp_path / f"collected-by-{os.getpid()}").touch()
        return tokenize(text)

    gc.disable()
    try:
        Garbage()
        batches(TextImagePair(file_list, collect_and_tokenize, resolution=32, batch_size=4), 1, num_workers=1)
    finally:
        gc.enable()
    gc.collect()
    collected, destroyed = (
        [int(path.name.split("-")[-1]) for path in tmp_path.glob(f"{how}-by-*")] for how in ("collected", "destroyed")
    )
    assert len(collected) == 1 and collected != [os.getpid()] and destroyed == [os.getpid()]


CHILD = """
import sys, time, psutil
sys.path.insert(0, {root!r})
from tests.data.streaming.test_dataset import *
data = dataset({file_list!r}, num_workers=2)
loader = load(data, 4, num_workers=2)
next(loader)
print(*[child.pid for child in psutil.Process().children()], flush=True)
time.sleep(600)
"""


@pytest.mark.defect(5)
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_defect_05_no_worker_outlives_its_parent(file_list, ending):
    program = CHILD.format(root=str(ROOT), file_list=file_list)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.send_signal(ending)
    parent.wait()
    wait_until_ended(workers)


RANK = """
import sys
sys.path.insert(0, {root!r})
from tests.data.streaming.test_dataset import *
for run in range(10):
    data = dataset({file_list!r}, rank={rank}, world_size=2, num_workers=2)
    print(len(batches(data, 40, num_workers=2)))
"""


@pytest.mark.defect(5)
def test_defect_05_two_ranks_of_two_workers_run_ten_times_of_ten(file_list):
    """The reference: 4 in 10."""
    programs = [RANK.format(root=str(ROOT), file_list=file_list, rank=rank) for rank in (0, 1)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for program in programs
    ]
    assert [rank.communicate()[0].split() for rank in ranks] == [[b"40"] * 10] * 2
    assert [rank.returncode for rank in ranks] == [0, 0]


OWN_MEMORY = """
import os, sys, psutil
from tests.data.streaming.test_dataset import dataset, load
data = dataset(sys.argv[1], buffer_size=1000, lanes=1, batch_size=8, deal_size=8, resolution=32)
loader = load(data, 8, num_workers=1)
for _ in range(125):
    next(loader)
print(max(child.memory_full_info().uss for child in psutil.Process().children()), flush=True)
os._exit(0)
"""


@pytest.mark.defect(13)
def test_defect_13_a_window_of_a_thousand_records_costs_a_worker_under_150_mb(tmp_path):
    """In a process of its own: a worker also counts the pages of its parent's heap that it writes on."""
    image = jpeg(0, 295, 295)
    assert 78_000 < len(image) < 90_000
    write_part(tmp_path / "part-000000.gz", 0, 1000, image=lambda seed: image)
    name = write_lists(tmp_path, (1, [tmp_path / "part-000000.gz"]))
    command = [sys.executable, "-c", OWN_MEMORY, str(name)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 0 < int(result.stdout) < 150e6
