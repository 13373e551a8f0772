"""Cached parts: the payload of a row, made by VAE and text encoder, and the manifest beside a filelist."""

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sd.data.images.resize import EARLIER_RESIZER
from sd.data.parts import storage
from sd.data.parts.filelist import read_file_list
from sd.data.parts.record import RowError
from sd.errors import InputError
from sd.flags.aspect import parse_sizes

KIND = "moments"
CROPS = ("random", "centre")
VERSION = 1
_EXPONENT = np.uint16(0x7C00)  # all ones in what is infinite or no number
# A source may have grown and its caches may lie apart; these say where the rows come from, not what is in them.
_BUCKETS = ("aspect_buckets", "aspect_group_size")
_NOT_SETTINGS = ("id", "source", "num_rows", "num_bad", "empty_state", "path", "ids")


def encode_payload(moments: np.ndarray, text_states: np.ndarray | None = None) -> bytes:
    """Bytes for the third field of a row, see `decode_payload`. Raises RowError for what it would not read back."""
    tensors = {"moments": moments} if text_states is None else {"moments": moments, "text_states": text_states}
    _check(tensors)
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})


def decode_payload(data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """(moments, text_states or None) of a row's payload.

    moments: float16 [K, 2C, h, w], for each of K variants of the picture the mean and the log-variance of the VAE's
    posterior, not scaled. text_states: float16 [captions, L, D], the text encoder's last hidden state of each caption.
    Raises RowError.
    """
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RowError(f"no cached moments: {error}") from error
    _check(tensors)
    return tensors["moments"], tensors.get("text_states")


def _check(tensors):
    if not tensors.keys() <= {"moments", "text_states"} or "moments" not in tensors:
        raise RowError(f"no cached moments: it holds {', '.join(sorted(tensors)) or 'nothing'}")
    for name, tensor in tensors.items():
        dimensions = 4 if name == "moments" else 3
        if tensor.dtype != np.float16 or tensor.ndim != dimensions or 0 in tensor.shape:
            raise RowError(f"{name}: {tensor.dtype} {list(tensor.shape)}, expected float16 of {dimensions} dimensions")
        if (tensor.view(np.uint16) & _EXPONENT == _EXPONENT).any():  # a tenth of the time of np.isfinite
            raise RowError(f"{name}: NaN or infinite values")
    if tensors["moments"].shape[1] % 2:
        raise RowError(f"moments: {tensors['moments'].shape[1]} channels, expected mean and log-variance of each")


@dataclass(frozen=True)
class Manifest:
    """What a cache was made of: JSON beside each filelist, `<name>.filelist` -> `<name>.cache.json`.

    latent_shape: (C, h, w). num_crops, flip: a row has `num_variants`, each crop followed by its mirror image. seed: of
    the random crops. source: fingerprint of the file list that was read; num_rows, num_bad: of the filelist beside it.
    empty_state: the file beside it with the text states of the empty caption. That, text_encoder_hash, tokenizer_hash
    and model_max_length are None without cached text. aspect_buckets: the table of buckets as --aspect_buckets takes
    it, of whose sizes the rows are, merged for groups of aspect_group_size; both None for squares. enlarge: whether it
    holds images that are smaller than that, enlarged. resizer: the name of what resized the pictures; None in caches of
    before it was written down. id: hash of all that decides the bytes of a row. path: where it was read, "" if it was
    made here. ids: those of the caches that `find_manifest` found to agree; of this one alone if empty.
    """

    vae_hash: str
    scaling_factor: float
    resolution: int
    latent_shape: tuple
    crop: str
    num_crops: int = 1
    flip: bool = False
    interpolation: str = "lanczos"
    seed: int = 23
    precision: str = "float16"
    text_encoder_hash: str | None = None
    tokenizer_hash: str | None = None
    model_max_length: int | None = None
    aspect_buckets: str | None = None
    aspect_group_size: int | None = None
    source: str = ""
    num_rows: int = 0
    num_bad: int = 0
    empty_state: str | None = None
    version: int = VERSION
    resizer: str | None = None
    enlarge: bool = False
    id: str = ""
    path: str = field(default="", compare=False)
    ids: tuple = field(default=(), compare=False)

    def __post_init__(self):
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))
        object.__setattr__(self, "id", _hash(self.settings()))

    @property
    def has_text(self) -> bool:
        return self.text_encoder_hash is not None

    @property
    def num_variants(self) -> int:
        return self.num_crops * (2 if self.flip else 1)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) in pixels of the pictures of each bucket; of the one square without buckets."""
        if self.aspect_buckets is None:
            return ((self.resolution, self.resolution),)
        return parse_sizes(self.aspect_buckets)

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """(C, h, w) of the latents of each bucket."""
        if self.aspect_buckets is None:
            return [self.latent_shape]
        channels, height, _ = self.latent_shape
        factor = self.resolution // height
        return [(channels, tall // factor, wide // factor) for wide, tall in self.sizes]

    @property
    def decodes_by(self) -> str:
        """The resizer of its pictures, as `decode` takes it."""
        return self.resizer or EARLIER_RESIZER

    def settings(self) -> dict[str, Any]:
        """What decides the bytes of a row, as a dict for JSON."""
        settings = {name: value for name, value in asdict(self).items() if name not in _NOT_SETTINGS}
        if self.resizer is None:
            del settings["resizer"]
        if self.aspect_buckets is None:  # caches of squares are named as before there were buckets
            settings = {name: value for name, value in settings.items() if name not in _BUCKETS}
        if not self.enlarge:  # as of before there was the flag
            del settings["enlarge"]
        return settings | {"latent_shape": list(self.latent_shape)}

    def differences(self, **run: Any) -> list[str]:
        """A line `resolution was 256, is 512` for each of the given fields that differs from the cache's."""
        if "latent_shape" in run:
            run["latent_shape"] = tuple(run["latent_shape"])
        return [
            f"{name} was {_abbreviate(getattr(self, name))}, is {_abbreviate(value)}"
            for name, value in run.items()
            if _comparable(name, getattr(self, name)) != _comparable(name, value)
        ]

    def differences_from(self, other: "Manifest", left_out: Collection[str] = ()) -> list[str]:
        """As `differences`, in all settings of another Manifest and of this one but those that are left out."""
        names = [name for name in self.settings() | other.settings() if name not in left_out]
        return self.differences(**{name: getattr(other, name) for name in names})

    def to_bytes(self) -> bytes:
        """The `.cache.json` file."""
        entries = {name: value for name, value in asdict(self).items() if name not in ("path", "ids")}
        return json.dumps(entries, indent=2).encode() + b"\n"

    def empty_text_state(self) -> np.ndarray:
        """The text encoder's states of the empty caption, float16 [L, D]. Raises InputError."""
        path = storage.join(storage.folder_of(self.path), str(self.empty_state))
        try:
            return load(storage.read_bytes(path))["empty"]
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"{path}: no text states of the empty caption ({error}); cache the text again") from error


