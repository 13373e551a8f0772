"""Loading by published name, from a server on loopback in the place of the publisher's."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import paddle
import pytest
from safetensors.numpy import load_file

from tests.tiny import RESOLUTION, make_tiny_repository

PROGRAM = """
import numpy as np
from sd.flags.arguments import SDModelArguments
from sd.models.loading import DeferredComponent
from sd.diffusion.model import StableDiffusionModel
import sys
local, resolution = sys.argv[1], int(sys.argv[2])
name = "SomeOwner/some-model"
by_name = StableDiffusionModel.from_arguments(SDModelArguments(
    pretrained_model_name_or_path=name, vae_name_or_path=name + "/vae", unet_name_or_path=name + "/unet",
    text_encoder_name_or_path=name + "/text_encoder"), resolution)
by_folder = StableDiffusionModel.from_arguments(SDModelArguments(pretrained_model_name_or_path=local), resolution)
expected = by_folder.state_dict()
assert len(expected) > 300
for key, value in by_name.state_dict().items():
    np.testing.assert_array_equal(value.numpy(), expected.pop(key).numpy(), err_msg=key)
assert not expected
for part in ("vae", "text_encoder"):
    deferred = DeferredComponent(part, name, part)
    whole = getattr(by_folder, part)
    assert deferred.num_parameters == sum(parameter.size for parameter in whole.parameters()) > 0
    assert dict(whole.config.items()).items() <= deferred.config.items() if part == "vae" else (
        whole.config.to_dict() == deferred.config.to_dict())
assert by_name.tokenize("a cat").tolist() == by_folder.tokenize("a cat").tolist()
"""


@pytest.fixture
def publisher(tmp_path):
    """(address, repository): a server that publishes a tiny repository under SomeOwner/some-model."""
    repository = make_tiny_repository(tmp_path / "published/models/community/SomeOwner/some-model")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "published"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", repository
    server.shutdown()
    server.server_close()


def test_each_component_loads_by_its_published_name(publisher, tmp_path):
    address, repository = publisher
    local = shutil.copytree(repository, tmp_path / "local")
    weights = repository / "vae/diffusion_paddle_model.safetensors"  # older models are published as Paddle's pickles
    pickled = {name: paddle.to_tensor(value) for name, value in load_file(weights).items()}
    paddle.save(pickled, str(repository / "vae/model_state.pdparams"))
    weights.unlink()
    own = {"PPNLP_ENDPOINT": address, "HOME": str(tmp_path / "home"), "PPNLP_HOME": str(tmp_path / "home/.paddlenlp")}
    (tmp_path / "home").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(local), str(RESOLUTION)],
        cwd=Path(__file__).resolve().parents[2],
        env={name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | own,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
