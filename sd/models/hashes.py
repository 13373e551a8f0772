"""What names a model by its content: a hash of its weights as they lie in the file, or of a tokenizer's vocabulary."""

import gc
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from sd.errors import InputError
from sd.models.loading import load_component
from sd.models.weight_file import SAFETENSORS, read_header
from sd.models.weights import find_weights

_PIECE_BYTES = 4 << 20
_DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "int32": "I32", "uint8": "U8"}


def weights_hash(component: str, name: str, subfolder: str | None = None, loaded: Any | None = None) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a model's tensors, ordered by name; of a tokenizer's vocabulary.

    component, name, subfolder: as `load_component` takes them. A local folder's safetensors is read in pieces;
    of any other model the tensors are hashed as they are `loaded`, or if None loaded, hashed and freed. The same
    weights in the file of another library, under other names, have another hash. Raises InputError if it cannot be
    loaded.
    """
    if component == "tokenizer":
        return tokenizer_hash(loaded or load_component(component, name, subfolder))
    if Path(name).is_dir():
        path = find_weights(Path(name, subfolder or ""))
        if path.suffix == SAFETENSORS:
            return _hash_file(path)
    digest = hashlib.sha256()
    layer = load_component(component, name, subfolder) if loaded is None else loaded
    for key, tensor in sorted(layer.state_dict().items()):
        array = np.ascontiguousarray(tensor.numpy())
        digest.update(_line(key, _DTYPES[str(array.dtype)], array.shape))
        digest.update(array.data)
    if loaded is None:
        del layer
        gc.collect()
    return digest.hexdigest()


def content_id(*layers: Any) -> str:
    """Twelve hexadecimal digits that stand for the names, shapes and values of loaded layers' tensors, as float32."""
    digest = xxhash.xxh3_128()
    for layer in layers:
        for name, tensor in sorted(layer.state_dict().items()):
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            digest.update(np.ascontiguousarray(tensor.astype("float32").numpy()).data)
    return digest.hexdigest()[:12]


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over a tokenizer's vocabulary and merges."""
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
    content = {"tokens": tokenizer.get_vocab(), "merges": merges}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash_file(path):
    header, data_start = read_header(path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for key, tensor in sorted(header.items()):
                digest.update(_line(key, tensor["dtype"], tensor["shape"]))
                start, end = tensor["data_offsets"]
                file.seek(data_start + start)
                for at in range(start, end, _PIECE_BYTES):
                    digest.update(file.read(min(_PIECE_BYTES, end - at)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: unreadable weights ({error}); copy or download the file again") from error
    return digest.hexdigest()


def _line(name, dtype, shape):
    return f"{name} {dtype} {list(shape)}\n".encode()
