"""The order with buckets as arithmetic: coverage, shapes, resume and changes of the world, without a file."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd.data.streaming import bucket_order
from sd.data.streaming.bucket_order import BucketOrder, Deal
from sd.data.streaming.order import MIX_BLOCK, rng, worker_samples
from sd.errors import InputError


def make_order(counts, **changed):
    """counts: [buckets][parts], or pairs (weight, such counts)."""
    options = {"seed": 23, "lanes": 1, "deal_size": 1, "group_size": 1, "buffer_size": 10} | changed
    sources = counts if isinstance(counts[0], tuple) else [(1.0, counts)]
    return BucketOrder([(weight, np.array(of_source)) for weight, of_source in sources], **options)


def all_rows(counts):
    """bucket -> places, of rows that lie by bucket within their part."""
    counts = np.array(counts)
    first = np.cumsum(counts, 0) - counts
    return {
        bucket: [(part, int(first[bucket, part]) + k) for part, n in enumerate(row) for k in range(n)]
        for bucket, row in enumerate(counts.tolist())
    }


def shuffle(block):
    return rng(7, 99, block)


def brute_force_deal(rows, group_size, passes):
    """Groups by carrying what is left over from pass to pass."""
    left, dealt = [0] * len(rows), []
    for _ in range(passes):
        groups = Counter()
        for bucket, count in enumerate(rows):
            groups[bucket], left[bucket] = divmod(left[bucket] + count, group_size)
        dealt.append(groups)
    return dealt


@pytest.mark.parametrize("block", [4096, 3])
def test_small_deals_exhaustively(monkeypatch, block):
    """All of three buckets of up to four rows, groups of up to three, four passes."""
    monkeypatch.setattr(bucket_order, "DEAL_BLOCK", block)
    for rows in itertools.product(range(5), repeat=3):
        for group_size in range(1, 4):
            if not sum(rows):
                continue
            deal, group = Deal(rows, group_size, shuffle), 0
            for number, expected in enumerate(brute_force_deal(rows, group_size, 4)):
                # A pass is `blocks` blocks.
                first, end = (sum(deal.dealt((number + k) * deal.blocks)) for k in (0, 1))
                assert first == group
                seen = Counter()
                for group in range(first, end):
                    at = deal.block_of(group)
                    begin, drawn, numbers = deal.make_block(at)
                    assert number * deal.blocks <= at < (number + 1) * deal.blocks
                    bucket = int(drawn[group - begin])
                    assert numbers[group - begin] == deal.dealt(number * deal.blocks)[bucket] + seen[bucket]
                    seen[bucket] += 1
                group = end
                assert seen == expected


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=12).filter(any), st.integers(1, 3000), st.integers(0, 10**12)
)
def test_any_group_is_found_in_its_block(rows, group_size, group):
    deal = Deal(rows, group_size, shuffle)
    at = deal.block_of(group)
    assert sum(deal.dealt(at)) <= group < sum(deal.dealt(at + 1))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 20), min_size=4, max_size=4), min_size=1, max_size=4),
    st.sampled_from([(1, 1, 1), (1, 4, 1), (2, 3, 1), (3, 1, 2), (2, 2, 3)]),
    st.integers(1, 50),
    st.integers(0, 2**64),
)
def test_each_row_once_a_pass_in_whole_groups_of_its_bucket(counts, dealing, buffer_size, seed):
    lanes, deal_size, turns = dealing
    group = lanes * deal_size * turns
    rows = [sum(bucket) for bucket in counts]
    options = {"lanes": lanes, "deal_size": deal_size, "group_size": group, "buffer_size": buffer_size, "seed": seed}
    if sum(rows) < group or any(0 < count < lanes for count in rows):
        with pytest.raises(InputError, match=r"fewer than|no source has both"):
            make_order(counts, **options)
        return
    order, expected = make_order(counts, **options), all_rows(counts)
    seen = {}
    passes = 3
    for sample in range((passes * sum(rows) // group + len(rows)) * group):
        unit, lane, pass_number, _, _ = order.coordinates(sample)
        assert unit == order.bucket_of(sample) == order.bucket_of(sample - sample % group)
        seen.setdefault((unit, lane, pass_number), []).append(order.position(sample))
    for bucket, places in expected.items():
        for number in range(passes - 1 if places else 0):
            actual = [place for lane in range(lanes) for place in seen.get((bucket, lane, number), [])]
            assert sorted(actual) == places, (bucket, number)
    for places in seen.values():
        assert len(set(places)) == len(places)


def test_over_k_passes_each_row_is_seen_k_times_within_a_group():
    """Ten passes: on one lane the rows of a bucket with n rows have been seen floor(10 n / G) G / n times, to one."""
    counts, group = [[30, 7], [0, 11], [5, 8]], 6
    order = make_order(counts, group_size=group, deal_size=2, buffer_size=8)
    rows = [sum(bucket) for bucket in counts]
    groups = [10 * count // group for count in rows]
    seen = Counter((order.coordinates(s)[0], order.position(s)) for s in range(sum(groups) * group))
    for bucket, places in all_rows(counts).items():
        times = [seen[bucket, place] for place in places]
        assert max(times) - min(times) <= 1 and sum(times) == groups[bucket] * group
        assert set(times) <= {9, 10}


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 40),
    st.sampled_from([(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1), (1, 4), (2, 2), (3, 2)]),
    st.sampled_from([0, 1, 2, 3]),
)
def test_all_ranks_have_one_shape_in_every_micro_batch(start, world, workers):
    """Any start on a whole round, any world whose round divides the group of 12."""
    ranks, batch = world
    order = make_order([[50, 20], [9, 40], [0, 14]], lanes=2, deal_size=6, group_size=12, buffer_size=9)
    first, workers = start * ranks * batch, max(1, workers)
    streams = [
        [worker_samples(first, batch, rank, ranks, worker, workers) for worker in range(workers)]
        for rank in range(ranks)
    ]
    for micro_batch in range(30):
        taken = [
            sample for rank in range(ranks) for sample in itertools.islice(streams[rank][micro_batch % workers], batch)
        ]
        assert len({order.bucket_of(sample) for sample in taken}) == 1
        assert sorted(taken) == list(range(first, first + ranks * batch))
        first += ranks * batch


def test_a_group_of_several_rounds_serves_each_machine_its_own_lane():
    order = make_order([[500], [300]], lanes=4, deal_size=8, group_size=64, buffer_size=9)
    for rank in range(4):
        samples = itertools.islice(worker_samples(0, 8, rank, 4, 0, 1), 200)
        assert {order.coordinates(sample)[1] for sample in samples} == {rank}


def test_buckets_are_mixed_and_in_proportion_all_along():
    order = make_order([[6000], [3000], [1000]], group_size=10)
    drawn = np.array([order.bucket_of(10 * group) for group in range(5000)])
    first = np.bincount(drawn[:1000])
    assert first.tolist() == [600, 300, 100]
    assert (np.diff(drawn) == 0).mean() < 0.55  # of a random order 0.46
    assert drawn[:1000].tolist() != drawn[1000:2000].tolist()


def test_sources_are_mixed_group_by_group_by_weight_and_each_is_read_whole():
    order = make_order([(3.0, [[40], [20]]), (1.0, [[100], [11]])], group_size=4)
    units = [order.group_at(group)[0] for group in range(MIX_BLOCK)]
    share = Counter(unit // 2 for unit in units)
    assert share == {0: 3 * MIX_BLOCK // 4, 1: MIX_BLOCK // 4}
    of_second = Counter(unit for unit in units if unit >= 2)
    passes = share[1] * 4 // 111
    assert abs(of_second[2] - passes * 100 / 4) <= 26 and abs(of_second[3] - passes * 11 / 4) <= 4
    first = [order.position(s) for g, unit in enumerate(units[:200]) for s in range(4 * g, 4 * g + 4) if unit == 2]
    assert sorted(set(first)) == [(1, k) for k in range(100)] and max(Counter(first).values()) - 1 <= len(first) // 100


def test_replacements_come_from_the_bucket_and_are_the_same_for_every_world():
    counts = [[30, 10], [20, 25]]
    order, expected = make_order(counts, group_size=4, lanes=2, deal_size=2), all_rows(counts)
    for sample in (0, 5, 44, 1000, 12_345):
        actual = list(order.candidates(sample))
        assert actual[0] == order.position(sample)
        assert set(actual) <= set(expected[order.bucket_of(sample)])
        assert actual == list(make_order(counts, group_size=4, lanes=2, deal_size=2).candidates(sample))
        parts, ordinals, slot = order.window(sample)
        assert (int(parts[slot]), int(ordinals[slot])) == actual[0]


def test_buckets_walk_through_the_parts_side_by_side():
    """A remote part is then fetched once for all of its buckets."""
    parts, group = 200, 16
    rows = np.random.default_rng(1).multinomial(100, [0.6, 0.3, 0.1], size=parts).T
    order = make_order(rows.tolist(), group_size=group, deal_size=group, buffer_size=2000)
    assert [order.window_rows(unit) for unit in range(3)] == [-(-2000 * int(n) // 20_000) for n in rows.sum(1)]
    at = {}
    for sample in range(0, 20_000 - group, group):
        unit, *_ = order.coordinates(sample)
        at.setdefault((sample // 4000, unit), set()).update(order.window(sample)[0].tolist())
    for fifth in range(4):
        common = set.intersection(*(at[fifth, unit] for unit in range(3)))
        union = set.union(*(at[fifth, unit] for unit in range(3)))
        assert len(union) < 90 and len(common) > 30  # of 200; a fifth and a window at either end are 60


def test_one_bucket_is_whole_and_its_passes_are_permutations():
    order = make_order([[10, 0, 15]], buffer_size=4)
    for number in range(3):
        actual = [order.position(s) for s in range(25 * number, 25 * number + 25)]
        assert sorted(actual) == [(0, k) for k in range(10)] + [(2, k) for k in range(15)]


def test_the_position_of_sample_1e9_is_computed_without_replay(monkeypatch):
    counts = np.random.default_rng(0).multinomial(1000, [0.5, 0.2, 0.2, 0.1], size=60_000).T
    streams = []
    for module in ("order", "bucket_order"):
        monkeypatch.setattr(f"sd.data.streaming.{module}.rng", lambda *words: streams.append(words) or rng(*words))
    order = BucketOrder([(1.0, counts)], seed=1, lanes=128, deal_size=256, group_size=128 * 256, buffer_size=20_000)
    part, ordinal = order.position(10**9)
    assert len(streams) == 3  # the block of its group, the parts of its pass, the rows of its window
    assert 0 <= part < 60_000 and 0 <= ordinal < 1000


@pytest.mark.parametrize(
    ("counts", "changed", "message"),
    [
        ([[5], [4]], {"group_size": 10}, "9 usable records are fewer than one group of 10"),
        ([[50], [40]], {"lanes": 2, "deal_size": 2, "group_size": 6}, r"group of 6 .*multiple of 2 lanes x 2 = 4"),
        ([[50], [1]], {"lanes": 2, "group_size": 2}, "bucket 1 of source 0 has 1 usable records"),
        ([[0], [0]], {}, r"no source has both|fewer than"),
    ],
)
def test_impossible_orders_are_refused_with_their_numbers(counts, changed, message):
    with pytest.raises(InputError, match=message):
        make_order(counts, **changed)
