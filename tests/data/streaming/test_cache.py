"""Local copies of remote parts and gzip streams: the same stream as from a disk, bounded, shared, clear when full."""

import fcntl
import gzip
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import fsspec
import numpy as np
import pytest

from sd.data.parts.part import PartError, load_index
from sd.data.parts.record import encode_row
from sd.data.streaming.dataset import TextImagePair, raise_if_failed
from sd.data.streaming.local_copies import LocalCopies
from sd.data.streaming.stream import collate
from sd.errors import RunError
from tests.data.streaming.test_dataset import assert_equal, batches
from tests.data_maker import jpeg, make_data, tokenize, write_lists, write_part
from tests.holding import wait_for


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def remote():
    """An address in memory, and its file system."""
    fs = fsspec.filesystem("memory")
    fs.mkdir("/bucket")
    yield "memory://bucket", fs
    fs.rm("/bucket", recursive=True)


ROWS = [12, 9, 15, 8]


def upload(folder, address, fs):
    """The parts of a local data set under an address; returns its file list and that of the local one."""
    local = make_data(folder / "local", ROWS)
    names = [f"part-{number:06d}.gz" for number in range(len(ROWS))]
    for name in names:
        for suffix in ("", ".idx"):
            fs.put_file(str(folder / "local" / (name + suffix)), f"/bucket/{name}{suffix}")
    return write_lists(folder, (1.0, [f"{address}/{name}" for name in names])), local


def dataset(file_list, **changed):
    return TextImagePair(file_list, tokenize, **({"resolution": 32, "batch_size": 4, "buffer_size": 5} | changed))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_remote_parts_stream_as_local_ones(folder, remote, num_workers):
    file_list, local = upload(folder, *remote)
    lanes = {"lanes": 2, "deal_size": 4}
    assert_equal(
        batches(dataset(file_list, **lanes), 30, num_workers=num_workers), batches(dataset(local, **lanes), 30)
    )
    assert dataset(file_list).fingerprint == dataset(local).fingerprint
    assert len(list((folder / "cache" / "sd_parts").glob("*.part"))) == len(ROWS)


def bytes_below(cache):
    """Size of all copies; the stream's reader may take one away between the listing and the look at it."""
    total = 0
    for copy in cache.glob("*.part"):
        with suppress(FileNotFoundError):
            total += copy.stat().st_size
    return total


def test_the_copy_cache_stays_within_its_bound_and_is_reused(folder, remote, monkeypatch):
    address, fs = remote
    file_list, local = upload(folder, address, fs)
    sizes = [fs.size(f"/bucket/part-{number:06d}.gz") for number in range(len(ROWS))]
    limit = max(sizes) + min(sizes)
    cache = folder / "cache" / "sd_parts"
    largest = 0
    stream = iter(dataset(file_list, cache_bytes=limit))
    expected = iter(dataset(local))
    for _ in range(3 * sum(ROWS)):
        np.testing.assert_array_equal(next(stream)["position"], next(expected)["position"])
        largest = max(largest, bytes_below(cache))
    assert max(sizes) <= largest <= limit + max(sizes)  # one may be fetched while another is opened
    copies = LocalCopies(10**9)
    index = load_index(f"{address}/part-000000.gz")
    with closing(copies.open(f"{address}/part-000000.gz", index)) as reader:
        row = reader.read(2)
    fs.rm("/bucket/part-000000.gz")
    with closing(copies.open(f"{address}/part-000000.gz", index)) as reader:
        assert reader.read(2) == row


def test_many_readers_of_a_cache_of_no_capacity_all_get_their_part(folder, remote):
    """Each opening takes the copies of the others away; every reader must work all the same."""
    address, fs = remote
    upload(folder, address, fs)
    paths = [f"{address}/part-{number:06d}.gz" for number in range(len(ROWS))]
    indexes = [load_index(path) for path in paths]

    def read(turn):
        part = turn % len(paths)
        with closing(LocalCopies(0).open(paths[part], indexes[part])) as reader:
            return reader.read(5).startswith(f"part {part} row 5\t".encode())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(80)))


def test_a_part_larger_than_the_bound_is_still_read(folder, remote):
    file_list, _ = upload(folder, *remote)
    assert len(batches(dataset(file_list, cache_bytes=0), 11)) == 11
    assert len(list((folder / "cache" / "sd_parts").glob("*.part"))) <= 2


