"""The table of buckets and the bucket of a row, against exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd.data.streaming.buckets import BucketTable, check_cached, covering_size, possible_sizes
from sd.errors import InputError

SIDES = st.integers(1, 3000)


def table(text, resolution=256, multiple=64):
    return BucketTable.from_flag(text, resolution, multiple)


def test_a_number_gives_the_sizes_nearest_to_the_square():
    assert str(table("1")) == "256x256"
    assert str(table("3")) == "192x320,256x256,320x192"
    assert str(table("5")) == "128x512,192x320,256x256,320x192,512x128"
    assert str(table("3", 32, 8)) == "24x40,32x32,40x24"
    expected = "384x640,448x576,512x512,576x448,640x384"
    assert str(table("5", 512)) == expected == str(table(expected, 512)) == str(table("640x384," + expected[:-8], 512))


@pytest.mark.parametrize(("resolution", "multiple"), [(256, 64), (512, 64), (1024, 64), (512, 8), (32, 8), (64, 64)])
def test_possible_sizes_are_all_that_no_other_covers(resolution, multiple):
    actual, most = possible_sizes(resolution, multiple), resolution**2 // multiple**2
    assert actual[0] == (resolution, resolution) and len(set(actual)) == len(actual)
    assert {(h, w) for w, h in actual} == set(actual)
    for width, height in actual:
        assert width % multiple == height % multiple == 0 and width * height <= resolution**2
        w, h = width // multiple, height // multiple
        assert (w + 1) * h > most and w * (h + 1) > most
    assert sum((w + 1) * (most // w) > most and w * (most // w + 1) > most for w in range(1, most + 1)) == len(actual)


def nearest(width, height, sizes, enlarge):
    """Brute force: |log(a) - log(b)| is smaller where max(a/b, b/a) is."""
    there = [number for number, (w, h) in enumerate(sizes) if enlarge or (width >= w and height >= h)]
    ratio = [Fraction(width * sizes[n][1], height * sizes[n][0]) for n in there]
    distance = [max(each, 1 / each) for each in ratio]
    return {number for number, each in zip(there, distance, strict=True) if each == min(distance)} or {-1}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=40), st.integers(1, 7), st.booleans())
def test_a_row_goes_to_the_nearest_aspect_among_those_it_covers(rows, count, enlarge):
    buckets = table(str(count))
    chosen = buckets.choose(*np.array(rows).T, enlarge=enlarge)
    for (width, height), actual in zip(rows, chosen.tolist(), strict=True):
        assert actual in nearest(width, height, buckets.sizes, enlarge), (width, height)


def test_every_small_size_is_chosen_as_by_fractions():
    sizes = table("24x40,32x32,40x24", 32, 8)
    grid = np.array([(w, h) for w in range(60) for h in range(60)])
    for enlarge in (False, True):
        chosen = sizes.choose(*grid.T, enlarge=enlarge)
        for (width, height), actual in zip(grid.tolist(), chosen.tolist(), strict=True):
            expected = nearest(width, height, sizes.sizes, enlarge) if width and height else {-1}
            assert actual in expected, (width, height)


def test_the_bucket_of_a_row_does_not_depend_on_the_rows_beside_it():
    rng, buckets = np.random.default_rng(0), table("7")
    widths, heights = rng.integers(0, 2000, (2, 1000))
    whole = buckets.choose(widths, heights)
    assert whole.tolist() == [int(buckets.choose([w], [h])[0]) for w, h in zip(widths, heights, strict=True)]


def test_sizes_of_any_length_are_no_trouble():
    assert table("5").choose([89_000_000, 1, 65_535], [256, 89_000_000, 65_535]).tolist() == [4, -1, 2]


def test_exact_sizes_alone_are_those_of_a_cache():
    buckets = table("3")
    assert buckets.exact(np.array([256, 320, 0, 192, 257]), np.array([256, 192, 0, 320, 256])).tolist() == [
        1,
        2,
        -1,
        0,
        -1,
    ]


@given(SIDES, SIDES, st.sampled_from(possible_sizes(256, 64)))
def test_an_image_covers_its_bucket_and_no_more(width, height, bucket):
    covering = covering_size((width, height), bucket)
    assert all(side >= least for side, least in zip(covering, bucket, strict=True))
    assert covering[0] == bucket[0] or covering[1] == bucket[1]
    exact = max(Fraction(bucket[0], width), Fraction(bucket[1], height))
    for side, own in zip(covering, (width, height), strict=True):
        assert exact * own - 1 < side <= max(exact * own, 1)


@given(st.lists(st.integers(0, 60), min_size=7, max_size=7), st.integers(1, 64))
def test_merging_leaves_no_bucket_below_a_group_and_loses_no_row(rows, group):
    buckets = table("7")
    goes_to = buckets.merge(rows, group)
    after = np.bincount(goes_to, weights=rows, minlength=7).astype(int)
    left = after[after > 0]
    assert after.sum() == sum(rows) and (len(left) <= 1 or left.min() >= group)
    for number, target in enumerate(goes_to):
        assert goes_to[target] == target or not rows[number]
        if rows[number] >= group:
            assert after[target] >= rows[number]


def test_a_small_bucket_goes_to_its_neighbour():
    buckets = table("5")
    assert buckets.merge([50, 50, 50, 50, 50], 50).tolist() == [0, 1, 2, 3, 4]
    assert buckets.merge([3, 50, 900, 50, 0], 16).tolist() == [1, 1, 2, 3, 4]
    # 512x128 is the smallest and goes first, to 320x192, which is then large enough.
    assert buckets.merge([0, 0, 900, 12, 5], 16).tolist() == [0, 1, 2, 3, 3]
    assert buckets.merge([2, 1, 3, 0, 0], 16).tolist() == [2, 2, 2, 3, 4]


def test_a_cache_cannot_merge():
    sizes = table("3").sizes
    check_cached([40, 0, 20], sizes, 20, "a.filelist")
    check_cached([0, 5, 0], sizes, 20, "a.filelist")
    with pytest.raises(InputError, match=r"a\.filelist: bucket 320x192 holds 20 rows, .* group of 21 .*_size 21"):
        check_cached([40, 0, 20], sizes, 21, "a.filelist")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "aspect_buckets='0'; expected at least 1"),
        ("-3", "expected at least 1"),
        ("", "expected a number of buckets, or sizes"),
        ("256x256,", "expected a number of buckets, or sizes"),
        ("256,320", "'256' is no size"),
        ("256*256", "is no size"),
        ("0x256", "'0x256' is no size"),
        ("256x256,256x256", "256x256 comes twice"),
        ("256x256,320x320", "320x320 has the aspect ratio of 256x256"),
        ("256x256,250x256", "250x256; VAE and UNet need sides that are multiples of 64"),
        ("1024x1024", r"16 times the area of --resolution 256"),
        ("64x64", r"0.0625 times the area"),
        ("8", r"there are 7: 256x256, 320x192, 192x320"),
    ],
)
def test_impossible_tables_are_refused_with_their_numbers(text, message):
    with pytest.raises(InputError, match=message):
        table(text)


def test_a_number_needs_a_resolution_that_fits():
    with pytest.raises(InputError, match="resolution=250; with --aspect_buckets 3 use a multiple of 64"):
        table("3", 250)


def test_what_memory_must_hold_is_the_largest_bucket():
    assert table("3").largest == (256, 256) and table("3", 512).largest == (512, 512)
    assert table("512x128,256x256").largest == (512, 128)
