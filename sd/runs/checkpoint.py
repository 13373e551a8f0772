"""Atomic checkpoints: temporary folder, manifest of sizes and checksums, fsync, rename."""

import errno
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import xxhash

from sd.errors import InputError, RunError
from sd.files import fsync, is_disk_full, is_unfinished, publish
from sd.models.weight_file import read_safetensors
from sd.processes.locks import LockHeldError, lock_file

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
DAMAGED = "damaged.txt"  # in a checkpoint that a start has skipped: the reason
_NAME = re.compile(r"checkpoint-(\d+)")
_ASIDE = re.compile(r"checkpoint-\d+\.(tmp|old)")
_DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "int32": "I32", "uint8": "U8"}
_BLOCK_BYTES = 1 << 24


class DiskFullError(OSError):
    """The disk is full: a checkpoint did not fit. Attributes: step, needed_bytes, free_bytes."""

    def __init__(self, step: int, folder: str | Path, needed_bytes: int, free_bytes: int):
        cause = f"it needs {needed_bytes / 1e6:,.1f} MB, {free_bytes / 1e6:,.1f} MB are free in {folder}"
        if needed_bytes <= free_bytes:
            cause = f"{folder} is full, although {free_bytes / 1e6:,.1f} MB are free: a quota, or no inodes"
        super().__init__(errno.ENOSPC, f"checkpoint-{step} not saved: {cause}")
        self.step, self.needed_bytes, self.free_bytes = step, needed_bytes, free_bytes


class NonFiniteError(RunError):
    """A tensor that a checkpoint was to hold has NaN or infinite values."""


def lock_output_dir(output_dir: str | os.PathLike) -> TextIO:
    """Make output_dir, take its lock until the process ends, and return the open lock file.

    Raises InputError where the folder cannot be written or another run holds it.
    """
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        return lock_file(Path(output_dir))
    except LockHeldError as error:
        raise InputError(f"--output_dir {output_dir} is in use by {error}; end it or choose another folder") from None
    except OSError as error:
        raise InputError(f"--output_dir {output_dir} cannot be written: {error.strerror}; choose another") from None


