"""What torchmetrics, clean-fid and pytorch-fid compute, recorded for tests/test_scores.py.

    pip install --no-deps --target DIR torchmetrics lightning-utilities clean-fid pytorch-fid torchvision scipy requests
    PYTHONPATH=DIR sh bench/torch_env.sh bench/torch_scores.py tests/fixtures/torch_scores.json

Features, pictures and Inception's weights come from seeded NumPy generators, so that only results are stored.
"""

import json
import sys
import zlib
from pathlib import Path
from unittest import mock

import numpy as np


def make_features(seed, count, width):
    """Correlated features [count, width] that are far from zero, as Inception's are."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal([width, width]) / np.sqrt(width)
    return rng.standard_normal([count, width]) @ mixing + 5 * rng.random(width)


def make_weight(name, shape):
    """A weight of Inception, by its name in the PyTorch port; activations keep their size from layer to layer."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 4:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    positive = name.endswith(("running_var", "bn.weight"))
    return (1 + 0.2 * rng.random(shape) if positive else 0.1 * rng.standard_normal(shape)).astype(np.float32)


def make_pictures():
    """Two pictures, uint8 [2,64,48,3]: smooth ones, as real pictures are."""
    y, x = np.mgrid[0:64, 0:48]
    waves = [np.sin(x / (3 + c) + y / (5 + p)) * 100 + 127 for p in range(2) for c in range(3)]
    return np.stack(waves).reshape([2, 3, 64, 48]).transpose([0, 2, 3, 1]).astype(np.uint8)


def seeded_inception(port, build):
    """The port's network without its download, with weights by `make_weight`."""
    import torch

    nothing = mock.patch.object(port, "load_state_dict_from_url", return_value={})
    with nothing, mock.patch.object(torch.nn.Module, "load_state_dict"):
        network = build()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if value.ndim}
    weights = {name: torch.from_numpy(make_weight(name, shape)) for name, shape in shapes.items()}
    network.load_state_dict(weights, strict=False)
    return network


def main():
    import torch

    # torchvision's compiled operators may not fit a PyTorch for CPUs. The network needs none of them.
    with mock.patch.object(torch.library, "register_fake", lambda *arguments, **options: lambda function: function):
        import torchvision  # noqa: F401
    import cleanfid.fid
    from pytorch_fid import inception as port
    from torchmetrics.image.fid import _compute_fid

    a, b = make_features(1, 400, 64), make_features(2, 300, 64)
    moments = [(features.mean(0), np.cov(features, rowvar=False)) for features in (a, b)]
    build = port.fid_inception_v3
    with mock.patch.object(port, "fid_inception_v3", lambda: seeded_inception(port, build)):
        network = port.InceptionV3([3]).eval()
    pixels = torch.from_numpy(make_pictures().transpose([0, 3, 1, 2]).astype(np.float32) / 255)
    with torch.no_grad():
        features = network(pixels)[0].flatten(1).double().numpy()
    results = {
        "torchmetrics_fid": float(_compute_fid(*(torch.from_numpy(value) for pair in moments for value in pair))),
        "cleanfid_fid": float(cleanfid.fid.frechet_distance(*moments[0], *moments[1])),
        "torch_cosines": torch.cosine_similarity(torch.from_numpy(a[:300]), torch.from_numpy(b)).tolist()[:20],
        "inception_norms": np.linalg.norm(features, axis=1).tolist(),
        "inception_features": features[:, ::64].round(9).tolist(),
    }
    Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
