"""TextImagePair through real DataLoader workers: coverage, equality, resume, worlds that change."""

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sd.data.streaming import stream
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.dataset import TextImagePair, collate, raise_if_failed
from sd.data.streaming.eval_pairs import EvalPairs
from sd.errors import InputError
from sd.training.setup import end_workers, make_dataloader
from tests.data_maker import SIDE, caption, draw, jpeg, make_data, tokenize, untokenize, write_lists, write_part

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def file_list(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), [30, 20, 14])


def dataset(file_list, **changed):
    options = {"resolution": 32, "batch_size": 4, "lanes": 4, "deal_size": 4, "buffer_size": 7, "draw": draw}
    return TextImagePair(file_list, tokenize, **(options | changed))


def load(data, batch_size, num_workers):
    """An iterator over batches, from the DataLoader of a training run."""
    args = SimpleNamespace(per_device_train_batch_size=batch_size, dataloader_num_workers=num_workers)
    return iter(make_dataloader(data, collate, args))


def batches(data, num_batches, batch_size=4, num_workers=0):
    batches, iterator = [], load(data, batch_size, num_workers)
    with end_workers(iterator):
        for batch in itertools.islice(iterator, num_batches):
            raise_if_failed(batch)
            batches.append({key: np.asarray(value) for key, value in batch.items()})
    return batches


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def joined(actual):
    """One batch that holds the samples of several, in the order of the run."""
    whole = {key: np.concatenate([batch[key] for batch in actual]) for key in actual[0]}
    order = np.argsort(whole["sample"])
    return {key: value[order] for key, value in whole.items()}


@pytest.mark.defect(3)
@pytest.mark.parametrize(
    ("rows_per_part", "ranks", "workers"), [([50], 1, 8), ([9, 1, 12, 5, 8, 11, 7], 3, 2), ([13, 12], 2, 0)]
)
def test_defect_03_every_record_once_a_pass(tmp_path, rows_per_part, ranks, workers):
    name, batch_size = make_data(tmp_path, rows_per_part), 3
    seen, data = [], None
    for rank in range(ranks):
        data = TextImagePair(
            name, tokenize, resolution=32, batch_size=batch_size, num_workers=workers, rank=rank, world_size=ranks
        )
        num_batches = data.num_rows // (ranks * batch_size) + 2 * max(1, workers)
        seen += batches(data, num_batches, batch_size, workers)
    assert data.lanes == ranks * max(1, workers) and data.deal_size == batch_size
    first = [
        tuple(place)
        for batch in seen
        for sample, place in zip(batch["sample"], batch["position"], strict=True)
        if data.order.coordinates(int(sample))[2] == 0
    ]
    assert sorted(first) == [(part, row) for part, num_rows in enumerate(rows_per_part) for row in range(num_rows)]


@pytest.mark.defect(6)
def test_defect_06_ranks_without_workers_read_different_records(file_list):
    zero, one = (joined(batches(dataset(file_list, rank=rank, world_size=2), 4)) for rank in (0, 1))
    places = [set(map(tuple, whole["position"])) for whole in (zero, one)]
    assert len(places[0]) == len(places[1]) == 16 and places[0].isdisjoint(places[1])


@pytest.mark.defect(5)
def test_defect_05_batches_are_equal_for_any_number_of_workers_and_no_paddle_tensor_is_handed_over(file_list):
    reference = batches(dataset(file_list), 40)
    for num_workers in (1, 2, 4):
        assert_equal(batches(dataset(file_list), 40, num_workers=num_workers), reference)
    samples = list(itertools.islice(dataset(file_list), 4))
    assert {type(value) for sample in samples for value in sample.values()} <= {np.ndarray, np.int64}
    whole = collate(samples)
    assert {type(value) for value in whole.values()} == {np.ndarray}
    shapes = {key: (value.dtype, value.shape) for key, value in whole.items()}
    assert shapes == {
        "pixel_values": (np.uint8, (4, 3, 32, 32)),
        "input_ids": (np.int64, (4, 32)),
        "sample": (np.int64, (4,)),
        "position": (np.int64, (4, 2)),
        "noise": (np.float32, (4, 2, 2, 2)),
        "timestep": (np.int64, (4,)),
    }


def test_samples_hold_the_record_of_their_position(file_list):
    data = dataset(file_list, caption_dropout=0.0)
    for batch in batches(data, 8):
        for ids, (part, row), name in zip(
            batch["input_ids"], batch["position"], data.name_rows(batch["position"]), strict=True
        ):
            assert untokenize(ids) == caption(part, row)
            assert name == f"part-{part:06d}.gz row {row + 1}"


def test_another_seed_gives_another_order_and_other_draws(file_list):
    one, other = (joined(batches(dataset(file_list, seed=seed), 4)) for seed in (1, 2))
    assert (one["position"] != other["position"]).any() and (one["noise"] != other["noise"]).all()


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0, 0), (0.1, 18, 50), (1.0, 320, 320)])
def test_captions_are_dropped_at_the_given_rate(file_list, dropout, low, high):
    ids = joined(batches(dataset(file_list, caption_dropout=dropout), 80))["input_ids"]
    assert low <= (ids == 0).all(1).sum() <= high  # of 320; at 0.1 the mean is 32, the deviation 5.4


