"""A cache of the fingerprints of parts, by the part's checksum: a stopped run resumes from it."""

import io
import logging
import zipfile
from pathlib import Path

import numpy as np

from sd.data.duplicates.fingerprint import VERSION, Fingerprints
from sd.data.images.resize import RESIZER
from sd.data.parts import storage
from sd.data.parts.index import PartHeader
from sd.errors import first_line

logger = logging.getLogger(__name__)

_SUFFIX = ".npz"


class FingerprintCache:
    """The cache folder. What is damaged or of another version is made again; where it cannot be written, a warning."""

    def __init__(self, folder: str | Path | None = None):
        self._folder = Path(folder or storage.cache_folder("sd_fingerprints"))
        self._writable = True

    def load(self, part: PartHeader) -> Fingerprints | None:
        try:
            with self._path(part).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                prints = Fingerprints(**arrays)
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
            return None
        return prints if prints.fits(part.num_rows) else None

    def save(self, part: PartHeader, prints: Fingerprints) -> None:
        """Atomic. A folder that cannot be written costs the resumption, not the run."""
        if not self._writable:
            return
        buffer = io.BytesIO()
        np.savez(buffer, **prints.arrays())  # type: ignore[arg-type]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            storage.write_atomic(self._path(part), buffer.getvalue())
        except OSError as error:
            self._writable = False
            logger.warning("%s: %s; a stopped run will start again", self._folder, first_line(error))

    def _path(self, part):
        resizer = RESIZER.replace(" ", "-")
        return self._folder / f"{part.checksum}-{part.num_rows}-v{VERSION}-{resizer}{_SUFFIX}"
