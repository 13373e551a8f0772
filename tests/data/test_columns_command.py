"""`python -m sd.data.columns`: scores joined by a key, rows without a match counted, a stopped run resumes."""

import csv
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sd.data import columns as command
from sd.data.parts.columns import SUFFIX, read_columns
from sd.data.parts.part import load_index
from sd.data.scores import read_scores
from sd.data.streaming.catalog import Catalog
from sd.errors import InputError, RunError
from tests.data_maker import write_lists, write_part

ROOT = Path(__file__).resolve().parents[2]
URLS = (["a", "b", "ü", None], ["c", "a", "d"])
SCORES = {"a": 1.5, "b": None, "ü": 3.0, "c": 4.25, "elsewhere": 9.0}


@pytest.fixture
def data(tmp_path):
    """Two parts with urls, one of which stands in both."""
    parts = [tmp_path / f"part-{number:06d}.gz" for number in range(2)]
    for number, part in enumerate(parts):
        numbers = [10 * number + row for row in range(len(URLS[number]))]
        write_part(part, number, len(URLS[number]), columns={"url": URLS[number], "id": numbers})
    return parts, write_lists(tmp_path, (1.0, parts))


def table_of(path, rows=None):
    """The scores as a file of a kind that its name tells."""
    rows = [{"url": url, "score": score} for url, score in SCORES.items()] if rows is None else rows
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def values(part, name):
    return read_columns(load_index(part))[name].to_arrow().to_pylist()


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
def test_scores_are_found_by_their_key(data, tmp_path, capsys, suffix):
    parts, file_list = data
    command.main(["add", table_of(tmp_path / f"scores.{suffix}"), file_list, "--key", "url"])
    assert [values(part, "score") for part in parts] == [[1.5, None, 3.0, None], [4.25, 1.5, None]]
    assert [values(part, "url") for part in parts] == list(URLS)
    line = capsys.readouterr().out.strip()
    assert line == f"{file_list}: score (float64) added to 7 rows: 5 matched, 1 without a match, 1 without a key"
    assert Catalog(file_list, 32, data_filter="score > 1 and score < 4").usable.tolist() == [2, 1]
    command.main(["add", str(tmp_path / f"scores.{suffix}"), file_list, "--key", "url"])
    assert "7 of parts that were done already" in capsys.readouterr().out


def test_numbers_and_positions_are_keys_too(data, tmp_path):
    parts, file_list = data
    by_id = table_of(tmp_path / "ids.parquet", [{"id": 11, "n": 1}, {"id": 2, "n": 2}, {"id": 2, "n": 2}])
    command.main(["add", by_id, file_list, "--key", "id"])
    assert [values(part, "n") for part in parts] == [[None, None, 2, None], [None, 1, None]]
    rows = [{"part": "part-000001.gz", "row": 3, "dup": True}, {"part": "part-000000.gz", "row": 1, "dup": False}]
    command.main(["add", table_of(tmp_path / "places.parquet", rows), file_list, "--key", "part,row"])
    assert [values(part, "dup") for part in parts] == [[False, None, None, None], [None, None, True]]
    both = table_of(tmp_path / "both.jsonl", [{"url": "a", "id": 11, "text": "x"}, {"url": "a", "id": 12, "text": "y"}])
    command.main(["add", both, file_list, "--key", "url,id"])
    assert [values(part, "text") for part in parts] == [[None] * 4, [None, "x", None]]


def test_what_is_exported_can_be_joined_again(data, tmp_path, capsys):
    parts, file_list = data
    command.main(["export", file_list, str(tmp_path / "all.parquet")])
    table = parquet.read_table(tmp_path / "all.parquet")
    assert table.column_names == ["part", "row", "width", "height", "url", "id"]
    assert table["url"].to_pylist() == [*URLS[0], *URLS[1]] and table["row"].to_pylist() == [1, 2, 3, 4, 1, 2, 3]
    assert set(table["width"].to_pylist()) == {40}
    scored = table.select(["part", "row"]).append_column("s", pa.array(np.arange(7.0)))
    parquet.write_table(scored, tmp_path / "scored.parquet")
    command.main(["add", str(tmp_path / "scored.parquet"), file_list, "--key", "part,row"])
    assert [values(part, "s") for part in parts] == [[0, 1, 2, 3], [4, 5, 6]]
    assert "7 matched" in capsys.readouterr().out


def test_a_key_of_two_values_is_refused_and_one_of_two_equal_rows_is_not(data, tmp_path):
    rows = [{"url": "a", "score": 1.0}, {"url": "b", "score": 2.0}, {"url": "a", "score": 1.0}]
    assert len(read_scores(table_of(tmp_path / "same.parquet", rows), ["url"], None).keys) == 2
    rows[2]["score"] = 3.0
    with pytest.raises(InputError, match=r"other.parquet: url 'a' stands in rows 1 and 3 with different values"):
        read_scores(table_of(tmp_path / "other.parquet", rows), ["url"], None)


