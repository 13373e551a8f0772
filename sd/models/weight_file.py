"""Named arrays of one weight file: safetensors, `torch.save` or `paddle.save`. Nothing that a pickle holds is run."""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from sd.errors import InputError, first_line
from sd.models.paddle_file import from_bfloat16, read_paddle_file
from sd.models.torch_file import read_torch_file

SAFETENSORS, PADDLE, TORCH = ".safetensors", ".pdparams", (".ckpt", ".bin", ".pt", ".pth")


class WeightFile:
    """What a weight file holds, tensor by tensor.

    shapes: {name: shape as stored}; metadata: the header's texts (safetensors alone); from_torch: whether the matrix
    of a linear layer lies as [out, in], as PyTorch keeps it, where Paddle keeps [in, out].
    Raises InputError, naming the file, if it cannot be read or is a pickle that holds more than plain arrays.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self._arrays: dict[str, np.ndarray] = {}
        if self.path.suffix == SAFETENSORS:
            with _opened(self.path) as file:
                self.metadata = file.metadata() or {}
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            self.from_torch = self.metadata.get("format", "pt") == "pt"
        else:
            self.from_torch = self.path.suffix != PADDLE
            self._arrays = (read_torch_file if self.from_torch else read_paddle_file)(self.path)
            self.shapes = {name: array.shape for name, array in self._arrays.items()}

    def array(self, name: str) -> np.ndarray:
        """One tensor as float32, in the layout in which it is stored."""
        if self._arrays:
            return self._arrays[name].astype(np.float32, copy=False)
        # Opened anew for each tensor: one mapping of the whole file would count as memory of this process.
        with _opened(self.path) as file:
            if file.get_slice(name).get_dtype() != "BF16":
                return file.get_tensor(name).astype(np.float32, copy=False)
        header, data_start = read_header(self.path)  # safetensors has no bfloat16 for NumPy
        start, end = header[name]["data_offsets"]
        bits = np.fromfile(self.path, "<u2", (end - start) // 2, offset=data_start + start)
        return from_bfloat16(bits).reshape(self.shapes[name])


def read_header(path: Path) -> tuple[dict, int]:
    """(header of a safetensors file without its metadata, position of the first tensor's first byte).

    The format: 8 bytes with the header's length, little-endian; the header, JSON; the tensors' bytes
    (https://github.com/huggingface/safetensors#format). Raises InputError if the file is cut or is none.
    """
    try:
        with path.open("rb") as file:
            (num_bytes,) = struct.unpack("<Q", file.read(8))
            if num_bytes > path.stat().st_size:
                raise ValueError("cut")
            header = json.loads(file.read(num_bytes))
        header.pop("__metadata__", None)
    except (OSError, ValueError, AttributeError, TypeError, struct.error) as error:
        raise InputError(f"{path}: unreadable weights ({error}); copy or download the file again") from error
    return header, 8 + num_bytes


def read_safetensors(path: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) of a safetensors file, one tensor at a time. Raises InputError if it is unreadable."""
    with _opened(Path(path)) as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            yield name, file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator:
    try:
        with safe_open(str(path), framework="np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: unreadable weights ({first_line(error)}); copy or download the file again"
        ) from error
