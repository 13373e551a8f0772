"""Parts and indexes with damage of any kind, through TextImagePair: samples, or one clear line."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd.errors import InputError
from tests.data.streaming.test_damage import dataset, own_cache
from tests.data_maker import write_lists, write_part

assert own_cache  # the fixture: used by itself in every test of this file


@pytest.fixture(scope="module")
def sound_part(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "part-000000.gz"
    write_part(path, 0, 12)
    return path.read_bytes(), path.with_name(path.name + ".idx").read_bytes()


DAMAGE = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "zero"]), st.floats(0, 1), st.binary(min_size=1, max_size=40)),
    min_size=1,
    max_size=4,
)


def apply(data, damage):
    data = bytearray(data)
    for how, where, filling in damage:
        at = int(where * len(data))
        if how == "flip" and data:
            data[min(at, len(data) - 1)] ^= filling[0] or 1
        elif how == "cut":
            del data[at:]
        elif how == "insert":
            data[at:at] = filling
        else:
            data[at : at + len(filling)] = bytes(len(filling))
    return bytes(data)


def check_damaged(folder, part, index):
    """Whatever the bytes are: samples, or one clear line."""
    folder = Path(folder)
    sound = folder / "part-000001.gz"
    if not sound.exists():
        write_part(sound, 1, 12)
    path = folder / "part-000000.gz"
    path.write_bytes(part)
    beside = folder / "part-000000.gz.idx"
    beside.unlink(missing_ok=True)
    if index is not None:
        beside.write_bytes(index)
    name = write_lists(folder, (1, [path, sound]))
    try:
        data = dataset(name, max_bad_fraction=1.0)
        samples = list(itertools.islice(data, 24))
    except InputError as error:
        assert "\n" not in str(error) and str(error)
        return
    for sample in samples:
        if "error" in sample:
            text = bytes(sample["error"]).decode()
            assert "Traceback" not in text, text
        else:
            assert sample["pixel_values"].shape == (3, 32, 32)


@settings(deadline=None, max_examples=60)
@given(DAMAGE, st.sampled_from(["index", "no index", "damaged index"]))
def test_any_damage_gives_samples_or_one_clear_line(tmp_path_factory, sound_part, damage, kind):
    run_fuzz(tmp_path_factory.mktemp("fuzz"), sound_part, damage, kind)


@pytest.mark.slow
@settings(deadline=None, max_examples=600)
@given(DAMAGE, st.sampled_from(["index", "no index", "damaged index"]))
def test_fuzzed_streams_give_samples_or_one_error_for_a_minute(tmp_path_factory, sound_part, damage, kind):
    run_fuzz(tmp_path_factory.mktemp("fuzz"), sound_part, damage, kind)


def run_fuzz(folder, sound_part, damage, kind):
    part, index = sound_part
    if kind == "damaged index":
        index = apply(index, damage)
    else:
        part = apply(part, damage)
    check_damaged(folder, part, None if kind == "no index" else index)
