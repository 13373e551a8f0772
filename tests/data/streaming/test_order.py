"""The order of the data as arithmetic: coverage, shuffling, resume and changes of the world, without a file."""

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd.data.streaming.order import MIX_BLOCK, Order, rng, worker_samples
from sd.errors import InputError

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def make_order(counts, **changed):
    options = {"seed": 23, "lanes": 1, "deal_size": 1, "buffer_size": 10} | changed
    sources = counts if isinstance(counts[0], tuple) else [(1.0, counts)]
    return Order(sources, **options)


def all_places(counts):
    return [(part, ordinal) for part, count in enumerate(counts) for ordinal in range(count)]


def take(start, batch_size, rank, world_size, num_workers, micro_batches):
    """The sample numbers of a rank in the order in which its DataLoader hands them over: workers in turn."""
    streams = [worker_samples(start, batch_size, rank, world_size, w, num_workers) for w in range(num_workers)]
    turns = itertools.islice(itertools.cycle(streams), micro_batches)
    return [sample for stream in turns for sample in itertools.islice(stream, batch_size)]


@settings(deadline=None, max_examples=200)
@given(COUNTS, st.integers(1, 9), st.integers(1, 5), st.integers(1, 50), st.integers(0, 2**64))
def test_each_record_exactly_once_a_pass(counts, lanes, deal_size, buffer_size, seed):
    total = sum(counts)
    if total < lanes * deal_size:
        with pytest.raises(InputError, match=f"{lanes} lanes x {deal_size}|no source has both"):
            make_order(counts, lanes=lanes, deal_size=deal_size, seed=seed)
        return
    order = make_order(counts, lanes=lanes, deal_size=deal_size, buffer_size=buffer_size, seed=seed)
    passes = {0: [], 1: []}
    # Lanes differ by a row, so one may be a deal block ahead of another: a few more samples than two passes.
    for sample in range(2 * total + lanes * (2 * deal_size + 2)):
        _, _, pass_number, _, _ = order.coordinates(sample)
        if pass_number in passes:
            passes[pass_number].append(order.position(sample))
    assert sorted(passes[0]) == sorted(passes[1]) == all_places(counts)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 10**12),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 3, 4])), min_size=1, max_size=4),
)
def test_global_batches_do_not_depend_on_ranks_workers_or_batch_size(start, batch, accumulation, steps, worlds):
    """A run that changes its world between global batches of the same size sees samples start, start + 1, ..."""
    global_batch = 4 * batch * accumulation
    for ranks, workers in worlds:
        per_device = global_batch // (ranks * accumulation)
        stream = [take(start, per_device, rank, ranks, workers, steps * accumulation) for rank in range(ranks)]
        each = per_device * accumulation
        for step in range(steps):
            seen = sorted(s for rank in stream for s in rank[step * each : (step + 1) * each])
            assert seen == list(range(start + step * global_batch, start + (step + 1) * global_batch))
        start += steps * global_batch


