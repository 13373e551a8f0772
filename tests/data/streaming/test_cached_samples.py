"""Samples from a cache: the variant, the caption or its states, and the same draws as from images. No Paddle."""

import numpy as np
import pytest

from sd.data.parts.moments import Manifest, encode_empty_state, encode_payload, parse_manifest
from sd.data.parts.record import Record, RowError
from sd.data.streaming.cached_sample import CachedSampleMaker
from sd.data.streaming.order import rng
from sd.data.streaming.sample import Framing, SampleMaker
from tests.data_maker import draw, jpeg, tokenize, untokenize

CAPTIONS = ("one", "two", "three")


def make_manifest(folder, text=True, **told):
    """A manifest of 3 variants, read back from `folder`, where the state of the empty caption is all -1."""
    values = {"vae_hash": "v", "scaling_factor": 0.5, "resolution": 16, "latent_shape": (2, 4, 4), "crop": "random"}
    if text:
        values |= {"text_encoder_hash": "t", "tokenizer_hash": "k", "model_max_length": 5, "empty_state": "empty"}
        (folder / "empty").write_bytes(encode_empty_state(np.full((5, 8), -1, np.float16)))
    return parse_manifest(Manifest(**(values | {"num_crops": 3} | told)).to_bytes(), str(folder / "x.cache.json"))


def payload(text=True, captions=3, variants=3):
    """Variant k holds k, the states of caption n hold n."""
    moments = np.zeros((variants, 4, 4, 4), np.float16) + np.arange(variants, dtype=np.float16)[:, None, None, None]
    states = np.zeros((captions, 5, 8), np.float16) + np.arange(captions, dtype=np.float16)[:, None, None]
    return encode_payload(moments, states if text else None)


@pytest.fixture
def make(tmp_path):
    def maker(text=True, caption_dropout=0.2, **told):
        manifest = make_manifest(tmp_path, text, **told)
        return CachedSampleMaker(tokenize, manifest, caption_dropout=caption_dropout, seed=3, draw=draw)

    return maker


def test_captions_and_draws_are_those_from_images(make):
    image_maker = SampleMaker(tokenize, Framing(16, "lanczos", 16), caption_dropout=0.2, seed=3, draw=draw)
    ids, states = make(text=False), make(text=True)
    seen = set()
    for number in range(60):
        image = image_maker.train(Record(CAPTIONS, jpeg(0)), number)
        cached = ids.train(Record(CAPTIONS, payload(text=False)), number)
        with_text = states.train(Record(CAPTIONS, payload()), number)
        for name in image.keys() - {"pixel_values"}:
            np.testing.assert_array_equal(image[name], cached[name])
        for name in image.keys() - {"pixel_values", "input_ids"}:
            np.testing.assert_array_equal(image[name], with_text[name])
        caption = untokenize(image["input_ids"])
        seen.add(caption)
        expected = CAPTIONS.index(caption) if caption else -1
        assert with_text["text_states"].shape == (5, 8) and (with_text["text_states"] == expected).all()
        assert cached.keys() == image.keys() - {"pixel_values"} | {"moments"}
    assert seen == {"", *CAPTIONS}


def test_each_variant_has_its_turn_and_the_sample_alone_decides(make):
    maker = make()
    record = Record(CAPTIONS, payload())
    drawn = [int(maker.train(record, number)["moments"][0, 0, 0]) for number in range(600)]
    assert all(abs(drawn.count(variant) / 600 - 1 / 3) < 0.06 for variant in range(3))
    assert drawn == [int(maker.train(record, number)["moments"][0, 0, 0]) for number in range(600)]
    assert maker.train(record, 0)["moments"].dtype == np.float16


def test_evaluation_takes_the_first_variant_and_the_first_caption(make):
    arrays = make(caption_dropout=1.0).evaluate(Record(CAPTIONS, payload()), 7, rng(0, 1))
    assert (arrays["moments"] == 0).all() and (arrays["text_states"] == 0).all() and arrays["sample"] == 7


@pytest.mark.parametrize(
    "data", [payload(variants=2), payload(captions=2), payload(text=False), payload()[:-9], b"", jpeg(0)]
)
def test_a_payload_that_contradicts_the_manifest_is_a_bad_row(make, data):
    with pytest.raises(RowError):
        make().train(Record(CAPTIONS, data), 0)


def test_stored_states_are_ignored_where_the_manifest_has_no_text(make):
    arrays = make(text=False).evaluate(Record(CAPTIONS, payload(text=True)), 0, rng(0, 1))
    assert "text_states" not in arrays and untokenize(arrays["input_ids"]) == "one"
