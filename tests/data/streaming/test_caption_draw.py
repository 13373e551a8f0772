"""Which caption a sample sees: the draws of runs without shares, shares by chi-square, tags against plain loops."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from sd.data.parts.part import PartWriter
from sd.data.parts.record import Record, encode_named_row, encode_row
from sd.data.streaming.caption_draw import CaptionDraw, check_sources
from sd.data.streaming.captions import by_source, sample_records
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.dataset import TextImagePair
from sd.data.streaming.order import CAPTION, rng
from sd.errors import ArgumentError, InputError
from sd.flags.arguments import SDDataArguments
from sd.flags.captions import CaptionFlags, parse_shares
from tests.data_maker import jpeg, tokenize, write_lists

PAIRS = [("caption", "short"), ("caption", "other short"), ("long_caption", "long"), ("tags", "a, b, c")]
SOURCES, TEXTS = zip(*PAIRS, strict=True)
RECORD = Record(TEXTS, b"", SOURCES)
SAMPLES = 4000


def flags(shares="", **more):
    return CaptionFlags(parse_shares(shares) if shares else (), **more)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_without_flags_the_draws_are_those_of_earlier_versions(dropout):
    """Written out: one number in [0, 1) for the dropping, then one of the captions."""
    for sample in range(300):
        draw = rng(23, CAPTION, sample)
        dropped, chosen = draw.random() < dropout, TEXTS[int(draw.integers(len(TEXTS)))]
        assert CaptionDraw(23, dropout).text(RECORD, sample) == ("" if dropped else chosen)
        states = np.arange(len(TEXTS))
        state = CaptionDraw(23, dropout).state(RECORD, states, sample, -1)
        assert state == (-1 if dropped else TEXTS.index(chosen))


def test_the_same_samples_are_dropped_with_shares_and_without():
    plain, shared = CaptionDraw(5, 0.3), CaptionDraw(5, 0.3, flags("long_caption=1"))
    for sample in range(500):
        assert (plain.text(RECORD, sample) == "") == (shared.text(RECORD, sample) == "")


def counted(record, shares, seed=11):
    draw = CaptionDraw(seed, 0.0, flags(shares))
    return Counter(draw.text(record, sample) for sample in range(SAMPLES))


def fits(counts, expected):
    """Whether counts are of the probabilities, by chi-square; a fixed seed makes it a fact, not a chance."""
    assert set(counts) <= set(expected)
    seen = [counts[text] for text in expected]
    return stats.chisquare(seen, [SAMPLES * share for share in expected.values()]).pvalue > 0.01


@pytest.mark.parametrize("shares", ["long_caption=0.7,caption=0.3", "caption=3, long_caption=7"])
def test_captions_come_by_the_shares_of_their_sources(shares):
    assert fits(counted(RECORD, shares), {"short": 0.15, "other short": 0.15, "long": 0.7})


def test_a_missing_source_leaves_its_share_to_the_others_and_a_row_with_none_is_drawn_from_evenly():
    shares = "long_caption=0.6,caption=0.3,tags=0.1"
    without_long = Record(("s", "t"), b"", ("caption", "tags"))
    assert fits(counted(without_long, shares), {"s": 0.75, "t": 0.25})
    other = Record(("x", "y"), b"", ("alt", "title"))
    assert fits(counted(other, shares), {"x": 0.5, "y": 0.5})
    unnamed = Record(("x", "y"), b"")  # of the name "caption"
    assert fits(counted(unnamed, shares), {"x": 0.5, "y": 0.5})


def test_text_and_cached_states_are_of_the_same_caption():
    draw = CaptionDraw(3, 0.1, flags("long_caption=0.5,caption=0.5"))
    for sample in range(300):
        assert draw.state(RECORD, TEXTS, sample, "") == draw.text(RECORD, sample)


# -- tags -----------------------------------------------------------------------------------------------------------


def test_tags_after_the_first_are_shuffled_and_dropped_at_random():
    tags = [f"tag {n}" for n in range(6)]
    record = Record((", ".join(tags),), b"", ("tags",))
    draw = CaptionDraw(7, 0.0, CaptionFlags((), ("tags",), keep=2, tag_dropout=0.25))
    orders, numbers = Counter(), Counter()
    for sample in range(4000):
        actual = draw.text(record, sample).split(", ")
        assert actual[:2] == tags[:2] and len(set(actual)) == len(actual) and set(actual) <= set(tags)
        numbers[len(actual) - 2] += 1
        orders[actual[2] if len(actual) > 2 else None] += 1
    expected = [4000 * stats.binom.pmf(n, 4, 0.75) for n in range(5)]
    assert stats.chisquare([numbers[n] for n in range(5)], expected).pvalue > 0.01
    del orders[None]
    assert stats.chisquare(list(orders.values())).pvalue > 0.01 and len(orders) == 4  # which comes first


def test_other_captions_are_left_as_they_are_and_blank_tags_go():
    draw = CaptionDraw(1, 0.0, CaptionFlags((), ("tags",)))
    assert draw.text(Record(("b, a,c",), b"", ("caption",)), 0) == "b, a,c"
    assert sorted(draw.text(Record((" b,, a ,c,",), b"", ("tags",)), 0).split(", ")) == ["a", "b", "c"]
    assert draw.text(Record((" ,",), b"", ("tags",)), 0) == ""
    assert CaptionDraw(1, 0.0, CaptionFlags((), ("tags",), tag_dropout=1.0)).text(RECORD, 4) in (*TEXTS[:3], "")


# -- in the stream --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file_list(tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    with PartWriter(folder / "part-000001.gz") as part:
        for row in range(24):
            pairs = [("caption", f"row {row} short"), ("long_caption", f"row {row} long")]
            line = (
                encode_named_row(pairs, jpeg(row, 40, 40)) if row % 4 else encode_row(f"row {row}", jpeg(row, 40, 40))
            )
            part.add(line, 40, 40)
    return write_lists(folder, (1.0, [folder / "part-000001.gz"]))


def stream(file_list, count, *, ranks=1, workers=1, start=0, shares="long_caption=0.7,caption=0.3"):
    """{sample: ids} of the first rounds of all ranks."""
    actual = {}
    for rank in range(ranks):
        data = TextImagePair(
            file_list,
            tokenize,
            resolution=32,
            batch_size=4 // ranks,
            num_workers=workers,
            rank=rank,
            world_size=ranks,
            lanes=1,
            deal_size=4,
            start_sample=start,
            captions=flags(shares),
        )
        for sample, _ in zip(data, range(count // ranks), strict=False):
            actual[int(sample["sample"])] = sample["input_ids"].tolist()
    return actual


def test_any_ranks_and_a_resume_see_the_same_captions(file_list):
    whole = stream(file_list, 48)
    assert len(whole) == 48
    assert stream(file_list, 48, ranks=2) == whole
    assert stream(file_list, 24, start=24) == {sample: ids for sample, ids in whole.items() if sample >= 24}
    assert stream(file_list, 48, shares="caption=1") != whole
    assert stream(file_list, 48, shares="caption=3,long_caption=7") == whole


def test_rows_without_a_source_are_counted_and_an_unknown_source_is_refused(file_list):
    records = sample_records(Catalog(file_list, 32))
    assert {source: len(texts) for source, texts in by_source(records).items()} == {"caption": 24, "long_caption": 18}
    actual = [record.sources for record in records]
    assert check_sources(actual, flags("long_caption=0.7,caption=0.3")) == [
        "6 of 24 rows read have no 'long_caption'; they draw from their other sources"
    ]
    message = "caption_shares: none of 24 rows read has a caption named 'long'; they have caption, long_caption"
    with pytest.raises(InputError, match=message):
        check_sources(actual, flags("long=0.7,caption=0.3"))
    with pytest.raises(InputError, match="shuffle_tags: none of 24 rows read has a caption named 'tags'"):
        check_sources(actual, flags(shuffled=("tags",)))
    assert check_sources([], flags("long=1")) == []  # nothing could be read here, as of remote parts


def test_shuffled_tags_and_cached_text_are_refused_in_one_line():
    from sd.training.data import check_tags

    args = SDDataArguments(file_list="cache.list", shuffle_tags="tags", keep_tags=1)
    check_tags(args, None)
    check_tags(args, SimpleNamespace(has_text=False))
    check_tags(SDDataArguments(), SimpleNamespace(has_text=True))
    message = r"--shuffle_tags tags, but cache\.list has the texts' states, .*; cache without --cache_text"
    with pytest.raises(InputError, match=message):
        check_tags(args, SimpleNamespace(has_text=True))


# -- flags ----------------------------------------------------------------------------------------------------------


def test_the_flags_have_one_normal_form():
    forms = [SDDataArguments(caption_shares=text) for text in ("b=7,a=3", " a=0.3, b=0.7")]
    assert forms[0].caption_shares == forms[1].caption_shares == "a=0.3,b=0.7"
    assert forms[0].caption_flags.shares == (("a", 0.3), ("b", 0.7))
    assert SDDataArguments(caption_shares=forms[0].caption_shares) == forms[0]
    thirds = SDDataArguments(caption_shares="a=1,b=1,c=1,d=4")
    assert SDDataArguments(caption_shares=thirds.caption_shares) == thirds
    tags = SDDataArguments(shuffle_tags="tags, alt", keep_tags=1, tag_dropout=0.1).caption_flags
    assert tags == CaptionFlags((), ("alt", "tags"), 1, 0.1) and tags.named == ("alt", "tags")
    assert SDDataArguments().caption_flags == CaptionFlags()


@pytest.mark.parametrize("text", ["a", "a=0", "a=-1", "a=nan", "a=1,a=2", "=1", "a=1,", "a=inf", ""])
def test_shares_that_are_none_are_refused(text):
    with pytest.raises(ArgumentError, match=r"expected a share above 0 for each source once, as a=0\.7,b=0\.3"):
        SDDataArguments(caption_shares=text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep_tags": 1}, "need --shuffle_tags"),
        ({"shuffle_tags": "a,,b"}, "expected names of captions"),
        ({"shuffle_tags": "a", "tag_dropout": 1.5}, "expected at least 0 and at most 1"),
        ({"shuffle_tags": "a", "keep_tags": -1}, "expected at least 0"),
    ],
)
def test_tag_flags_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        SDDataArguments(**wrong)
