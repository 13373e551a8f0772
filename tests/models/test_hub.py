"""Models by name from the Hugging Face hub: a small hub on loopback with the real layout of addresses."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.tiny import make_tiny_repository

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys
import numpy as np
from sd.models.loading import DeferredComponent, load_component
name, target = sys.argv[1:]
weights = {}
for component in ("vae", "text_encoder", "unet"):
    layer = load_component(component, name, component)
    weights |= {f"{component}/{key}": value.numpy() for key, value in layer.state_dict().items()}
assert len(load_component("tokenizer", name, "tokenizer")) > 100
assert DeferredComponent("vae", name, "vae").num_parameters > 0
np.savez(target, **weights)
"""


class Hub(http.server.ThreadingHTTPServer):
    """Serves folders as repositories: /api/models/OWNER/NAME/revision/main and /OWNER/NAME/resolve/COMMIT/FILE.

    cut: bytes after which the first answer with weights ends; requests: (method, path, first byte asked for).
    """

    def __init__(self, folder: Path, cut: int | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.cut, self.requests = folder, cut, []


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if match := re.fullmatch(r"/api/models/(\w+/\w+)/revision/main", self.path):
            root = self.server.folder / match[1]
            files = [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file()]
            siblings = [{"rfilename": name} for name in files]
            about = {"id": match[1], "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0}
            body = json.dumps(about | {"siblings": siblings})
            return self.answer(body.encode(), {}) if files else self.send_error(404)
        match = re.fullmatch(rf"/(\w+/\w+)/resolve/(?:main|{COMMIT})/(.+)", self.path)
        path = self.server.folder / match[1] / match[2] if match else None
        if path is None or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if match else "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data = path.read_bytes()
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        self.server.requests.append((self.command, match[2], start))
        tag = hashlib.sha256(data).hexdigest()
        return self.answer(data, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, start)

    def answer(self, body, headers, start=0):
        self.send_response(206 if start else 200)
        for name, value in {**headers, "Content-Length": str(len(body) - start)}.items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.cut
        if cut is not None and self.path.endswith(".safetensors") and len(body) - start > cut:
            self.server.cut = None
            self.wfile.write(body[start : start + cut])
            self.wfile.flush()
            self.connection.close()
        else:
            self.wfile.write(body[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def published(tmp_path):
    """SomeOwner/model on the hub in diffusers' layout, whose weights are `.safetensors`; its folder."""
    folder = make_tiny_repository(tmp_path / "hub" / "SomeOwner" / "model")
    return folder


def fetch(hub: Hub, tmp_path: Path, name: str = "SomeOwner/model", **more: str) -> subprocess.CompletedProcess:
    """Load every component by name in a process of its own, whose store of Paddle's is out of reach."""
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{hub.server_port}"
    own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path / "home")}
    own |= {"PPNLP_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT), **more}
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | own
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, name, str(tmp_path / "weights.npz")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def assert_loaded(tmp_path: Path, folder: Path) -> None:
    loaded = np.load(tmp_path / "weights.npz")
    for component in ("vae", "unet"):
        stored = load_file(folder / component / "diffusion_paddle_model.safetensors")
        assert len(stored) > 30
        for name, value in stored.items():
            np.testing.assert_array_equal(loaded[f"{component}/{name}"], value, err_msg=name)


def test_a_model_that_paddles_store_lacks_comes_from_the_hub_even_through_a_cut_connection(published, tmp_path):
    with Hub(published.parent.parent, cut=4096) as hub:
        first = fetch(hub, tmp_path)
        if first.returncode:  # the connection was cut under the first large file
            assert "HF_ENDPOINT" in first.stderr, first.stderr[-2000:]
            again = fetch(hub, tmp_path)
            assert again.returncode == 0, again.stderr[-2000:]
        hub.shutdown()
    assert_loaded(tmp_path, published)
    resumed = [start for method, path, start in hub.requests if method == "GET" and path.endswith(".safetensors")]
    assert 4096 in resumed, "the second request did not go on where the first was cut"


def test_pickles_are_fetched_only_where_there_are_no_safetensors(published, tmp_path):
    (published / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not needed")
    (published / "unet" / "diffusion_paddle_model.fp16.safetensors").write_bytes(b"another variant")
    with Hub(published.parent.parent) as hub:
        done = fetch(hub, tmp_path)
        hub.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    fetched = {path for method, path, _ in hub.requests if method == "GET"}
    assert "unet/diffusion_paddle_model.safetensors" in fetched
    assert not {path for path in fetched if path.endswith(".bin") or ".fp16." in path}


def test_a_name_found_in_no_store_lists_both_errors(published, tmp_path):
    with Hub(published.parent.parent) as hub:
        done = fetch(hub, tmp_path, "SomeOwner/nothing")
        hub.shutdown()
    assert done.returncode != 0
    line = done.stderr.strip().splitlines()[-1]
    assert "SomeOwner/nothing/vae could not be loaded" in line
    assert "PPNLP_ENDPOINT" in line and "HF_ENDPOINT" in line and "--vae_name_or_path" in line


def test_weights_of_pytorch_come_transposed(published, tmp_path):
    """diffusers' own files hold a linear layer's matrix as [out, in]; their metadata say `pt`."""
    stored = load_file(published / "unet" / "diffusion_paddle_model.safetensors")
    matrices = {name for name, value in stored.items() if value.ndim == 2}
    (published / "unet" / "diffusion_paddle_model.safetensors").unlink()
    turned = {name: np.ascontiguousarray(value.T) if name in matrices else value for name, value in stored.items()}
    save_file(turned, published / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with Hub(published.parent.parent) as hub:
        done = fetch(hub, tmp_path)
        hub.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = np.load(tmp_path / "weights.npz")
    for name, value in stored.items():
        np.testing.assert_array_equal(loaded[f"unet/{name}"], value, err_msg=name)
