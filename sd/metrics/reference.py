"""What FID and CMMD compare with: features of real pictures, or their moments, from a file or computed and kept."""

import io
import itertools
import json
import logging
from contextlib import closing
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
    path = Path(source)
    _check_filter(path, data_filter)
    if path.suffix == ".npz":
        return _read_statistics(path, extractor)
    reference = _Reference("fid_reference", path, extractor, size, data_filter)
    if (cached := reference.load_cached(keep, _read_statistics)) is not None:
        return cached
    moments = Moments(extractor.width)
    for features in reference.features():
        moments.add(features)
    mean, covariance = moments.mean_and_covariance()
    reference.save_cached(keep, mu=mean, sigma=covariance, count=moments.count)
    return mean, covariance


def reference_features(
    source: str | Path, extractor: Any, size: int | tuple[int, int], keep: Path, data_filter: str | None = None
) -> np.ndarray:
    """Features of real pictures, float32 [N, D], which CMMD compares with.

    source: an .npz file with `features`, a folder of pictures, or a file list of parts; the rest as for
    `reference_statistics`.
    """
    path = Path(source)
    _check_filter(path, data_filter)
    if path.suffix == ".npz":
        return _read_features(path, extractor)
    reference = _Reference("cmmd_reference", path, extractor, size, data_filter)
    if (cached := reference.load_cached(keep, _read_features)) is not None:
        return cached
    features = np.concatenate(list(reference.features()))
    reference.save_cached(keep, features=features)
    return features


def _check_filter(path, data_filter):
    if data_filter is not None and (path.suffix == ".npz" or path.is_dir()):
        raise ArgumentError("data_filter", data_filter, f" chooses rows of a file list, and {path} is none")


class _Reference:
    """Real pictures of a folder or file list, and the file that keeps what is computed of them."""

    def __init__(self, flag, path, extractor, size, data_filter):
        height, width = (size, size) if isinstance(size, int) else size
        self._extractor = extractor
        self._pictures, self._count, fingerprint = _pictures(flag, path, height, width, data_filter)
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

    def load_cached(self, path, read):
        """What an earlier run kept for the same identity, else None."""
        try:
            with np.load(path, allow_pickle=False) as file:
                same = str(file.get("identity")) == self._identity
            return read(path, self._extractor) if same else None
        except (OSError, ValueError, BadZipFile):  # InputError is a ValueError
            return None

    def save_cached(self, path, **arrays):
        """Write arrays for the next run."""
        buffer = io.BytesIO()  # a zip file that meets a full disk complains once more when it is collected
        with written(path) as temporary:
            np.savez(buffer, identity=self._identity, **arrays)
            temporary.write_bytes(buffer.getvalue())


def _read_statistics(path, extractor):
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = file["mu"], file["sigma"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise InputError(f"{path}: no statistics ({error}); expected an .npz with mu and sigma") from None
    if mean.shape != (extractor.width,) or covariance.shape != (extractor.width,) * 2:
        raise InputError(f"{path}: statistics of {mean.size} features, {extractor.name} has {extractor.width}")
    return mean, covariance


def _read_features(path, extractor):
    try:
        with np.load(path, allow_pickle=False) as file:
            features = file["features"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise InputError(f"{path}: no features ({error}); expected an .npz with features") from None
    if features.ndim != 2 or features.shape[1] != extractor.width or not len(features):
        raise InputError(f"{path}: features {list(features.shape)}, {extractor.name} has {extractor.width} a picture")
    return features


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
    if not path.is_file():
        raise ArgumentError(flag, str(path), ": no such .npz file, folder or file list")
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
    return np.asarray(resize(image, (width, height), (left, top, left + scale * width, top + scale * height)))


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