def _comparable(name, value):
    """Sizes of buckets in any order are the same buckets."""
    return parse_sizes(value) if name == "aspect_buckets" and value is not None else value


def _abbreviate(value):
    """A value for people: eight digits tell two hashes apart."""
    return value[:8] if isinstance(value, str) and re.fullmatch("[0-9a-f]{32,}", value) else value


def encode_empty_state(state: np.ndarray) -> bytes:
    """The bytes of the file that `Manifest.empty_text_state` reads. state: float16 [L, D]."""
    return save({"empty": np.ascontiguousarray(state)})


def _hash(settings):
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def manifest_path(filelist: str) -> str:
    """Where the manifest of a `.filelist` lies."""
    return str(filelist).removesuffix(".filelist") + ".cache.json"


def parse_manifest(data: bytes, path: str | Path) -> Manifest:
    """Manifest from the bytes of a `.cache.json`. Raises InputError."""
    try:
        entries = json.loads(data)
        if entries["version"] != VERSION:
            raise InputError(
                f"{path}: version {entries['version']}, this program reads {VERSION}; make the cache again"
            )
        names = {entry.name for entry in fields(Manifest)} - {"path", "ids"}
        manifest = replace(Manifest(**{name: entries[name] for name in names & entries.keys()}), path=str(path))
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: no manifest of a cache ({error}); make the cache again") from error
    if manifest.id != entries.get("id"):
        raise InputError(f"{path}: changed since it was written; make the cache again")
    return manifest


def find_manifest(file_list: str) -> Manifest | None:
    """The Manifest of a `.filelist.list` of cached parts, the first one's where several agree; None for images.

    Caches agree that differ in the seed of their crops, or of which one does not name its resizer or names the earlier.

    Raises InputError where caches of other settings, or caches and images, stand in one list.
    """
    names = [source.name for source in read_file_list(file_list)]
    manifests = [_manifest_of(name) for name in names]
    first = manifests[0]
    for name, manifest in zip(names, manifests, strict=True):
        if (first is None) != (manifest is None):
            cached, images = (names[0], name) if first else (name, names[0])
            raise InputError(f"{file_list}: {cached} is a cache of latents, {images} is not; keep them apart")
        if first is None:
            continue
        earlier = not {None, EARLIER_RESIZER}.isdisjoint((first.resizer, manifest.resizer))
        left_out = ("seed", "resizer") if earlier else ("seed",)
        if lines := first.differences_from(manifest, left_out):
            raise InputError(
                f"{file_list}: {names[0]} and {name} are caches of other settings ({'; '.join(lines)}); keep them "
                "apart, or cache both alike"
            )
    return first and replace(first, ids=tuple(manifest.id for manifest in manifests))


def _manifest_of(filelist):
    path = manifest_path(filelist)
    try:
        return parse_manifest(storage.read_bytes(path), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
