"""PyTorch's files without PyTorch: what torch.save wrote is read, what could run code or lie is refused."""

import io
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sd.errors import InputError
from sd.models.torch_file import read_torch_file

ROOT = Path(__file__).resolve().parents[2]
STORAGES = {np.dtype(kind): f"{name}Storage" for kind, name in (("f4", "Float"), ("i8", "Long"), ("f2", "Half"))}


class Saver:
    """Writes arrays as torch.save does: tensors by name of a function that rebuilds them from a numbered storage."""

    def __init__(self, monkeypatch):
        self._storages, self.added_to_shapes = {}, 0
        torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
        for name in STORAGES.values():
            setattr(torch, name, type(name, (), {"__module__": "torch"}))
        utils._rebuild_tensor_v2 = lambda *_: None
        utils._rebuild_tensor_v2.__module__ = "torch._utils"
        utils._rebuild_tensor_v2.__qualname__ = utils._rebuild_tensor_v2.__name__ = "_rebuild_tensor_v2"
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setitem(sys.modules, "torch._utils", utils)

    def dump(self, value, extra=()):
        saver = self
        self._storages = {}

        class Storage:
            def __init__(self, array):
                self.array = array

        class Pickler(pickle.Pickler):
            def persistent_id(self, actual):
                if isinstance(actual, Storage):
                    key = str(len(saver._storages))
                    saver._storages[key] = actual.array
                    kind = getattr(sys.modules["torch"], STORAGES[actual.array.dtype])
                    return ("storage", kind, key, "cpu", actual.array.size, *extra)
                return None

            def reducer_override(self, actual):
                if isinstance(actual, np.ndarray):
                    base = actual if actual.base is None else actual.base
                    offset = (actual.ctypes.data - base.ctypes.data) // actual.itemsize
                    strides = tuple(stride // actual.itemsize for stride in actual.strides)
                    rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
                    shape = tuple(size + saver.added_to_shapes for size in actual.shape)
                    return rebuild, (Storage(base.reshape(-1)), offset, shape, strides, False, OrderedDict())
                return NotImplemented

        file = io.BytesIO()
        Pickler(file, protocol=2).dump(value)
        return file.getvalue()

    def archive(self, path, value):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", self.dump(value))
            for key, array in self._storages.items():
                archive.writestr(f"archive/data/{key}", array.tobytes())
            archive.writestr("archive/version", "3\n")

    def legacy(self, path, value):
        parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        parts += [self.dump(value, extra=(None,)), pickle.dumps(list(self._storages), 2)]
        parts += [struct.pack("<q", array.size) + array.tobytes() for array in self._storages.values()]
        path.write_bytes(b"".join(parts))


@pytest.fixture
def saver(monkeypatch):
    return Saver(monkeypatch)


def weights():
    rng = np.random.default_rng(0)
    both = rng.standard_normal([4, 6]).astype(np.float32)
    return OrderedDict(
        matrix=rng.standard_normal([3, 5]).astype(np.float32),
        row=both[1],  # a view into a larger storage
        turned=both.T,
        count=np.array([7], np.int64),
        half=rng.standard_normal([2, 2]).astype(np.float16),
    )


@pytest.mark.parametrize("layout", ["archive", "legacy"])
def test_every_tensor_comes_back(saver, tmp_path, layout):
    getattr(saver, layout)(tmp_path / "w.pth", weights())
    actual = read_torch_file(tmp_path / "w.pth")
    assert list(actual) == list(weights())
    for name, value in weights().items():
        assert actual[name].dtype == value.dtype and np.array_equal(actual[name], value)


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_files_written_by_torch_are_read(name):
    """Made by PyTorch 2.13: {"a": arange(6).reshape(2, 3), "b": a.T, "n": tensor(5), "h": half of a}."""
    actual = read_torch_file(ROOT / "tests/fixtures" / name)
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert actual["n"] == 5 and actual["n"].dtype == np.int64 and actual["h"].dtype == np.float16
    assert np.array_equal(actual["a"], a) and np.array_equal(actual["b"], a.T) and np.array_equal(actual["h"], a / 2)


def test_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path(tmp_path / "ran").touch, ()

    for path in (tmp_path / "legacy.pth", tmp_path / "zip.pth"):
        path.write_bytes(pickle.dumps(Evil()))
        if path.stem == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a/data.pkl", pickle.dumps({"w": Evil()}))
        with pytest.raises(InputError, match=r"holds .*which is no weight"):
            read_torch_file(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("layout", ["archive", "legacy"])
def test_damage_is_named(saver, tmp_path, layout):
    path = tmp_path / "w.pth"
    getattr(saver, layout)(path, weights())
    whole = path.read_bytes()
    for stored in (0, 1, 40, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:stored])
        with pytest.raises(InputError, match=r"w.pth: (no readable PyTorch file|is cut off)"):
            read_torch_file(path)
    getattr(saver, layout)(path, {"epoch": 3, "model": weights()})
    with pytest.raises(InputError, match="holds more than named weights"):
        read_torch_file(path)


def test_a_tensor_outside_its_storage_is_refused(saver, tmp_path):
    saver.added_to_shapes = 1
    saver.archive(tmp_path / "w.pth", weights())
    with pytest.raises(InputError, match=r"a tensor of shape \[4, 6\] lies outside its 15 numbers"):
        read_torch_file(tmp_path / "w.pth")


def test_a_torch_file_is_converted_to_equal_safetensors(saver, tmp_path):
    saver.archive(tmp_path / "w.bin", weights())
    command = [sys.executable, "-m", "sd.models.torch_file", str(tmp_path / "w.bin"), str(tmp_path / "w.safetensors")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.startswith("5 weights: ")
    actual = load_file(tmp_path / "w.safetensors")
    assert all(np.array_equal(actual[name], value) for name, value in weights().items())
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and "is there already" in again.stderr
