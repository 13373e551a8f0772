"""Parts, latent caches and checkpoints of earlier revisions are read, and resumed, as by those revisions themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sd.errors import InputError
from sd.flags.command_line import parse_arguments
from sd.runs.settings import checkpoint_settings
from sd.training.data import stream_options
from tests import earlier

REVISIONS = sorted(path.name.removesuffix(".tar.xz") for path in earlier.FOLDER.glob("*.tar.xz"))
REVISIONS.remove("models")
# Resized by matrix products, 3 of 255 from today's pixels at most: resumed on request. The fixture's crops of 32 pixels
# are not resized.
OTHER_RESIZER = ["1cec8b1"]
UNET = "unet/diffusion_paddle_model.safetensors"
# Four float32 roundings for each of the some forty layers between the input and the loss: 4 x 40 x 2**-24 = 1e-5.
LOSS = 1e-5
# Of the way that the weights went. Adam divides a gradient by the root of its mean square, so a weight's step has the
# relative error of its gradient: that of the loss, but for weights whose gradient is mostly rounding.
WAY = 1e-2


@pytest.fixture(params=REVISIONS)
def expected(request, tmp_path, monkeypatch):
    """What a revision recorded, beside its files in the current folder."""
    monkeypatch.chdir(tmp_path)
    return earlier.extract(request.param, tmp_path)


def state():
    return json.loads(Path(f"run/checkpoint-{earlier.SAVED}/data_state.json").read_text())


def test_there_are_revisions_of_each_format():
    assert len(REVISIONS) >= 3


def test_packed_parts_give_the_same_samples_in_the_same_order(expected):
    assert earlier.read_samples(earlier.LIST, state(), **expected["choice"]) == expected["samples"]


def test_latent_caches_give_the_same_samples_in_the_same_order(expected):
    if "cached_samples" not in expected:
        pytest.skip("of a revision before latent caches")
    assert earlier.read_samples(earlier.CACHE_LIST, state(), **expected["choice"]) == expected["cached_samples"]


def test_checkpoints_resume_to_the_same_losses_and_weights(expected, request):
    flags = earlier.train_flags(earlier.LIST, "run", earlier.END, *expected["flags"])
    if request.node.callspec.params["expected"] in OTHER_RESIZER:
        with pytest.raises(InputError, match="resizer"):
            earlier.train(flags)
        flags += ["--allow_changed_resume", "True"]
    else:
        resizer = checkpoint_settings(f"run/checkpoint-{earlier.SAVED}")["resizer"]
        assert stream_options(*parse_arguments(flags, environ={}), f"run/checkpoint-{earlier.SAVED}").resizer == resizer
    losses = earlier.train(flags)
    np.testing.assert_allclose(losses, expected["losses"], rtol=LOSS)
    begin, end = load_file(f"run/checkpoint-{earlier.SAVED}/{UNET}"), load_file("end.safetensors")
    resumed = load_file(f"run/checkpoint-{earlier.END}/{UNET}")
    assert begin.keys() == end.keys() == resumed.keys()
    way = np.sqrt(sum(np.square(end[name] - begin[name]).sum(dtype=np.float64) for name in end))
    apart = np.sqrt(sum(np.square(end[name] - resumed[name]).sum(dtype=np.float64) for name in end))
    assert way > 0 and apart <= WAY * way


def test_latent_caches_train(expected):
    if "cached_samples" not in expected:
        pytest.skip("of a revision before latent caches")
    losses = earlier.train(earlier.train_flags(earlier.CACHE_LIST, "from_cache", 1, *expected["flags"]))
    assert len(losses) == 1 and np.isfinite(losses[0])