@pytest.mark.parametrize(("parts", "ranks", "workers"), [(1, 1, 8), (7, 3, 2), (5, 2, 1), (1, 1024, 8)])
@pytest.mark.defect(3)
def test_defect_03_any_number_of_parts_ranks_and_workers(parts, ranks, workers):
    """Fewer parts than readers, and parts left over from the division: every record is dealt, once a pass."""
    batch, lanes = 2, ranks * workers
    rows = 2 * lanes + 1
    counts = [rows + part for part in range(parts)]
    order = make_order(counts, lanes=lanes, deal_size=batch)
    micro_batches = -(-sum(counts) // (ranks * batch)) + workers
    samples = [s for rank in range(ranks) for s in take(0, batch, rank, ranks, workers, micro_batches)]
    first = [order.position(s) for s in samples if order.coordinates(s)[2] == 0]
    assert sorted(first) == all_places(counts)


@pytest.mark.defect(6)
def test_defect_06_ranks_without_workers_read_different_samples():
    zero, one = (take(0, 4, rank, 2, 1, 10) for rank in (0, 1))
    assert set(zero).isdisjoint(one) and sorted(zero + one) == list(range(80))


def test_each_worker_serves_one_lane_when_lanes_are_ranks_times_workers():
    ranks, workers, batch = 3, 2, 4
    order = make_order([500, 500], lanes=ranks * workers, deal_size=batch)
    for rank, worker in itertools.product(range(ranks), range(workers)):
        samples = itertools.islice(worker_samples(0, batch, rank, ranks, worker, workers), 100)
        assert len({order.lane_of(s)[0] for s in samples}) == 1


@given(st.integers(0, 10**15), st.integers(1, 9000), st.integers(1, 64))
def test_lane_and_index_are_the_inverse_of_the_sample_number(sample, lanes, deal_size):
    order = make_order([lanes * deal_size], lanes=lanes, deal_size=deal_size)
    lane, index = order.lane_of(sample)
    assert 0 <= lane < lanes and order.sample_at(lane, index) == sample


@pytest.mark.defect(12)
def test_defect_12_windows_are_shuffled_whole():
    """Displacements of a uniform shuffle: mean n/3, and one in n stays where it was (the reference: 80%)."""
    buffer_size, windows = 200, 300
    order = make_order([buffer_size * windows], buffer_size=buffer_size)
    first = order._passes[0, 0][2]
    offsets = np.array([order.position(s)[1] for s in range(buffer_size * windows)])
    offsets = (offsets - first) % (buffer_size * windows)
    slots = np.arange(buffer_size * windows)
    assert (offsets // buffer_size == slots // buffer_size).all()
    displacement = np.abs(offsets - slots)
    # Mean of |i - j| for uniform i, j is (n^2 - 1) / 3n = 66.665; its standard error here is about 0.2.
    assert abs(displacement.mean() - (buffer_size**2 - 1) / (3 * buffer_size)) < 1.0
    assert 150 < (displacement == 0).sum() < 470  # expected one a window: 300
    assert (np.diff(offsets) == 1).mean() < 0.01


def test_seeds_and_passes_give_different_orders_and_the_same_seed_the_same():
    counts = [40, 60, 20]
    first, again, other = (make_order(counts, seed=seed, lanes=3) for seed in (1, 1, 2))
    places = [first.position(s) for s in range(240)]
    assert places == [again.position(s) for s in range(240)]
    assert places != [other.position(s) for s in range(240)]
    assert places[:120] != places[120:]


def test_windows_of_a_single_part_hold_other_rows_in_another_pass():
    order = make_order([1000], buffer_size=100)
    held = [{order.position(s)[1] for s in range(p * 1000, p * 1000 + 100)} for p in range(5)]
    assert len({frozenset(rows) for rows in held}) == 5


def test_the_position_of_sample_1e9_is_computed_without_replay(monkeypatch):
    counts = np.full(60_000, 1000)
    streams = []
    monkeypatch.setattr("sd.data.streaming.order.rng", lambda *words: streams.append(words) or rng(*words))
    order = make_order(counts, lanes=8192, deal_size=32, buffer_size=1000)
    place = order.position(10**9)
    assert len(streams) == 2  # the parts of its pass and the rows of its window; nothing before them is drawn
    assert 0 <= place[0] < 60_000 and 0 <= place[1] < 1000


def test_sixty_million_records_start_within_the_limits():
    tracemalloc.start()
    counts = rng(0, 99).integers(0, 2001, size=60_000)
    order = make_order(counts, lanes=1024 * 8, deal_size=32, buffer_size=1000)
    for lane in range(0, 8192, 64):
        order.position(lane * 32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e9


def test_the_whole_of_a_large_world_is_disjoint():
    """1,024 ranks x 8 workers: the first micro-batch of every worker, no record twice."""
    order = make_order(np.full(6000, 100), lanes=8192, deal_size=4, buffer_size=64)
    seen = set()
    for rank, worker in itertools.product(range(1024), range(8)):
        samples = itertools.islice(worker_samples(0, 4, rank, 1024, worker, 8), 4)
        seen.update(order.position(s) for s in samples)
    assert len(seen) == 1024 * 8 * 4


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(20, 200)), min_size=2, max_size=5),
    st.integers(1, 4),
    st.integers(0, 100),
)
def test_sources_are_mixed_by_weight_and_each_is_read_whole(weighted, lanes, seed):
    sources = [(weight, [rows // 2, rows - rows // 2]) for weight, rows in weighted]
    order = make_order(sources, lanes=lanes, seed=seed)
    share = np.array([weight for weight, _ in weighted])
    assert np.abs(order.quotas - share / share.sum() * MIX_BLOCK).max() <= len(sources)
    seen = Counter(order.coordinates(s)[0] for s in range(lanes * MIX_BLOCK))
    assert [seen[k] for k in range(len(sources))] == [int(q) * lanes for q in order.quotas]
    places = {}
    for sample in range(lanes * MIX_BLOCK):
        source, _, pass_number, _, _ = order.coordinates(sample)
        places.setdefault((source, pass_number), []).append(order.position(sample))
    for (source, pass_number), actual in places.items():
        assert len(set(actual)) == len(actual), (source, pass_number)
        first = order.first_part[source]
        assert all(first <= part < order.first_part[source + 1] for part, _ in actual)
    for source, (_, rows) in enumerate(weighted):
        if order.quotas[source] * lanes > 2 * rows + 2 * lanes:
            assert len(places[source, 0]) == rows


def test_equal_weights_alternate_finely():
    order = make_order([(1.0, [50]), (1.0, [5000])])
    drawn = np.array([order.coordinates(s)[0] for s in range(8192)])
    assert drawn.sum() == 4096
    assert np.abs(np.add.reduceat(drawn, np.arange(0, 8192, 128)) - 64).max() < 40


def test_replacements_stay_in_the_window_first_and_are_the_same_for_every_world():
    counts = [30, 30, 30]
    order = make_order(counts, lanes=2, buffer_size=10)
    for sample in (0, 17, 44, 1000):
        parts, ordinals, slot = order.window(sample)
        window = list(zip(parts.tolist(), ordinals.tolist(), strict=True))
        actual = list(order.candidates(sample))
        assert actual[0] == order.position(sample) == window[slot]
        assert actual[: len(window)] == window[slot:] + window[:slot]
        assert actual == list(make_order(counts, lanes=2, buffer_size=10).candidates(sample))
        assert len(actual) > len(window) and set(actual) <= set(all_places(counts))


def test_replacements_from_the_whole_source_are_drawn_per_sample():
    """Else a corrupt row in each of many windows would put the same few rows in all their places."""
    order = make_order([1000], buffer_size=4)
    beyond = [list(order.candidates(sample))[4:] for sample in range(100)]
    assert all(len(drawn) == 200 for drawn in beyond)
    first = {drawn[0] for drawn in beyond}
    assert len(first) > 80  # of 100 draws out of 1,000 rows 95 are expected to differ


def test_lanes_and_sources_shuffle_their_windows_each_in_its_own_way():
    counts, size = [400], 100
    order = make_order([(1.0, counts), (1.0, counts)], lanes=2, buffer_size=size)
    shuffles = []
    for source in (0, 1):
        begin = order._passes[source, 0][2]
        for lane in (0, 1):
            sample = next(s for s in range(10_000) if order.coordinates(s)[:4] == (source, lane, 0, 1))
            rows = (order.window(sample)[1] - begin) % counts[0]
            assert sorted(rows) == [*range(min(rows), min(rows) + size)]
            shuffles.append(tuple(rows - min(rows)))
    assert len(set(shuffles)) == 4


@pytest.mark.parametrize("seed", [0, 23, 2**64 - 1, -5])
def test_a_stream_is_philox_of_its_coordinates(seed):
    """What NumPy documents, and so what another program can draw again."""
    key, counter = np.array([seed % 2**64, 7], np.uint64), np.array([0, 5, 2**40, 9], np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key, counter=counter))
    assert np.array_equal(rng(seed, 7, 5, 2**40, 9).integers(2**62, size=20), expected.integers(2**62, size=20))


def test_random_streams_of_neighbouring_coordinates_are_unrelated():
    streams = [rng(seed, purpose, a, b) for seed in (0, 1) for purpose in (1, 2) for a in (0, 1) for b in (0, 1)]
    draws = np.stack([stream.standard_normal(2000) for stream in streams])
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 0.12


@pytest.mark.parametrize(
    ("sources", "changed", "message"),
    [
        ([(1.0, [0, 0])], {}, "no source has both"),
        ([(0.0, [5])], {}, "no source has both"),
        ([(-1.0, [5])], {}, "weights"),
        ([(float("nan"), [5])], {}, "weights"),
        ([(1.0, [5])], {"lanes": 3, "deal_size": 2}, "5 usable records are fewer .* 6"),
        ([(1.0, [500]), (1.0, [2])], {"lanes": 3}, "source 1 has 2 usable records"),
        ([(1.0, [5])], {"lanes": 0}, "lanes=0; expected 1 or more"),
        ([(1.0, [5])], {"buffer_size": 0}, "buffer_size=0"),
    ],
)
def test_impossible_orders_are_refused_with_their_numbers(sources, changed, message):
    with pytest.raises(InputError, match=message):
        make_order(sources, **changed)


def test_a_source_without_weight_or_rows_is_never_drawn():
    order = make_order([(0.0, [50]), (2.0, [50]), (1.0, [0])])
    assert {order.coordinates(s)[0] for s in range(500)} == {1}