def test_the_next_window_is_fetched_ahead(folder, remote):
    """With the whole pass in two windows, the parts of both are there before a second row is asked for."""
    file_list, _ = upload(folder, *remote)
    data = dataset(file_list, buffer_size=22, lanes=1, deal_size=1)
    ahead = {data.order.position(s)[0] for s in range(22, 44)}
    stream = iter(data)
    next(stream)
    cache = folder / "cache" / "sd_parts"
    opened = {data.order.position(s)[0] for s in range(22)}
    wait_for(lambda: len(list(cache.glob("*.part"))) == len(ahead | opened) > 1, "the parts of both windows")


def test_a_gzip_stream_is_unpacked_once_for_all_readers(folder):
    path = folder / "part-000000.gz"
    write_part(path, 0, 30)
    text = gzip.decompress(path.read_bytes())
    reference = batches(dataset(write_lists(folder, (1.0, [path])), lanes=2, deal_size=4), 20)
    path.with_name(path.name + ".idx").unlink()
    path.write_bytes(gzip.compress(text))
    foreign = dataset(write_lists(folder, (1.0, [path])), lanes=2, deal_size=4)
    assert_equal(batches(foreign, 20, num_workers=2), reference)
    [copy] = (folder / "cache" / "sd_parts").glob("*.part")
    assert copy.read_bytes() == text


def test_a_store_that_fails_for_a_while_is_retried(folder, remote, monkeypatch):
    address, fs = remote
    upload(folder, address, fs)
    monkeypatch.setattr("sd.data.streaming.local_copies._PAUSE_SECONDS", 0.01)
    failures = iter([OSError("reset by peer"), TimeoutError("slow down")])
    original = type(fs)._open

    def flaky(self, path, *args, **options):
        if path.endswith(".gz") and (error := next(failures, None)):
            raise error
        return original(self, path, *args, **options)

    monkeypatch.setattr(type(fs), "_open", flaky)
    index = load_index(f"{address}/part-000001.gz")
    with closing(LocalCopies().open(f"{address}/part-000001.gz", index)) as reader:
        assert reader.read(3).startswith(b"part 1 row 3\t")
    failures = iter([OSError("reset by peer")] * 9)
    with pytest.raises(PartError, match=r"part-000002.gz: cannot be read: OSError: reset by peer"):
        LocalCopies().open(f"{address}/part-000002.gz", load_index(f"{address}/part-000002.gz"))


def test_a_cache_folder_that_cannot_be_written_ends_the_run_with_one_line(folder, remote):
    file_list, _ = upload(folder, *remote)
    (folder / "cache").mkdir()
    (folder / "cache" / "sd_parts").write_text("a file where the folder should be")
    samples = list(itertools.islice(dataset(file_list), 4))
    with pytest.raises(RunError, match=r"sd_parts: cannot keep a copy of memory://.*XDG_CACHE_HOME") as error:
        raise_if_failed(collate(samples))
    assert "\n" not in str(error.value)


def test_a_remote_part_that_is_missing_is_replaced_and_named(folder, remote, caplog):
    address, fs = remote
    file_list, _ = upload(folder, address, fs)
    fs.rm("/bucket/part-000002.gz")
    actual = batches(dataset(file_list, max_bad_fraction=0.9), 22)
    assert 2 not in np.concatenate([batch["position"][:, 0] for batch in actual])
    assert "part-000002.gz" in caplog.text


def test_partial_copies_count_and_are_removed_with_their_process(tmp_path, monkeypatch):
    """A kill leaves the file of a copy that was being made; a running maker holds its lock."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    rows = gzip.compress(b"".join(encode_row(f"row {n}", jpeg(n)) for n in range(4)))
    folder = tmp_path / "copies"
    folder.mkdir()

    def open_part(name, limit):
        path = tmp_path / name
        path.write_bytes(rows)
        LocalCopies(limit, folder).open(str(path), load_index(str(path))).close()
        return {copy.name for copy in folder.iterdir() if copy.suffix != ".lock"}

    [first] = open_part("a.gz", 10**9)
    size = (folder / first).stat().st_size
    killed, running, begun = folder / "0a.42.9.tmp", folder / "0b.43.9.tmp", folder / "0c.44.9.tmp"
    for left in (killed, running, begun):
        left.write_bytes(b"." * size)
    for left in (killed, running):
        os.utime(left, (0, 0))
    with running.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = open_part("b.gz", 3 * size)
        assert {running.name, begun.name} < held and len(held) == 3 and first not in held  # those in work take space
    os.utime(begun, (0, 0))
    assert len(open_part("b.gz", 3 * size)) == 1