class CheckpointWriter:
    """Writes one checkpoint atomically: files into `checkpoint-N.tmp`, which `commit` renames."""

    def __init__(self, output_dir: str | Path, step: int):
        self.step = step
        self.final = Path(output_dir) / f"checkpoint-{step}"
        self.folder = Path(output_dir) / f"checkpoint-{step}.tmp"
        self.files = {}

    def write_tensors(self, name: str, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> None:
        """Write a safetensors file, tensor by tensor, so that one tensor at a time is copied to the host.

        tensors: name -> Paddle tensor or NumPy array. (The library's own writer copies them all to memory first.)
        Raises NonFiniteError where a number in them is NaN or infinite.
        """
        tensors = {key: tensors[key] for key in sorted(tensors)}
        header, end = {}, 0
        for key, tensor in tensors.items():
            dtype = _dtype_name(tensor)
            begin, end = end, end + int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            header[key] = {"dtype": _DTYPES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        text = json.dumps({"__metadata__": metadata or {"format": "pd"}, **header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._need_space(8 + len(text) + end)
        self._write(name, itertools.chain(_lead(text), (self._finite(name, *item) for item in tensors.items())))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self._write(name, [(json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()])

    def add(self, name: str) -> None:
        """Take a file that other code has put into `folder` into the manifest."""
        path = self.folder / name
        self.files[name] = {"bytes": path.stat().st_size, "xxh3_128": _checksum(path)}
        fsync(path)

    def commit(self) -> Path:
        """Write the manifest, fsync everything, and rename the folder to its final name."""
        self.write_json(MANIFEST, {"step": self.step, "files": dict(sorted(self.files.items()))})
        for folder in {path.parent for path in self.folder.rglob("*")}:
            fsync(folder)
        remove_checkpoint(self.final)  # a damaged one of the same step
        publish(self.folder, self.final)
        return self.final

    def discard(self) -> None:
        """Remove what has been written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def full(self, needed_bytes: int = 0) -> DiskFullError:
        """The DiskFullError for `needed_bytes` more than there is room for."""
        written = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.folder if self.folder.exists() else self.final.parent).free
        return DiskFullError(self.step, self.final.parent, needed_bytes + written, free + written)

    def _need_space(self, needed_bytes):
        self.folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free < needed_bytes:
            raise self.full(needed_bytes)

    def _finite(self, name, key, tensor):
        raw = _raw(tensor)
        if not _is_finite(raw, _dtype_name(tensor)):
            raise NonFiniteError(
                f"checkpoint-{self.step} not saved: {key} of {name} has NaN or infinite values, and so has the model; "
                "resume from an earlier checkpoint with a lower --learning_rate or without half precision"
            )
        return raw

    def _write(self, name, blocks):
        path = self.folder / name
        digest, written, pending = xxhash.xxh3_128(), 0, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb", buffering=0) as file:
                for block in blocks:
                    view = memoryview(block).cast("B")
                    pending = len(view)
                    for start in range(0, len(view), _BLOCK_BYTES):
                        part = view[start : start + _BLOCK_BYTES]
                        digest.update(part)
                        while part:
                            part = part[file.write(part) :]
                    written += len(view)
                os.fsync(file.fileno())
        except OSError as error:
            if is_disk_full(error):
                raise self.full(pending) from None
            raise
        self.files[name] = {"bytes": written, "xxh3_128": digest.hexdigest()}


def _lead(text):
    return [len(text).to_bytes(8, "little"), text]


def _dtype_name(tensor):
    return str(tensor.dtype).rpartition(".")[2]


def _raw(tensor):
    array = tensor if isinstance(tensor, np.ndarray) else tensor.numpy()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _is_finite(raw, dtype):
    """Whether the bytes hold neither NaN nor infinity, if they are floats."""
    if not dtype.startswith("float") or not len(raw):
        return True
    array = raw.view(dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # a sum costs a fraction, and is not finite if a number is not
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())


def _checksum(path):
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def find_problem(folder: str | os.PathLike, thorough: bool = True, only: str | None = None) -> str | None:
    """What is wrong with a checkpoint, as a phrase, or None if every file has its size and, if `thorough`, its
    checksum, and no tensor has a number that is NaN or infinite. only: the name of the one file that is looked at."""
    folder = Path(folder)
    try:
        if (folder / DAMAGED).exists():
            return (folder / DAMAGED).read_text().strip()
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, entry in files.items():
        path = folder / name
        if only not in (None, name):
            continue
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, {entry['bytes']:,} were written"
        if thorough and _checksum(path) != entry["xxh3_128"]:
            return f"{name} does not have the checksum that was written"
        if thorough and path.suffix == ".safetensors" and (bad := _non_finite(path)):
            return f"{bad} of {name} has NaN or infinite values"
    return None


def _non_finite(path):
    """The name of a tensor with a NaN or infinite value, or None."""
    for name, array in read_safetensors(path):
        if not _is_finite(_raw(array), _dtype_name(array)):
            return name
    return None


def checkpoint_step(folder: str | Path) -> int | None:
    """The N of a folder named checkpoint-N, else None."""
    match = _NAME.fullmatch(Path(folder).name)
    return int(match[1]) if match else None


def list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Folders checkpoint-N below output_dir, oldest step first."""
    folders = [(checkpoint_step(path), path) for path in Path(output_dir).glob("checkpoint-*")]
    return [path for step, path in sorted(pair for pair in folders if pair[0] is not None) if path.is_dir()]


def newest_intact_checkpoint(output_dir: str | os.PathLike, mark: bool = False) -> Path | None:
    """The newest intact checkpoint, or None: files by size and checksum as in its manifest, no NaN or infinite value.

    Each damaged one passed over is named, and with `mark`, for the holder of the lock alone, gets a file that says so,
    by which it is known without being read again.
    """
    for folder in reversed(list_checkpoints(output_dir)):
        problem = find_problem(folder)
        if problem is None:
            return folder
        logger.warning("%s is damaged: %s; trying the previous checkpoint", folder, problem)
        if mark:
            with suppress(OSError):
                (folder / DAMAGED).write_text(problem + "\n")
    return None


def remove_checkpoint(folder: str | Path) -> None:
    """Remove a checkpoint: renamed first, so that a kill in between leaves no folder that looks valid."""
    folder = Path(folder)
    if folder.exists():
        renamed = folder.with_name(folder.name + ".old")
        shutil.rmtree(renamed, ignore_errors=True)
        folder.rename(renamed)
        shutil.rmtree(renamed, ignore_errors=True)


def remove_leftovers(output_dir: str | os.PathLike) -> None:
    """Remove temporary folders and files of a killed run. Call it only under the lock."""
    for path in Path(output_dir).iterdir():
        if _ASIDE.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif is_unfinished(path.name):
            path.unlink(missing_ok=True)


def keep_newest(output_dir: str | os.PathLike, limit: int | None) -> None:
    """Remove what is older than the newest `limit` intact checkpoints; None or 0 keeps all.

    Damaged ones do not count: those of lost or cut files, and those that a start has passed over.
    """
    if limit is None or limit <= 0:
        return
    num_intact = 0
    for folder in reversed(list_checkpoints(output_dir)):
        if num_intact == limit:
            logger.info("removing %s (save_total_limit=%d)", folder, limit)
            remove_checkpoint(folder)
        elif find_problem(folder, thorough=False) is None:
            num_intact += 1


def read_json(folder: str | Path, name: str) -> Any:
    """The content of a JSON file in a checkpoint."""
    return json.loads((Path(folder) / name).read_text())
