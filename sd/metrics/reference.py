"""What FID compares with: mean and covariance of the features of real pictures, from a file or computed and kept."""

import io
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sd.data.images.decode import decode_image
from sd.data.parts.record import RowError
from sd.data.streaming.dataset import EvalPairs
from sd.data.streaming.sample import centre_crop
from sd.data.streaming.stream import raise_if_failed
from sd.errors import InputError
from sd.metrics.scores import Moments
from sd.sampling.files import written

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_BATCH = 32


def reference_statistics(source, extractor, resolution, keep):
    """(mean, covariance) of real pictures.

    source: an .npz file with `mu` and `sigma`, as published ones have, a folder of pictures, or a file list of parts.
    Pictures are cut as for validation: the square in the middle, `resolution` pixels wide. What is computed is written
    to the file `keep` and taken from there next time. Raises InputError for what does not fit the extractor.
    """
    path = Path(source)
    if path.suffix == ".npz":
        return _read(path, extractor, None)
    pictures, count = _pictures(path, resolution)
    identity = {"source": str(path), "pictures": count, "extractor": extractor.name, "resolution": resolution}
    if keep.is_file() and (found := _read(keep, extractor, identity)):
        return found
    moments = Moments(extractor.width)
    with tqdm(total=count, desc="reference", unit="picture") as bar:
        batch = []
        for picture in pictures:
            batch.append(picture)
            if len(batch) == _BATCH:
                moments.add(extractor.embed_images(batch))
                bar.update(len(batch))
                batch = []
        if batch:
            moments.add(extractor.embed_images(batch))
            bar.update(len(batch))
    mean, covariance = moments.mean_and_covariance()
    whole = io.BytesIO()  # a zip file that meets a full disk complains once more when it is collected
    with written(keep) as aside:
        np.savez(whole, mu=mean, sigma=covariance, identity=json.dumps(identity), count=moments.count)
        aside.write_bytes(whole.getvalue())
    return mean, covariance


def _read(path, extractor, identity):
    try:
        with np.load(path, allow_pickle=False) as file:
            if identity is not None and str(file.get("identity")) != json.dumps(identity):
                return None
            mean, covariance = file["mu"], file["sigma"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: no statistics ({error}); expected an .npz with mu and sigma") from None
    if mean.shape != (extractor.width,) or covariance.shape != (extractor.width,) * 2:
        raise InputError(f"{path}: statistics of {mean.size} features, {extractor.name} has {extractor.width}")
    return mean, covariance


def _pictures(path, resolution):
    """(iterator of uint8 [resolution, resolution, 3], their number)."""
    if path.is_dir():
        names = sorted(name for name in path.rglob("*") if name.suffix.lower() in _PICTURES)
        if len(names) < 2:
            raise InputError(f"fid_reference={str(path)!r} holds {len(names)} pictures; expected at least two")
        return (_from_file(name, resolution) for name in names), len(names)
    if not path.is_file():
        raise InputError(f"fid_reference={str(path)!r}: no such .npz file, folder or file list")
    pairs = EvalPairs(str(path), lambda caption: np.zeros(1, np.int64), resolution=resolution, limit=None)
    if pairs.catalog.manifest is not None:
        raise InputError(f"fid_reference={str(path)!r} is a cache of latents; name the list of the images")
    return (_from_record(pairs[number]) for number in range(len(pairs))), len(pairs)


def _from_file(path, resolution):
    try:
        return centre_crop(decode_image(path.read_bytes()), resolution, "lanczos").transpose(1, 2, 0)
    except RowError as error:
        raise InputError(f"{path}: {error}; take it out of the folder") from None


def _from_record(record):
    raise_if_failed(record)
    return record["pixel_values"].transpose(1, 2, 0)
