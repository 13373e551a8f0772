"""What FID and CMMD compare with: features of real pictures, or their moments, from a file or computed and kept."""

import io
import itertools
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image
from tqdm import tqdm

from sd.data.images.decode import decode_image
from sd.data.images.resize import resize
from sd.data.parts import storage
from sd.data.parts.record import RowError
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.local_copies import LocalCopies
from sd.data.streaming.stream import RowReader
from sd.errors import ArgumentError, InputError
from sd.metrics.scores import Moments
from sd.processes.watchdog import Watchdog
from sd.sampling.files import written

logger = logging.getLogger(__name__)

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_BATCH = 32


def reference_statistics(
    source: str | Path, extractor: Any, size: int | tuple[int, int], keep: Path, data_filter: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(mean [D], covariance [D, D]) of the features of real pictures.

    source: an .npz file with `mu` and `sigma`, as published ones have, a folder of pictures, or a file list of parts.
    size: the drawn pictures' side, or (height, width): real ones are resized until they cover it and cut to the middle,
    so that a picture of just that size stays as it is. What is computed is written to the file `keep`, and taken from
    there while pictures, size and extractor are the same. data_filter: which rows of a file list count. Raises
    InputError for what does not fit the extractor.
    """
    arrays = _arrays(_STATISTICS, Path(source), extractor, size, keep, data_filter)
    return arrays["mu"], arrays["sigma"]


def reference_features(
    source: str | Path, extractor: Any, size: int | tuple[int, int], keep: Path, data_filter: str | None = None
) -> np.ndarray:
    """Features of real pictures, float32 [N, D], which CMMD compares with.

    source: an .npz file with `features`, a folder of pictures, or a file list of parts; the rest as for
    `reference_statistics`.
    """
    return _arrays(_FEATURES, Path(source), extractor, size, keep, data_filter)["features"]


def check_reference(flag: str, source: str | Path, data_filter: str | None) -> None:
    """Raise InputError for a reference that is not there, and for a filter that does not fit it, before any model is
    loaded. flag: name of its flag."""
    path = Path(source)
    if not path.exists():
        raise ArgumentError(flag, str(path), ": no such .npz file, folder or file list")
    _check_filter(path, data_filter)
    if data_filter is not None:
        Catalog(str(path), 1, data_filter=data_filter, left_out=True)  # which judges every row and logs nothing


def _check_filter(path, data_filter):
    if data_filter is not None and (path.suffix == ".npz" or path.is_dir()):
        raise ArgumentError("data_filter", data_filter, f" chooses rows of a file list, and {path} is none")


@dataclass(frozen=True)
class _Measure:
    """What a measure compares with: the arrays of its .npz file, computed from batches of features [B, D] and D."""

    flag: str
    name: str
    arrays: tuple[str, ...]
    compute: Callable[[Iterable[np.ndarray], int], dict[str, Any]]
    misfit: Callable[[dict[str, np.ndarray], int], str]  # what does not fit the extractor's D, "" if all does

    def read(self, path: Path, extractor: Any) -> dict[str, np.ndarray]:
        """The arrays of a file. Raises InputError for one that lacks them or is of another extractor."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in self.arrays}
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            expected = " and ".join(self.arrays)
            raise InputError(f"{path}: no {self.name} ({error}); expected an .npz with {expected}") from None
        if misfit := self.misfit(arrays, extractor.width):
            raise InputError(f"{path}: {misfit}, {extractor.name} has {extractor.width}")
        return arrays


def _compute_statistics(batches, width):
    moments = Moments(width)
    for features in batches:
        moments.add(features)
    mean, covariance = moments.mean_and_covariance()
    return {"mu": mean, "sigma": covariance, "count": moments.count}


def _statistics_misfit(arrays, width):
    fits = arrays["mu"].shape == (width,) and arrays["sigma"].shape == (width, width)
    return "" if fits else f"statistics of {arrays['mu'].size} features"


def _compute_features(batches, width):
    return {"features": np.concatenate(list(batches))}


def _features_misfit(arrays, width):
    shape = arrays["features"].shape
    return "" if len(shape) == 2 and shape[0] and shape[1] == width else f"features {list(shape)}"


_STATISTICS = _Measure("fid_reference", "statistics", ("mu", "sigma"), _compute_statistics, _statistics_misfit)
_FEATURES = _Measure("cmmd_reference", "features", ("features",), _compute_features, _features_misfit)


def _arrays(measure, path, extractor, size, keep, data_filter):
    """The arrays of a _Measure: of an .npz file, or of pictures, cached by an earlier run or computed and saved now."""
    _check_filter(path, data_filter)
    if path.suffix == ".npz":
        return measure.read(path, extractor)
    reference = _Reference(measure, path, extractor, size, data_filter)
    arrays = reference.load_cached(keep)
    if arrays is None:
        arrays = measure.compute(reference.features(), extractor.width)
        reference.save_cached(keep, arrays)
    return arrays


class _Reference:
    """Real pictures of a folder or file list, and the file that keeps what is computed of them."""

    def __init__(self, measure, path, extractor, size, data_filter):
        height, width = (size, size) if isinstance(size, int) else size
        self._measure, self._extractor = measure, extractor
        self._pictures, self._count, fingerprint = _pictures(measure.flag, path, height, width, data_filter)
        identity = {
            "source": str(path),
            "pictures": self._count,
            "fingerprint": fingerprint,
            "size": [height, width],
            "extractor": extractor.identity(),
        }
        self._identity = json.dumps(identity)

    def features(self):
        """Yield the features of a batch of pictures, float32 [B, D]."""
        with tqdm(total=self._count, desc="reference", unit="picture") as bar:
            pictures = iter(self._pictures)
            while batch := list(itertools.islice(pictures, _BATCH)):
                yield self._extractor.embed_images(batch)
                bar.update(len(batch))

    def load_cached(self, path):
        """The arrays that an earlier run kept for the same identity, else None."""
        try:
            with np.load(path, allow_pickle=False) as file:
                same = str(file.get("identity")) == self._identity
            return self._measure.read(path, self._extractor) if same else None
        except (OSError, ValueError, BadZipFile):  # InputError is a ValueError
            return None

    def save_cached(self, path, arrays):
        """Write arrays for the next run."""
        buffer = io.BytesIO()  # a zip file that meets a full disk complains once more when it is collected
        with written(path) as temporary:
            np.savez(buffer, identity=self._identity, **arrays)
            temporary.write_bytes(buffer.getvalue())


def _pictures(flag, path, height, width, data_filter):
    """(iterator of uint8 [height, width, 3], their number at most, what names their content)."""
    if path.is_dir():
        names = sorted(path.rglob("[!.]*"))  # without what a system hides, such as macOS's `._a.png`
        names = [name for name in names if name.suffix.lower() in _PICTURES]
        if len(names) < 2:
            raise ArgumentError(flag, str(path), f" holds {len(names)} pictures; expected at least two")
        digest = sha256()
        for name in names:
            digest.update(f"{name.relative_to(path)} {storage.version_or_error(name)}\n".encode("utf-8", "replace"))
        return (_cover(_from_file(name), height, width) for name in names), len(names), digest.hexdigest()[:32]
    catalog = Catalog(str(path), min(height, width), data_filter=data_filter)
    if catalog.manifest is not None:
        raise ArgumentError(flag, str(path), " is a cache of latents; name the list of the images")
    pictures = (_cover(pixels, height, width) for pixels in _from_parts(catalog))
    return pictures, catalog.num_usable, catalog.fingerprint


def _cover(pixels, height, width):
    """The middle of a picture once it covers height x width; uint8 [h, w, 3] -> [height, width, 3]."""
    image = Image.fromarray(pixels)
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    return resize(image, (width, height), (left, top, left + scale * width, top + scale * height))


def _from_file(path):
    try:
        return decode_image(path.read_bytes())
    except (OSError, RowError) as error:
        raise InputError(f"{path}: {error}; take it out of the folder") from None


def _from_parts(catalog):
    """The pictures of all usable rows; a warning says how many could not be read."""
    num_bad, last = 0, None
    with closing(RowReader(catalog, LocalCopies(), Watchdog())) as reader:
        for part, num_rows in enumerate(catalog.usable.tolist()):
            for ordinal in range(num_rows):
                try:
                    yield decode_image(reader.read(part, ordinal)[1].image)
                except RowError as error:
                    num_bad, last = num_bad + 1, error
    if num_bad:
        logger.warning("%s: %d pictures left out; the last: %s", catalog.file_list, num_bad, last)
