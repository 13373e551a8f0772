"""Pictures -> fingerprints: a digest of the file, a perceptual hash for finding candidates, a thumbnail for the check.

The hash is a pHash (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010) with the signs
of the 48 lowest frequencies of the DCT but the mean, in integers, so that it is the same on every processor.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import xxhash

from sd.data.duplicates.bands import HASH_BITS
from sd.data.images.decode import decode
from sd.data.images.open import open_image
from sd.data.images.resize import resize
from sd.data.parts.index import PartIndex
from sd.data.parts.part import PartReader
from sd.data.parts.record import RowError, decode_row

VERSION = 1  # stands in the names of kept fingerprints: another one means other hashes
THUMB_SIDE = 16
_SIDE = 32
_LUMA = np.array([19595, 38470, 7471])  # 0.299, 0.587, 0.114 of 65536


def _dct_rows(count):
    """The first `count` rows of the DCT-II of length 32, times 4096: int64 [count, 32]."""
    frequency, position = np.mgrid[:count, :_SIDE]
    return np.rint(4096 * np.cos(np.pi * frequency * (2 * position + 1) / (2 * _SIDE))).astype(np.int64)


_DCT = _dct_rows(10)
_u, _v = np.divmod(np.arange(len(_DCT) ** 2), len(_DCT))
# By frequency along the diagonals, without the mean. Neighbours in this order go into different bands (see `bands`).
_LOWEST = np.lexsort((_u, _u + _v))[1 : HASH_BITS + 1]


@dataclass(frozen=True)
class Fingerprints:
    """Of the rows of a part or of several.

    digests: uint64 [n, 2], XXH3 of the image file; hashes: uint64 [n]; thumbs: uint8 [n, 16, 16, 3]; sizes: int64
    [n, 2], pixels and bytes of the file; readable: bool [n], where False nothing else means anything.
    """

    digests: np.ndarray
    hashes: np.ndarray
    thumbs: np.ndarray
    sizes: np.ndarray
    readable: np.ndarray

    def __len__(self):
        return len(self.readable)

    @classmethod
    def empty(cls, num_rows: int) -> "Fingerprints":
        return cls(
            np.zeros((num_rows, 2), np.uint64),
            np.zeros(num_rows, np.uint64),
            np.zeros((num_rows, THUMB_SIDE, THUMB_SIDE, 3), np.uint8),
            np.zeros((num_rows, 2), np.int64),
            np.zeros(num_rows, bool),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def fits(self, num_rows: int) -> bool:
        """Whether the arrays have the shapes and types of `num_rows` rows."""
        expected = replace(self, **Fingerprints.empty(num_rows).arrays()).arrays()
        return all(
            array.shape == expected[name].shape and array.dtype == expected[name].dtype
            for name, array in self.arrays().items()
        )


def perceptual_hash(pixels: np.ndarray) -> np.uint64:
    """The 48-bit hash, in uint64, of uint8 [32, 32, 3]: bit k is the sign of the k-th lowest frequency of luma."""
    luma = pixels.astype(np.int64) @ _LUMA
    frequencies = _DCT @ (luma - luma.sum() // luma.size >> 8) @ _DCT.T
    bits = frequencies.reshape(-1)[_LOWEST] > 0
    return np.packbits(np.pad(bits, (0, 64 - HASH_BITS)), bitorder="little").view("<u8")[0]


def fingerprint_image(data: bytes) -> tuple[np.uint64, np.ndarray, tuple[int, int]]:
    """(hash, thumbnail uint8 [16, 16, 3], (width, height)) of an image file. Raises RowError."""
    opened = open_image(data)
    pixels = resize(decode(opened, _SIDE).pixels, (_SIDE, _SIDE))[..., :3]
    step = _SIDE // THUMB_SIDE
    thumb = pixels.reshape(THUMB_SIDE, step, THUMB_SIDE, step, 3).astype(np.uint16).sum((1, 3))
    return perceptual_hash(pixels), ((thumb + step) // step**2).astype(np.uint8), opened.size


def fingerprint_part(index: PartIndex) -> Fingerprints:
    """Fingerprints of all rows of a part, of which those that cannot be read are marked; no row raises.

    Raises PartError for a part that cannot be opened.
    """
    prints = Fingerprints.empty(index.num_rows)
    with PartReader(index.path, index) as reader:
        for row in range(index.num_rows):
            try:
                image = decode_row(reader.read(row)).image
                prints.hashes[row], prints.thumbs[row], (width, height) = fingerprint_image(image)
            except RowError:
                continue
            digest = xxhash.xxh3_128_intdigest(image)
            prints.digests[row] = digest >> 64, digest & 0xFFFF_FFFF_FFFF_FFFF
            prints.sizes[row] = width * height, len(image)
            prints.readable[row] = True
    return prints
