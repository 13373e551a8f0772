"""FID and CLIP score against scipy in float64 and, by a recorded fixture, against torchmetrics and clean-fid; FID's
Inception against the PyTorch port on equal weights."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file
from scipy import linalg

from bench.torch_scores import make_features, make_pictures, make_weight
from sd.errors import InputError
from sd.metrics.inception import Inception, load_inception
from sd.metrics.scores import Moments, clip_scores, frechet_distance
from tests.models.test_torch_file import Saver
from tests.numeric import assert_close

RECORDED = json.loads((Path(__file__).resolve().parents[1] / "fixtures" / "torch_scores.json").read_text())


def moments(features):
    return features.mean(0), np.cov(features, rowvar=False)


def test_moments_in_batches_are_those_of_all():
    features = make_features(0, 101, 16) + 1e4
    seen = Moments(16)
    for start in range(0, 101, 17):
        seen.add(features[start : start + 17])
    mean, covariance = seen.mean_and_covariance()
    assert seen.count == 101
    assert np.allclose(mean, features.mean(0), rtol=1e-13) and np.allclose(covariance, moments(features)[1], rtol=1e-8)
    with pytest.raises(InputError, match="1 pictures have no covariance"):
        single = Moments(16)
        single.add(features[:1])
        single.mean_and_covariance()


def test_fid_agrees_with_torchmetrics_and_clean_fid():
    ours = frechet_distance(*moments(make_features(1, 400, 64)), *moments(make_features(2, 300, 64)))
    assert ours == pytest.approx(RECORDED["torchmetrics_fid"], rel=1e-9)
    assert ours == pytest.approx(RECORDED["cleanfid_fid"], rel=1e-9)


@pytest.mark.parametrize("count", [200, 20])
def test_fid_agrees_with_scipy(count):
    """With 20 features of 32 numbers both covariances are singular."""
    (mean_a, a), (mean_b, b) = (moments(make_features(seed, count, 32)) for seed in (3, 4))
    root = linalg.sqrtm(a @ b).real
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(a) + np.trace(b) - 2 * np.trace(root)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-6)


def test_fid_of_known_gaussians():
    one = np.eye(3)
    assert frechet_distance(np.zeros(3), one, np.zeros(3), one) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(np.zeros(3), one, np.array([3.0, 4, 0]), 4 * one) == pytest.approx(25 + 3 * (1 + 4 - 4))


def test_clip_scores_are_cosines_cut_at_zero():
    images, texts = make_features(1, 400, 64)[:20], make_features(2, 300, 64)[:20]
    assert clip_scores(images, texts) == pytest.approx(RECORDED["torch_cosines"], rel=1e-6)
    assert clip_scores([[2.0, 0], [1, 1]], [[-1.0, 0], [0, 3]]) == pytest.approx([0, 0.5**0.5])


@pytest.fixture(scope="module")
def inception_weights():
    """The seeded weights under the port's names, with what else its file holds."""
    weights = {"fc.weight": np.zeros([1008, 2048], np.float32), "fc.bias": np.zeros(1008, np.float32)}
    names = {"_mean": "running_mean", "_variance": "running_var"}
    for name, tensor in Inception().state_dict().items():
        stem, _, last = name.rpartition(".")
        ported = f"{stem}.{names.get(last, last)}"
        weights[ported] = make_weight(ported, tuple(tensor.shape))
    return weights


def test_inception_agrees_with_the_pytorch_port(inception_weights, tmp_path):
    save_file(inception_weights, tmp_path / "inception.safetensors")
    network = load_inception(tmp_path / "inception.safetensors")
    pixels = paddle.to_tensor(make_pictures().transpose([0, 3, 1, 2]).astype("float32") / 127.5 - 1)
    with paddle.no_grad():
        features = network(pixels).numpy().astype(np.float64)
    assert features.shape == (2, 2048)
    # 48 convolutions one after another, of 200 terms on average in float32 on both sides.
    assert_close(np.linalg.norm(features, axis=1), np.array(RECORDED["inception_norms"]), 48 * 200)
    assert_close(features[:, ::64], np.array(RECORDED["inception_features"]), 48 * 200)


def test_the_published_file_is_read_as_it_is(inception_weights, tmp_path, monkeypatch):
    """pt_inception-2015-12-05-6726825d.pth: torchvision's names, a classifier of 1008, counters of batches.

    The trunk has the weights of torchvision's Inception-v3: 27,161,264 without 3,326,696 of the side classifier and
    2,049,000 of the last layer.
    """
    trunk = {name: value for name, value in inception_weights.items() if not name.startswith("fc.")}
    assert sum(value.size for name, value in trunk.items() if "running" not in name) == 21_785_568
    assert sum(name.endswith("conv.weight") for name in trunk) == 94
    counters = {name.replace("running_var", "num_batches_tracked"): np.zeros(1, np.int64) for name in trunk}
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    Saver(monkeypatch).archive(
        path, inception_weights | {n: v for n, v in counters.items() if n.endswith("num_batches_tracked")}
    )
    actual = load_inception(path).state_dict()
    assert len(actual) == len(trunk) == 94 * 5
    last = "Mixed_7c.branch3x3dbl_3b"
    assert np.array_equal(actual[f"{last}.conv.weight"], trunk[f"{last}.conv.weight"])
    assert np.array_equal(actual[f"{last}.bn._variance"], trunk[f"{last}.bn.running_var"])


def test_other_weights_are_no_inception(inception_weights, tmp_path):
    path = tmp_path / "w.safetensors"
    missing = {name: value for name, value in inception_weights.items() if "Mixed_7c" not in name}
    for weights, message in (
        (missing, "lacks 45 weights of FID's Inception-v3"),
        (inception_weights | {"other.weight": np.zeros(1, np.float32)}, "other.weight .* is no weight"),
    ):
        save_file(weights, path)
        with pytest.raises(InputError, match=message):
            load_inception(path)
    path.write_bytes(b"junk")
    with pytest.raises(InputError, match="unreadable weights"):
        load_inception(path)
