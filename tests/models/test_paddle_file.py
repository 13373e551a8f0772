"""Paddle's own weight files, as `paddle.save` writes them: the same values, and no code that a pickle holds."""

import pickle
import shutil

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from sd.errors import InputError
from sd.models.loading import load_component
from sd.models.paddle_file import read_paddle_file
from sd.sampling.models import load_models
from tests.tiny import make_tiny_repository


@pytest.fixture
def state():
    paddle.seed(0)
    return {"matrix": paddle.randn([3, 5]), "count": paddle.to_tensor([7]), "scalar": paddle.to_tensor(0.5)}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_tensor_of_paddle_save_comes_back(state, tmp_path, protocol):
    paddle.save(state, str(tmp_path / "w.pdparams"), protocol=protocol)
    read = read_paddle_file(tmp_path / "w.pdparams")
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(read[name], tensor.numpy())


def test_a_layers_state_dict_and_numpy_arrays_come_back(tmp_path):
    layer = paddle.nn.Linear(4, 3)
    paddle.save(layer.state_dict(), str(tmp_path / "layer.pdparams"))
    np.testing.assert_array_equal(read_paddle_file(tmp_path / "layer.pdparams")["weight"], layer.weight.numpy())
    paddle.save({"a": np.arange(4.0)}, str(tmp_path / "arrays.pdparams"))
    np.testing.assert_array_equal(read_paddle_file(tmp_path / "arrays.pdparams")["a"], np.arange(4.0))


def test_bfloat16_becomes_the_same_values_in_float32(tmp_path):
    values = [1.0, -2.5, 3.140625, 2.0**-130]  # each a bfloat16, the last one subnormal
    paddle.save({"w": paddle.to_tensor(values).astype("bfloat16")}, str(tmp_path / "w.pdparams"))
    read = read_paddle_file(tmp_path / "w.pdparams")["w"]
    assert read.dtype == np.float32 and read.tolist() == values


def test_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps({"w": Evil()}))
    with pytest.raises(InputError, match=r"holds .*, which is no plain array, so convert it where you trust it"):
        read_paddle_file(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1]), "holds a list; expected a state dict"),
        (pickle.dumps({"w": "text"}), "'w' is a str; expected arrays alone"),
        (pickle.dumps({"w": np.array([{}])}), "'w' is a ndarray; expected arrays alone"),
        (pickle.dumps({"w": np.zeros(100)})[:-50], "no readable Paddle file"),
        (b"", "no readable Paddle file"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "w.pdparams").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_paddle_file(tmp_path / "w.pdparams")
    assert str(tmp_path / "w.pdparams") in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_of_the_reference_is_sampled_and_trained_from(tmp_path):
    """The reference's trainer leaves checkpoint-N/unet with config.json and model_state.pdparams, and nothing else."""
    repository = make_tiny_repository(tmp_path / "models")
    unet = tmp_path / "output" / "checkpoint-7" / "unet"
    unet.mkdir(parents=True)
    shutil.copy(repository / "unet" / "config.json", unet)
    weights = load_file(repository / "unet" / "diffusion_paddle_model.safetensors")
    paddle.save(
        {name: paddle.to_tensor(value) * 2 for name, value in weights.items()}, str(unet / "model_state.pdparams")
    )
    started = load_component("unet", str(unet))
    drawn = load_models(str(unet.parent), pretrained_model=str(repository))
    for layer in (started, drawn.unet):
        for name, tensor in layer.state_dict().items():
            np.testing.assert_array_equal(tensor.numpy(), weights[name] * 2, err_msg=name)
