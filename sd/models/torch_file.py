"""Weights in PyTorch's own files (.pth, .bin) without PyTorch, and without running what a pickle may hold.

    python -m sd.models.torch_file pytorch_model.bin model.safetensors

writes them as safetensors. Both layouts of `torch.save` are read: the zip archive, and the one before PyTorch 1.6.
"""

import sys

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    from sd.entry import run

    run("sd.models.torch_file")
    sys.exit()

import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import numpy as np

from sd.errors import InputError
from sd.files import atomic_path
from sd.models.paddle_file import from_bfloat16

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "BFloat16Storage": np.uint16,  # NumPy has no bfloat16; made float32 in the end
}


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of a state dict saved by `torch.save`, bfloat16 as float32. Raises InputError for anything else.

    Of a training checkpoint (.ckpt) the `state_dict` is read; everything else in it is skipped, not run.
    """
    path = Path(path)
    try:
        content = _read_archive(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: no readable PyTorch file ({error}); copy or download it again") from None
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no readable PyTorch file ({error}); copy or download it again") from None
    if path.suffix == ".ckpt" and isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(isinstance(value, np.ndarray) for value in content.values()):
        raise InputError(f"{path}: holds more than named weights; save the model's state_dict() alone")
    return {name: from_bfloat16(value) if value.dtype == np.uint16 else value for name, value in content.items()}


class _Inert:
    """Stands for an object that is skipped: accepts anything from a pickle and does nothing."""

    def __init__(self, *_, **__):
        pass

    __call__ = __setstate__ = __setitem__ = append = extend = add = update = __init__


class _Unpickler(pickle.Unpickler):
    """Knows dicts, numbers, texts and tensors; every other name in the file ends the reading."""

    def __init__(self, file, path):
        super().__init__(file)
        self.storages = {}  # key -> array, filled once the pickle has been read
        self._path, self._bytes = path, path.stat().st_size

    def find_class(self, module, name):
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) not in allowed and self._path.suffix == ".ckpt":
            return _Inert
        if (module, name) not in allowed:
            raise InputError(f"{self._path}: holds {module}.{name}, which is no weight; save the state_dict() alone")
        return allowed[module, name]

    def persistent_load(self, saved):
        kind, storage, key, _, count, *_ = saved
        if kind != "storage" or count * np.dtype(_DTYPES[storage]).itemsize > self._bytes:
            raise InputError(f"{self._path}: is cut off or damaged; copy or download it again")
        return self.storages.setdefault(key, np.zeros(count, _DTYPES[storage]))


def _rebuild_tensor(storage, offset, shape, strides, *_):
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    if offset < 0 or min(strides, default=0) < 0 or last >= len(storage):
        raise ValueError(f"a tensor of shape {list(shape)} lies outside its {len(storage)} numbers")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps)


def _read_archive(path):
    with zipfile.ZipFile(path) as archive:
        (listing,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        root = listing.removesuffix("data.pkl")
        named = f"{root}byteorder" in archive.namelist()
        order = "big" if named and archive.read(f"{root}byteorder") != b"little" else "little"
        with archive.open(listing) as file:
            reader = _Unpickler(file, path)
            content = reader.load()
        for key, storage in reader.storages.items():
            _fill(storage, archive.read(f"{root}data/{key}"), order)
    return content


def _read_legacy(path):
    with path.open("rb") as file:
        if _Unpickler(file, path).load() != _MAGIC or _Unpickler(file, path).load() != _PROTOCOL:
            raise ValueError("its first bytes are those of no such file")
        order: Literal["little", "big"] = "little" if _Unpickler(file, path).load()["little_endian"] else "big"
        reader = _Unpickler(file, path)
        content = reader.load()
        for key in _Unpickler(file, path).load():
            storage = reader.storages[key]
            if int.from_bytes(file.read(8), order) != len(storage):
                raise ValueError(f"storage {key} is not as long as its tensors")
            _fill(storage, file.read(storage.nbytes), order)
    return content


def _fill(storage, data, order):
    value = np.frombuffer(data, storage.dtype.newbyteorder("<" if order == "little" else ">"))
    if len(value) != len(storage):
        raise ValueError(f"{len(value)} numbers where {len(storage)} were expected")
    storage[:] = value


def main() -> None:
    """Convert the file named first to the safetensors file named second."""
    from safetensors.numpy import save_file

    if len(sys.argv) != 3 or not sys.argv[2].endswith(".safetensors"):
        raise InputError("expected two names: a PyTorch file, and the .safetensors file to be written")
    source, target = map(Path, sys.argv[1:])
    if target.exists():
        raise InputError(f"{target} is there already; remove it or choose another name")
    weights = {name: np.ascontiguousarray(value) for name, value in read_torch_file(source).items()}
    with atomic_path(target) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
        shutil.copymode(source, temporary)  # safetensors lets its owner alone read it
    print(f"{len(weights)} weights: {target}")
