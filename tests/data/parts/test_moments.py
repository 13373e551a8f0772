"""Payloads and manifests of a latent cache: writer and reader are inverses, what is wrong or does not fit is said."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from sd.data.parts.moments import (
    Manifest,
    decode_payload,
    encode_empty_state,
    encode_payload,
    find_manifest,
    manifest_path,
    parse_manifest,
)
from sd.data.parts.record import RowError
from sd.errors import InputError

MANIFEST = Manifest(
    vae_hash="a" * 64, scaling_factor=0.18215, resolution=256, latent_shape=(4, 32, 32), crop="random", num_crops=2
)


def halves(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float16)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.none() | st.integers(1, 3))
def test_a_payload_comes_back(variants, channels, side, captions):
    moments = halves((variants, 2 * channels, side, side))
    text = None if captions is None else halves((captions, 5, 3), 1)
    back, back_text = decode_payload(encode_payload(moments, text))
    np.testing.assert_array_equal(back, moments)
    assert back.dtype == np.float16
    assert (back_text is None) == (text is None)
    if text is not None:
        np.testing.assert_array_equal(back_text, text)


def test_a_strided_view_is_stored_by_value():
    moments = halves((1, 2, 4, 8))[..., ::-2]
    np.testing.assert_array_equal(decode_payload(encode_payload(moments))[0], moments)


@pytest.mark.parametrize(
    "moments, text, message",
    [
        (np.zeros((1, 8, 2, 2), np.float32), None, "moments: float32"),
        (np.zeros((8, 2, 2), np.float16), None, r"moments: float16 \[8, 2, 2\], expected float16 of 4"),
        (np.zeros((0, 8, 2, 2), np.float16), None, r"moments: float16 \[0, 8, 2, 2\]"),
        (np.zeros((1, 7, 2, 2), np.float16), None, "7 channels"),
        (np.full((1, 8, 2, 2), np.inf, np.float16), None, "moments: NaN or infinite values"),
        (
            np.zeros((1, 8, 2, 2), np.float16),
            np.full((1, 2, 2), np.nan, np.float16),
            "text_states: NaN or infinite values",
        ),
        (np.zeros((1, 8, 2, 2), np.float16), np.zeros((2, 2), np.float16), "text_states: float16"),
    ],
)
def test_wrong_tensors_are_neither_written_nor_read(moments, text, message):
    with pytest.raises(RowError, match=message):
        encode_payload(moments, text)
    tensors = {"moments": moments} | ({} if text is None else {"text_states": text})
    with pytest.raises(RowError, match=message):
        decode_payload(save(tensors))


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG", save({"other": np.zeros(1)}), encode_payload(halves((1, 2, 2, 2)))[:-1]]
)
def test_what_is_no_payload_is_a_bad_row(data):
    with pytest.raises(RowError, match="no cached moments"):
        decode_payload(data)


@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_else(data):
    with pytest.raises(RowError):
        decode_payload(data)


def test_a_manifest_comes_back_and_its_id_is_of_the_settings_alone():
    back = parse_manifest(MANIFEST.to_bytes(), "x.cache.json")
    assert back == MANIFEST and back.path == "x.cache.json" and back.latent_shape == (4, 32, 32)
    assert replace(MANIFEST, source="other", num_rows=7).id == MANIFEST.id
    for change in ({"resolution": 512}, {"vae_hash": "b"}, {"flip": True}, {"seed": 1}, {"model_max_length": 77}):
        assert replace(MANIFEST, **change).id != MANIFEST.id
    assert (MANIFEST.num_variants, replace(MANIFEST, flip=True).num_variants) == (2, 4)


def test_differences_name_both_values():
    assert MANIFEST.differences(resolution=256, latent_shape=[4, 32, 32], scaling_factor=0.18215) == []
    assert MANIFEST.differences(resolution=512, crop="centre") == [
        "resolution was 256, is 512",
        "crop was random, is centre",
    ]


def test_a_damaged_or_edited_or_newer_manifest_is_refused():
    reported = json.loads(MANIFEST.to_bytes())
    for change, message in (
        ({"resolution": 512}, "changed since it was written"),
        ({"version": 2}, "version 2, this program reads 1"),
    ):
        with pytest.raises(InputError, match=rf"x\.cache\.json: {message}"):
            parse_manifest(json.dumps(reported | change).encode(), "x.cache.json")
    for data in (b"{", b"[]", b"{}", b'{"version": 1}', b"\xff"):
        with pytest.raises(InputError, match=r"x\.cache\.json: no manifest"):
            parse_manifest(data, "x.cache.json")


def write_list(folder, **manifests):
    """A list of one filelist for each name; those with a Manifest get it beside them."""
    for name, manifest in manifests.items():
        (folder / f"{name}.filelist").write_text("part-000001.gz\n")
        if manifest:
            (folder / f"{name}.cache.json").write_bytes(manifest.to_bytes())
    path = folder / "all.filelist.list"
    path.write_text("".join(f"{folder}/{name}.filelist 2\n" for name in manifests))
    return path


def test_the_manifest_is_found_beside_the_filelist(tmp_path):
    assert find_manifest(write_list(tmp_path, one=None, two=None)) is None
    assert manifest_path("a/one.filelist") == "a/one.cache.json"
    actual = find_manifest(write_list(tmp_path, one=MANIFEST, two=replace(MANIFEST, num_rows=9, seed=5)))
    assert actual == MANIFEST and actual.path == f"{tmp_path}/one.cache.json"


def test_a_cache_names_its_resizer_and_one_of_before_stays_valid(tmp_path):
    """The manifest and the id of a cache from before the resizer was written down."""
    old = json.loads(MANIFEST.to_bytes())
    del old["resizer"]
    assert parse_manifest(json.dumps(old).encode(), "x.cache.json") == MANIFEST
    settings = {name: value for name, value in old.items() if name in MANIFEST.settings()}
    text = json.dumps(settings, sort_keys=True)
    assert MANIFEST.id == hashlib.sha256(text.encode()).hexdigest()[:32] and "resizer" not in settings
    named, other = replace(MANIFEST, resizer="a 4"), replace(MANIFEST, resizer="b 1")
    assert len({MANIFEST.id, named.id, other.id}) == 3
    actual = find_manifest(write_list(tmp_path, one=named, two=MANIFEST))
    assert actual == named and actual.ids == (named.id, MANIFEST.id)
    with pytest.raises(InputError, match=r"\(resizer was a 4, is b 1\)"):
        find_manifest(write_list(tmp_path, one=named, two=other))


def test_a_mixture_of_images_and_cache_names_both_filelists(tmp_path):
    with pytest.raises(InputError, match=r"two\.filelist is a cache of latents, .*one\.filelist is not"):
        find_manifest(write_list(tmp_path, one=None, two=MANIFEST))
    with pytest.raises(InputError, match=r"one\.filelist and .*two\.filelist are .* \(resolution was 256, is 512\)"):
        find_manifest(write_list(tmp_path, one=MANIFEST, two=replace(MANIFEST, resolution=512)))


def test_the_empty_caption_s_states_lie_beside_the_manifest(tmp_path):
    state = halves((5, 3))
    manifest = replace(MANIFEST, empty_state="all.empty.safetensors", path=str(tmp_path / "all.cache.json"))
    with pytest.raises(InputError, match=r"all\.empty\.safetensors"):
        manifest.empty_text_state()
    (tmp_path / "all.empty.safetensors").write_bytes(encode_empty_state(state))
    np.testing.assert_array_equal(manifest.empty_text_state(), state)