def test_a_wrong_key_changes_nothing(data, tmp_path):
    parts, file_list = data
    before = [Path(f"{part}{SUFFIX}").read_bytes() for part in parts]
    rows = [{"url": "https://elsewhere", "score": 1.0}]
    with pytest.raises(InputError, match=r"none of 7 rows has a url that stands in .*nothing was written"):
        command.main(["add", table_of(tmp_path / "other.parquet", rows), file_list, "--key", "url"])
    with pytest.raises(InputError, match=r"column 'id' is int64, in the table text; make them alike"):
        command.main(["add", table_of(tmp_path / "ids.parquet", [{"id": "1", "score": 1}]), file_list, "--key", "id"])
    with pytest.raises(InputError, match=r"part-000000.gz: no column 'hash' to join by; it has url, id; or"):
        command.main(["add", table_of(tmp_path / "h.parquet", [{"hash": "1", "score": 1}]), file_list, "--key", "hash"])
    with pytest.raises(InputError, match=r"no column 'urls'; it has url, score"):
        command.main(["add", table_of(tmp_path / "scores.csv"), file_list, "--key", "urls"])
    with pytest.raises(InputError, match=r"column 'width': every part has that by itself"):
        command.main(["add", table_of(tmp_path / "w.csv", [{"url": "a", "width": 1}]), file_list, "--key", "url"])
    with pytest.raises(InputError, match=r"no such table; expected .parquet, .csv"):
        command.main(["add", str(tmp_path / "nothing"), file_list, "--key", "url"])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1?")
    with pytest.raises(InputError, match=r"bad.parquet: cannot be read as a table"):
        command.main(["add", str(tmp_path / "bad.parquet"), file_list, "--key", "url"])
    lists = tmp_path / "lists.parquet"
    parquet.write_table(pa.table({"url": ["a"], "score": [[1, 2]]}), lists)
    with pytest.raises(InputError, match=r"column 'score' is list.*; expected numbers, bool or text; take others by"):
        command.main(["add", str(lists), file_list, "--key", "url"])
    assert [Path(f"{part}{SUFFIX}").read_bytes() for part in parts] == before


def test_existing_columns_are_replaced_only_with_overwrite(data, tmp_path):
    parts, file_list = data
    command.main(["add", table_of(tmp_path / "scores.parquet"), file_list, "--key", "url"])
    other = table_of(tmp_path / "other.parquet", [{"url": "a", "score": 7}])
    with pytest.raises(InputError, match="column 'score' is there already; --overwrite replaces it"):
        command.main(["add", other, file_list, "--key", "url"])
    command.main(["add", other, file_list, "--key", "url", "--overwrite"])
    assert [values(part, "score") for part in parts] == [[7, None, None, None], [None, 7, None]]


def test_a_damaged_columns_file_is_named_before_anything_is_written(data, tmp_path):
    parts, file_list = data
    Path(f"{parts[1]}{SUFFIX}").write_bytes(b"?")
    with pytest.raises(RunError, match=r"part-000001.gz.columns: damaged"):
        command.main(["add", table_of(tmp_path / "scores.parquet"), file_list, "--key", "url"])
    assert "score" not in read_columns(load_index(parts[0]))


KILLED = """
import os, signal, sys
from sd.data import columns
from sd.data.parts import storage
publish, count = storage.AtomicFile._publish, []
def stop(self):
    count.append(self)
    if len(count) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    publish(self)
storage.AtomicFile._publish = stop
columns._THREADS = 1
columns.main(sys.argv[1:])
"""


def test_a_killed_run_resumes_and_ends_with_the_same_bytes(tmp_path):
    """Before each fourth file gets its name; every part's file is the old one or the new one."""
    parts = [tmp_path / f"part-{number:06d}.gz" for number in range(10)]
    for number, part in enumerate(parts):
        write_part(part, number, 3, columns={"url": [f"{number}-{row}" for row in range(3)]})
    file_list = write_lists(tmp_path, (1.0, parts))
    rows = [{"url": f"{number}-{row}", "score": number + row / 4} for number in range(10) for row in range(3)]
    arguments = ["add", table_of(tmp_path / "scores.parquet", rows), file_list, "--key", "url"]
    done = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, capture_output=True)
        assert run.returncode == -signal.SIGKILL, run.stderr
        done.append(sum("score" in read_columns(load_index(part)) for part in parts))
    assert done == [3, 6, 9]
    command.main(arguments)
    for number, part in enumerate(parts):
        assert values(part, "score") == [number + row / 4 for row in range(3)]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"*{SUFFIX}")}
    time.sleep(0.01)
    command.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"*{SUFFIX}")} == before


def test_ctrl_c_waits_for_the_part_in_hand_alone(tmp_path, monkeypatch):
    parts = [tmp_path / f"part-{number:06d}.gz" for number in range(10)]
    for number, part in enumerate(parts):
        write_part(part, number, 1, columns={"url": [str(number)]})
    scores = read_scores(table_of(tmp_path / "scores.parquet", [{"url": "0", "score": 1}]), ["url"], None)
    begun, gate = [], threading.Semaphore(1)  # the first part goes through, the second one is in hand

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            gate.release()
            super().shutdown(wait=wait)

    def add(header, scores, key):
        begun.append(header.path)
        gate.acquire(timeout=1)  # of parts that should not have begun
        return command.Outcome(1, matched=1)

    def bar(items, name="", *_, **__):
        yield from items if name != "joining" else [next(items)]
        if name == "joining":
            raise KeyboardInterrupt

    for name, value in (("ThreadPoolExecutor", Pool), ("_THREADS", 1), ("_add", add), ("tqdm", bar)):
        monkeypatch.setattr(command, name, value)
    with pytest.raises(KeyboardInterrupt):
        command.add_scores(write_lists(tmp_path, (1.0, parts)), scores, ["url"])
    assert begun in ([str(parts[0])], [str(part) for part in parts[:2]])
