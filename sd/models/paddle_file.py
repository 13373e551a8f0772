"""Weights in Paddle's own files (.pdparams, as `paddle.save` writes a state dict) without running a pickle's code."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np

from sd.errors import InputError, first_line

# What a state dict needs besides numbers and texts. NumPy 1 and 2 name the first by different modules.
_ALLOWED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy._core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "tuple"): tuple,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}
_NAMES_TABLE = "StructuredToParameterName@@"  # which older versions of Paddle keep beside the weights


def read_paddle_file(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of a state dict saved by `paddle.save`, bfloat16 as float32.

    Raises InputError for a file that cannot be read, and for anything in it that is no plain array.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, path).load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path}: no readable Paddle file ({first_line(error)}); copy or download it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; expected a state dict, {{name: array}}")
    content.pop(_NAMES_TABLE, None)
    arrays = {}
    for name, value in content.items():
        if isinstance(value, tuple) and len(value) == 2:  # (the tensor's own name, its values)
            value = value[1]
        if not isinstance(name, str) or not isinstance(value, np.ndarray) or value.dtype.hasobject:
            raise InputError(f"{path}: {name!r} is a {type(value).__name__}; expected arrays alone, {_REMEDY}")
        arrays[name] = from_bfloat16(value) if value.dtype == np.uint16 else value
    return arrays


_REMEDY = "so convert it where you trust it: load it with ppdiffusers and save_pretrained(..., safe_serialization=True)"


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 numbers given as uint16, the upper half of a float32; the shape stays."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class _Unpickler(pickle.Unpickler):
    """Knows arrays, dicts, numbers and texts; any other name in the file ends the reading."""

    def __init__(self, file, path: Path):
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED_GLOBALS:
            raise InputError(f"{self._path}: holds {module}.{name}, which is no plain array, {_REMEDY}")
        return _ALLOWED_GLOBALS[module, name]
