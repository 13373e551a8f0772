"""What a tar file holds: its members, whether it is whole, and which members make a sample."""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from sd.data.packing.sources.inputs import compression_of

# Also of formats that are refused: by name and reason is better than not at all.
IMAGE_SUFFIXES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff"),
    *("avif", "heic", "heif", "jxl", "jp2", "svg", "psd", "tga", "ico"),
)
TEXT_SUFFIXES = ("json", "txt")
_BLOCK = tarfile.BLOCKSIZE
_PIECE_BYTES = 2048 * _BLOCK
_APPLE_DOUBLE = b"\x00\x05\x16\x07"


@dataclass(frozen=True)
class Member:
    """A file in a tar. problem: why its bytes are not where they should be, else empty."""

    name: str
    offset: int
    num_bytes: int
    problem: str = ""

    @property
    def stem(self) -> str:
        """Its folder and name without what follows the last dot: `a/v2.0060` of `a/v2.0060.jpg`."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + (name.rpartition(".")[0] or name)

    @property
    def suffix(self) -> str:
        """What follows the last dot of its name, in small letters."""
        return self.name.rpartition("/")[2].rpartition(".")[2].lower()


@dataclass
class Sample:
    """Images of one name, and the members that may hold their caption, by suffix."""

    key: str
    images: list[Member] = field(default_factory=list)
    texts: dict[str, Member] = field(default_factory=dict)


def list_members(file: BinaryIO) -> tuple[list[Member], str]:
    """Every file of a tar, or of several written one behind the other, and why there may be more, else "".

    file: binary, seekable. macOS's AppleDouble files (`._name`) are left out.
    """
    members, damage, start = [], "", 0
    if not (head := file.read(_BLOCK)):
        return [], "the file is empty"
    if kind := compression_of(head):
        return [], f"it is compressed with {kind}; unpack it to a plain tar"
    while start is not None and not damage:
        file.seek(start)
        infos = []
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                end = start
                for info in tar:
                    infos.append(info)
                end = tar.offset
        except (tarfile.TarError, ValueError, LookupError, OverflowError) as error:
            damage = str(error) or type(error).__name__
        else:
            start, damage = _next_archive(file, end)
        members += _files(infos, file)
    last = f", after {members[-1].name}" if damage and members else ""
    return members, damage + last


def _next_archive(file, end):
    """(where another archive begins, or None; why this one is not whole, or "")."""
    file.seek(end)
    mark = file.read(_BLOCK)
    if len(mark) < _BLOCK:
        return None, f"cut at byte {end}: the end mark is missing"
    if any(mark):
        return None, f"damaged at byte {end}: neither a header nor the end mark"
    at = end + _BLOCK
    while piece := file.read(_PIECE_BYTES):
        if rest := piece.lstrip(b"\0"):
            return at + (len(piece) - len(rest)) // _BLOCK * _BLOCK, ""
        at += len(piece)
    return None, ""


def _files(infos, file):
    by_name = {info.name: info for info in infos if info.isreg()}
    for info in infos:
        target, problem = info, ""
        if info.islnk() or info.issym():
            name = info.linkname
            if info.issym():
                name = posixpath.normpath(posixpath.join(posixpath.dirname(info.name), name))
            target = by_name.get(name)
            problem = "" if target else f"a link to {info.linkname}, which is no file of the archive"
        elif not info.isreg():
            continue
        if target and target.issparse():
            problem = "a sparse file; write the archive without --sparse"
        member = Member(info.name, target.offset_data if target else 0, target.size if target else 0, problem)
        if not _is_apple_double(member, file):
            yield member


def _is_apple_double(member, file):
    if not posixpath.basename(member.name).startswith("._"):
        return False
    file.seek(member.offset)
    return file.read(len(_APPLE_DOUBLE)) == _APPLE_DOUBLE


def group_samples(members: list[Member], suffixes: Sequence[str] = ()) -> list[Sample]:
    """Samples in the order of their first members: what has one stem, wherever it stands in the archive.

    Where a name comes more than once, as in an archive that was put together from others, neighbours of its stem are a
    sample. A caption may also be named after the whole image, `a.jpg.txt`. suffixes: of further texts.
    """
    times = Counter(member.name for member in members)
    repeated = {member.stem for member in members if times[member.name] > 1}
    samples, run, names, stem = {}, 0, set(), None
    for member in members:
        if member.stem != stem or member.name in names:
            run, names, stem = run + 1, set(), member.stem
        names.add(member.name)
        is_image = member.suffix in IMAGE_SUFFIXES
        if not is_image and member.suffix not in (*TEXT_SUFFIXES, *suffixes):
            continue
        sample = samples.setdefault((stem, run if stem in repeated else 0), Sample(stem))
        if is_image:
            sample.images.append(member)
        else:
            sample.texts.setdefault(member.suffix, member)
    for sample in list(samples.values()):
        if len(sample.images) == 1 and not sample.texts:
            named = samples.get((sample.images[0].name, 0))
            if named is not None and not named.images:
                sample.texts = samples.pop((sample.images[0].name, 0)).texts
    return list(samples.values())