@pytest.mark.defect(14)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_defect_14_a_resume_continues_with_the_next_batch_twice(file_list, num_workers):
    reference = batches(dataset(file_list), 21)
    actual, samples_seen = [], 0
    for num_batches in (5, 9, 7):
        data = dataset(file_list, start_sample=samples_seen)
        actual += batches(data, num_batches, num_workers=num_workers)
        samples_seen = data.state(samples_seen + num_batches * 4)["samples_seen"]
    assert_equal(actual, reference)


@pytest.mark.defect(14)
def test_defect_14_nothing_that_was_seen_is_decoded_again(file_list, monkeypatch):
    decoded = []
    monkeypatch.setattr(stream, "decode_row", lambda line: decoded.append(1) or original(line))
    original = sys.modules["sd.data.parts.record"].decode_row
    batch = collate(list(itertools.islice(dataset(file_list, start_sample=10**9), 4)))
    assert len(decoded) == 4 and batch["sample"].tolist() == list(range(10**9, 10**9 + 4))


def test_world_size_may_change_in_the_middle(file_list):
    """2 ranks -> 1 -> 4, global batch 8: the samples of every global batch stay what they were."""
    reference = [joined(batches(dataset(file_list, batch_size=8), 6, 8)[k : k + 1]) for k in range(6)]
    actual, samples_seen = [], 0
    for ranks in (2, 1, 4):
        per_device = 8 // ranks
        streams = [
            batches(
                dataset(
                    file_list, rank=rank, world_size=ranks, batch_size=per_device, start_sample=samples_seen, lanes=4
                ),
                2,
                per_device,
                num_workers=rank % 2,
            )
            for rank in range(ranks)
        ]
        actual += [joined([rank[step] for rank in streams]) for step in range(2)]
        samples_seen += 16
    assert_equal(actual, reference)


def test_the_state_holds_everything_that_changes_the_stream(file_list, tmp_path):
    state = dataset(file_list).state(80)
    assert state["samples_seen"] == 80 and state == dataset(file_list).state(80)
    other = dataset(make_data(tmp_path, [64]), lanes=2, buffer_size=9).state(80)
    assert [name for name in state if state[name] != other[name]] == ["lanes", "buffer_size", "fingerprint"]
    assert (state["lanes"], other["lanes"]) == (4, 2)


def test_the_fingerprint_depends_on_contents_and_not_on_paths(tmp_path):
    one, same, other = (make_data(tmp_path / str(k), rows) for k, rows in enumerate([[8, 9], [8, 9], [9, 8]]))
    prints = [dataset(name).fingerprint for name in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_sources_are_mixed_by_weight(tmp_path):
    for number, rows in ((0, 20), (1, 60)):
        write_part(tmp_path / f"part-{number}.gz", number, rows)
    name = write_lists(tmp_path, (3, [tmp_path / "part-0.gz"]), (1, [tmp_path / "part-1.gz"]))
    parts = joined(batches(dataset(name, lanes=1), 256))["position"][:, 0]
    assert (parts == 0).sum() == pytest.approx(768, abs=30)


def test_too_few_records_end_at_once_with_the_numbers(file_list):
    with pytest.raises(InputError, match=r"64 usable records .*17 lanes x 4 = 68"):
        dataset(file_list, lanes=17)
    with pytest.raises(InputError, match=r"64 usable records .*24 lanes x 4 = 96"):
        dataset(file_list, lanes=None, num_workers=8, world_size=3)


@pytest.mark.defect(11)
def test_defect_11_small_images_are_left_out_before_the_order_is_made(tmp_path):
    name = make_data(tmp_path, [10, 10])
    with pytest.raises(InputError, match=r"none of 20 rows has a short side of 64 px"):
        dataset(name, resolution=64)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    with_small = mixed / "part-000000.gz"
    write_part_of_two_sizes(with_small, 12)
    data = dataset(write_lists(mixed, (1, [with_small])), lanes=1, deal_size=1)
    assert (data.num_rows, data.num_usable) == (12, 6)
    rows = joined(batches(data, 3))["position"][:, 1]
    assert sorted(rows[:6]) == [1, 3, 5, 7, 9, 11]


def write_part_of_two_sizes(path, num_rows):
    from sd.data.parts.part import PartWriter
    from sd.data.parts.record import encode_row

    with PartWriter(path) as part:
        for row in range(num_rows):
            side = SIDE if row % 2 else 16
            part.add(encode_row(caption(0, row), jpeg(row, side, side)), side, side)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "train.filelist.list"), ("", "empty"), ("nowhere.filelist\n", "nowhere.filelist")],
)
@pytest.mark.defect(11)
def test_defect_11_file_lists_that_name_nothing_are_refused(tmp_path, text, message):
    name = tmp_path / "train.filelist.list"
    if text is not None:
        name.write_text(text)
    with pytest.raises(InputError, match=message):
        dataset(str(name))


def test_evaluation_pairs_never_change_and_cover_the_list_evenly(file_list):
    pairs = EvalPairs(Catalog(file_list, 32), tokenize, draw=draw, limit=16)
    assert len(pairs) == 16
    actual = joined(batches(pairs, 4, num_workers=2))
    assert_equal([actual], [joined(batches(pairs, 4))])
    assert actual["position"].tolist() == [[p, r] for p, n in enumerate((30, 20, 14)) for r in range(n)][::4]
    assert [untokenize(ids) for ids in actual["input_ids"]] == [caption(p, r) for p, r in actual["position"]]
    assert len(EvalPairs(Catalog(file_list, 32), tokenize, limit=1000)) == 64
