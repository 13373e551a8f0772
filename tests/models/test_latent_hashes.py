"""Weights are named by what the file holds, read in pieces; loaded weights have the same name."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sd.errors import InputError
from sd.models import hashes
from sd.models.hashes import weights_hash
from sd.models.loading import load_component
from tests.latent_maker import MODEL

RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.normal(size=(3, 5)).astype(np.float32) for name in ("b", "a", "c")}


def stored(folder, weights, metadata=None):
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata)
    return weights_hash("vae", str(folder))


def test_the_hash_is_of_names_types_shapes_and_bytes_alone(tmp_path, monkeypatch):
    first = stored(tmp_path / "0", WEIGHTS)
    assert len(first) == 64
    assert stored(tmp_path / "1", dict(reversed(WEIGHTS.items())), {"format": "pd"}) == first
    monkeypatch.setattr(hashes, "_PIECE_BYTES", 7)
    assert weights_hash("vae", str(tmp_path), "0") == first
    bit = WEIGHTS["a"].copy()
    bit.view(np.uint32)[2, 4] ^= 1
    others = [
        WEIGHTS | {"a": bit},
        WEIGHTS | {"a": WEIGHTS["a"].reshape(5, 3)},
        WEIGHTS | {"a": WEIGHTS["a"].view(np.int32)},
        {name + "x": value for name, value in WEIGHTS.items()},
    ]
    actual = {stored(tmp_path / f"other{number}", other) for number, other in enumerate(others)}
    assert len(actual | {first}) == 5


def test_the_hash_does_not_depend_on_where_the_tensors_lie_in_the_file(tmp_path):
    """The library writes them by name; other programs, such as PyTorch's exporters, as they come."""
    actual = []
    for number, names in enumerate(("abc", "cab")):
        header, data = {}, b""
        for name in names:
            raw = WEIGHTS[name].tobytes()
            offsets = [len(data), len(data) + len(raw)]
            header[name] = {"dtype": "F32", "shape": list(WEIGHTS[name].shape), "data_offsets": offsets}
            data += raw
        text = json.dumps(header).encode()
        (tmp_path / str(number)).mkdir()
        path = tmp_path / str(number) / "model.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        assert np.array_equal(load_file(path)["c"], WEIGHTS["c"])
        actual.append(weights_hash("vae", str(path.parent)))
    assert actual[0] == actual[1]


def test_a_published_model_is_hashed_from_its_loaded_weights_to_the_name_of_paddle_s_file(monkeypatch):
    monkeypatch.setattr(hashes, "load_component", lambda part, name, subfolder: load_component(part, MODEL, subfolder))
    assert weights_hash("vae", "someone/published", "vae") == weights_hash("vae", MODEL, "vae")


def test_tokenizers_differ_by_their_vocabulary(tmp_path):
    from tests.tiny import make_tokenizer_files

    make_tokenizer_files(tmp_path)
    assert weights_hash("tokenizer", MODEL, "tokenizer") == weights_hash("tokenizer", f"{MODEL}/tokenizer")
    assert weights_hash("tokenizer", str(tmp_path)) != weights_hash("tokenizer", MODEL, "tokenizer")


@pytest.mark.parametrize("data", [b"", b'\x05\0\0\0\0\0\0\0{"a"', b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 40])
def test_a_damaged_file_is_named(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors: unreadable weights"):
        weights_hash("vae", str(tmp_path))
