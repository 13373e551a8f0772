"""Buckets through TextImagePair: rows, pixels, replacements, filters, mixtures, and what is refused."""

import itertools
from collections import Counter

import numpy as np
import pytest

from sd.data.streaming.bucketing import Bucketing
from sd.data.streaming.buckets import BucketTable
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.dataset import TextImagePair, collate, raise_if_failed
from sd.data.streaming.eval_pairs import EvalPairs
from sd.errors import InputError
from tests.bucket_maker import BUCKETS, SIZES, make_pictures, mixed, write_part
from tests.data_maker import tokenize, write_lists

TABLE = BucketTable.from_flag(BUCKETS, 32, 8)
PARTS = [mixed(25, 1), mixed(18, 2), mixed(11, 3)]


@pytest.fixture(scope="module")
def file_list(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"), PARTS)


def dataset(file_list, **changed):
    options = {"resolution": 32, "batch_size": 4, "buckets": TABLE, "buffer_size": 30, "lanes": 1, "deal_size": 4}
    return TextImagePair(file_list, tokenize, **(options | changed))


def take(data, count, batch_size=4):
    samples, actual = iter(data), []
    for _ in range(count):
        actual.append(collate(list(itertools.islice(samples, batch_size))))
        raise_if_failed(actual[-1])
    return actual


def shape_of(batch):
    return batch["pixel_values"].shape[:1:-1]


def test_each_row_is_seen_at_its_bucket_once_a_pass(file_list):
    data = dataset(file_list)
    sizes = {(part, row): size for part, rows in enumerate(PARTS) for row, size in enumerate(rows)}
    seen, passes = Counter(), 4
    for batch in take(data, passes * 54 // 4):
        for place in map(tuple, batch["position"].tolist()):
            width, height = sizes[place]
            assert all(side <= own < side + 5 for side, own in zip(shape_of(batch), (width, height), strict=True))
            seen[place] += 1
    assert len(seen) == 54 and set(seen.values()) <= {passes - 1, passes, passes + 1}
    assert data.num_usable == 54


def test_ranks_have_the_same_shape_and_share_the_batches_of_one(file_list):
    whole = take(dataset(file_list), 20)
    halves = [take(dataset(file_list, batch_size=2, rank=rank, world_size=2, group_size=4), 20, 2) for rank in (0, 1)]
    for batch, one, other in zip(whole, *halves, strict=True):
        assert shape_of(batch) == shape_of(one) == shape_of(other)
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([one[key], other[key]]))


@pytest.mark.parametrize(("batch_size", "ranks"), [(8, 1), (4, 2), (2, 1), (2, 4), (1, 2)])
def test_skipped_samples_are_struck_from_the_stream_of_any_batch_size_and_ranks(file_list, batch_size, ranks):
    """A run of 8 samples a step stepped back twice; it goes on by another split of them from its sample 16."""
    skipped = [(8, 24), (40, 48)]
    of_all = take(dataset(file_list, batch_size=8), 12, 8)
    left = [batch for number, batch in enumerate(of_all) if number not in (1, 2, 5)][2:]
    options = {"batch_size": batch_size, "world_size": ranks, "group_size": 8, "start_sample": 16}
    runs = [
        take(dataset(file_list, rank=rank, skipped=skipped, **options), 7 * 8 // (batch_size * ranks), batch_size)
        for rank in range(ranks)
    ]
    rounds = [batch for of_ranks in zip(*runs, strict=True) for batch in of_ranks]
    a_step = 8 // batch_size
    for step, expected in enumerate(left):
        micro_batches = rounds[step * a_step : (step + 1) * a_step]
        assert {shape_of(batch) for batch in micro_batches} == {shape_of(expected)}
        for key in expected:
            np.testing.assert_array_equal(np.concatenate([batch[key] for batch in micro_batches]), expected[key])
    assert [batch["sample"][0] for batch in left] == [32, 48, 56, 64, 72, 80, 88]
    assert len({shape_of(batch) for batch in left}) > 1


def test_pixels_are_of_the_picture_resized_to_cover_the_bucket(tmp_path):
    """A crop of a ramp along the longer side shows a part as long as the bucket, at a place of its own."""
    from PIL import Image

    from sd.data.images.decode import Picture
    from sd.data.streaming.sample import bucket_crop

    ramp = np.tile(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (40, 1, 3))
    picture = Picture(Image.fromarray(ramp), (120, 40))
    lefts = set()
    for seed in range(40):
        crop = bucket_crop(picture, (40, 24), "bilinear", np.random.default_rng(seed)).astype(int)
        assert crop.shape == (3, 24, 40)
        steps = np.diff(crop[0, 12])
        assert 2.5 < steps[1:-1].mean() < 3.9  # 240 levels over 72 columns are 3.33 each
        assert (np.ptp(crop, axis=1) <= 1).all()
        lefts.add(int(crop[0, 12, 0]))
    assert len(lefts) > 12 and min(lefts) < 20 and max(lefts) > 85
    middle = bucket_crop(picture, (40, 24), "bilinear").astype(int)[0, 12]
    assert abs(middle[0] + middle[-1] - 238) <= 6


def test_a_bad_row_is_replaced_from_its_bucket(tmp_path):
    folder = tmp_path / "damaged"
    name = make_pictures(folder, [SIZES * 10])
    data = (folder / "part-000000.gz").read_bytes()
    from sd.data.parts.part import load_index

    index = load_index(folder / "part-000000.gz")
    broken = bytearray(data)
    for row in (0, 4, 8, 12):
        at = int(index.offsets[row]) + 20
        broken[at : at + 8] = b"\0" * 8
    (folder / "part-000000.gz").write_bytes(broken)
    batches = take(dataset(name, max_bad_fraction=0.9), 16)
    rows = [(shape_of(batch), row) for batch in batches for row in batch["position"][:, 1].tolist()]
    assert {SIZES[row % 3] == shape for shape, row in rows} == {True}
    assert not {row for _, row in rows} & {0, 4, 8, 12} and len({row for _, row in rows}) == 26


def test_filters_decide_before_the_buckets_are_counted(file_list):
    data = dataset(file_list, data_filter="width < height and width >= 25")
    expected = {(part, row) for part, rows in enumerate(PARTS) for row, (w, h) in enumerate(rows) if w < h and w >= 25}
    upright = {place for place in expected if PARTS[place[0]][place[1]][0] < 30}
    assert data.num_usable == len(expected)
    seen = Counter(
        place for batch in take(data, 3 * len(expected) // 4) for place in map(tuple, batch["position"].tolist())
    )
    assert upright <= set(seen) <= expected


def test_sources_are_mixed_by_weight_in_groups_of_one(tmp_path):
    for number, sizes in enumerate((SIZES * 8, SIZES * 20)):
        write_part(tmp_path / f"part-{number}.gz", number, sizes)
    name = write_lists(tmp_path, (3, [tmp_path / "part-0.gz"]), (1, [tmp_path / "part-1.gz"]))
    batches = take(dataset(name), 160)
    assert all(len(set(batch["position"][:, 0].tolist())) == 1 for batch in batches)
    share = np.mean([batch["position"][0, 0] for batch in batches])
    assert 0.12 < share < 0.38  # a quarter of 160 drawn from 4,096 without replacement: deviation 0.034
    assert len({shape_of(batch) for batch in batches}) == 3


def test_a_small_bucket_is_merged_within_its_source(tmp_path, caplog):
    for number, sizes in enumerate(([(24, 40)] * 9 + [(32, 32)] * 2, [(24, 40)] * 8 + [(32, 32)] * 8)):
        write_part(tmp_path / f"part-{number}.gz", number, sizes)
    name = write_lists(tmp_path, (1, [tmp_path / "part-0.gz"]), (1, [tmp_path / "part-1.gz"]))
    data = dataset(name)
    rows = data.catalog.bucket_rows
    assert rows.counts.tolist() == [[11, 8], [0, 8], [0, 0]] and not rows.covered
    assert rows.lines() == [
        "bucket 24x40: 19 rows (70.4%)",
        "bucket 32x32: 8 rows (29.6%)",
        "bucket 32x32 of source0.filelist has 2 rows, fewer than a group of 4 samples: they go to 24x40",
        "bucket 40x24 has no row",
    ]
    seen = {(shape_of(batch), *place) for batch in take(data, 60) for place in batch["position"].tolist()}
    assert {((24, 40), 0, row) for row in range(11)} <= seen


def test_enlarging_takes_what_is_smaller_than_every_bucket(tmp_path):
    name = make_pictures(tmp_path, [[(20, 33), (33, 20), (9, 9), (24, 40), (40, 24), (32, 32)] * 4])
    assert dataset(name).num_usable == 12
    data = dataset(name, enlarge=True)
    assert data.num_usable == 24 and data.catalog.bucket_rows.counts[:, 0].tolist() == [8, 8, 8]
    assert {row for batch in take(data, 8) for row in batch["position"][:, 1].tolist()} == set(range(24))


def test_evaluation_pairs_have_the_shape_of_their_bucket(file_list):
    pairs = EvalPairs(Catalog(file_list, 32, bucketing=Bucketing(TABLE)), tokenize, limit=0)
    assert len(pairs) == 54 and pairs.sizes == TABLE.sizes
    places = set()
    for number in range(54):
        item = pairs[number]
        assert item["pixel_values"].shape[:0:-1] == pairs.sizes[pairs.bucket(number)]
        places.add(tuple(item["position"].tolist()))
    assert len(places) == 54


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group_size": 6}, r"1 rank\(s\) x 4 samples = 4 .*do not divide the group of 6 .*one of 1, 2, 3, 6 \("),
        ({"world_size": 2}, None),
        ({"world_size": 2, "group_size": 4}, r"2 rank\(s\) x 4 samples = 8 .*group of 4"),
        ({"start_sample": 6}, r"from sample 6, no multiple of 1 rank\(s\) x 4 samples = 4"),
        ({"skipped": [(8, 18)]}, "from sample 18, no multiple"),
        ({"group_size": 60}, "54 usable records are fewer than one group of 60"),
        ({"lanes": 3, "group_size": 4}, "group of 4 samples; expected a multiple of 3 lanes x 4 = 12"),
        ({"buckets": BucketTable(((40, 40),))}, "none of 54 rows is as large as one of the buckets 40x40"),
    ],
)
def test_impossible_streams_are_refused_with_their_numbers(file_list, changed, message):
    if message is None:
        assert dataset(file_list, **changed).state(8)["group_size"] == 8
        return
    with pytest.raises(InputError, match=message):
        dataset(file_list, **changed)


def test_bucket_counts_are_cached_between_starts_by_the_bytes_of_a_part(file_list, tmp_path, monkeypatch):
    from sd.data.streaming import bucket_counts

    monkeypatch.setattr(bucket_counts, "MIN_NEW_PARTS", 1)

    def counted(name, text=BUCKETS):
        calls, bucketing = [], Bucketing(BucketTable.from_flag(text, 32, 8))
        choose = BucketTable.choose
        monkeypatch.setattr(BucketTable, "choose", lambda *a, **k: calls.append(1) or choose(*a, **k))
        counts = Catalog(name, 32, cache_dir=tmp_path / "kept", bucketing=bucketing).bucket_rows.counts
        monkeypatch.undo()
        monkeypatch.setattr(bucket_counts, "MIN_NEW_PARTS", 1)
        return counts.tolist(), len(calls)

    first, calls = counted(file_list)
    assert calls == 3 and counted(file_list) == (first, 0)
    assert counted(file_list, "24x40,40x24")[1] == 3  # another table
    other = make_pictures(tmp_path / "other", [PARTS[0], mixed(18, 7)])
    counts, calls = counted(other)
    assert calls == 1 and [row[0] for row in counts] == [row[0] for row in first]
    for path in (tmp_path / "kept").glob("buckets-*"):
        path.write_bytes(path.read_bytes()[:100])
    assert counted(file_list) == (first, 3)
