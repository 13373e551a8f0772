"""Parts and indexes damaged anywhere give their rows or an error that names what is wrong, never anything else."""

import gzip
import random
import shutil
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd.data.parts.part import PartError, PartReader, load_header, load_index
from sd.data.parts.record import RowError, decode_row
from tests.data.parts.test_part import ROWS, write_part


def damage_and_read(folder, chance):
    """Write a part, damage it or its index somewhere, and read what is left; only clear errors may come."""
    path = folder / "part"
    make = chance.choice(["ours", "plain", "single member"])
    if make == "single member":
        path.write_bytes(gzip.compress(b"".join(ROWS)))
    else:
        write_part(path, save_gzip=make == "ours")
    target = chance.choice(sorted(folder.iterdir()))
    content = bytearray(target.read_bytes())
    for _ in range(chance.randint(1, 3)):
        damage(content, chance)
    target.write_bytes(content)
    if chance.random() < 0.5:
        (folder / "part.idx").unlink(missing_ok=True)
    has_index = (folder / "part.idx").exists()
    try:
        index = load_index(path, folder / "cache")
        assert load_header(path, folder / "cache").num_rows == index.num_rows
        with PartReader(path, index) as reader:
            lines = [read_or_none(reader, row) for row in range(index.num_rows)]
    except PartError:
        return
    if has_index:  # whose checksums know every row
        assert {line for line in lines if line is not None} <= {row.rstrip(b"\n") for row in ROWS}


def damage(content, chance):
    start = chance.randrange(len(content) + 1)
    match chance.choice(["flip", "cut", "insert", "delete", "swap"]):
        case "flip" if start < len(content):
            content[start] ^= 1 << chance.randrange(8)
        case "cut":
            del content[start:]
        case "insert":
            content[start:start] = chance.randbytes(chance.randint(1, 40))
        case "delete":
            del content[start : start + chance.randint(1, 3000)]
        case "swap":
            content[start:], content[:start] = content[:start], content[start:]


def read_or_none(reader, row):
    try:
        line = reader.read(row)
        decode_row(line)
    except RowError as error:
        assert str(error)
        return None
    return line


@settings(max_examples=100, deadline=None)
@given(chance=st.randoms(use_true_random=False))
def test_damage_of_any_kind_gives_rows_or_a_named_error(tmp_path_factory, chance):
    folder = tmp_path_factory.mktemp("fuzz")
    damage_and_read(folder, chance)
    shutil.rmtree(folder)


@pytest.mark.slow
def test_fuzzed_parts_give_rows_or_named_errors_for_a_minute(tmp_path):
    end = time.monotonic() + 60
    seed = 0
    while time.monotonic() < end:
        seed += 1
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            damage_and_read(folder, random.Random(seed))
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        shutil.rmtree(folder)
    assert seed > 50
