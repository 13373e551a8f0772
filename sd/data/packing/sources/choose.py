"""Which source reads an input, and which would where the one that was named does not."""

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from sd.data.packing.options import PackOptions
from sd.data.packing.sources.imagefolder import IMAGE_KEY, METADATA, ImagefolderSource
from sd.data.packing.sources.jsonl import JsonlSource
from sd.data.packing.sources.pairs import CAPTION_SUFFIXES, PairSource
from sd.data.packing.sources.parquet import DEFAULT_IMAGE_KEY, ParquetSource
from sd.data.packing.sources.table import TableSource
from sd.data.packing.sources.tar import IMAGE_SUFFIXES
from sd.data.packing.sources.walk import walk
from sd.data.packing.sources.webdataset import WebdatasetSource
from sd.data.parts import storage
from sd.errors import InputError

Source = JsonlSource | WebdatasetSource | ParquetSource | PairSource | TableSource | ImagefolderSource

_TABLES = ("csv", "tsv")
_FOLDERS_SEEN, _NAMES_SEEN = 20, 10_000
_BY_SUFFIX = {"tar": "webdataset", "parquet": "parquet", "csv": "csv", "tsv": "tsv", "jsonl": "jsonl"}


def open_source(options: PackOptions) -> Source:
    """The source of the options' input format."""
    path, keys = options.input_path, options.caption_keys
    image_key, outside = options.image_key, options.allow_outside
    column_keys = tuple(column.key for column in options.column_specs)
    match options.input_format:
        case "webdataset":
            return WebdatasetSource(path, keys)
        case "parquet":
            return ParquetSource(path, keys, image_key, outside, column_keys)
        case "folder":
            return PairSource(path, keys, outside, options.kohya_folders, bool(options.caption_lines))
        case "csv" | "tsv" as kind:
            return TableSource(path, kind, keys, image_key, outside)
        case "imagefolder":
            named = IMAGE_KEY if image_key == DEFAULT_IMAGE_KEY else image_key
            return ImagefolderSource(path, keys, named, outside, column_keys)
    return JsonlSource(path, keys, image_key, outside)


def other_format(options: PackOptions) -> str:
    """What an input looks like, where that is not the format that was named: the end of an error's line, else ""."""
    guess = _format_of(options.input_path, options.input_format)
    if not guess or guess[0] == options.input_format:
        return ""
    name, path, evidence = guess
    moved = f" --input_path {path}" if path != options.input_path else ""
    return f"; {evidence}, so give --input_format {name}{moved}"


def _format_of(path, named):
    """(format, the --input_path for it, what was seen), or None; tables may stand beside their pictures' texts."""
    stem, _, suffix = storage.base_name(path).lower().rpartition(".")
    if stem and suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix], path, f"its name ends in .{suffix}"
    counts, tables, metadata = Counter(), [], ""
    try:
        for listed in islice(walk(path), _FOLDERS_SEEN):
            names = listed.names[:_NAMES_SEEN]
            metadata = metadata or next((listed.folder + name for name in METADATA if name in names), "")
            tables += [storage.join(path, listed.folder + name) for name in names if name.endswith(".jsonl")]
            counts += Counter(_kind(names))
    except InputError:
        return None
    except storage.failures():
        return None
    if metadata:
        return "imagefolder", path, f"{metadata} is in it"
    if named in _TABLES and counts[named]:
        return None
    if counts["image"] and counts["text"]:
        return "folder", path, "pictures and texts are in it"
    if counts["tar"]:
        return "webdataset", path, "tar files are in it"
    if tables:
        return "jsonl", tables[0], "a JSONL file is in it"
    kind = next((kind for kind in (*_TABLES, "parquet") if counts[kind]), None)
    if kind:
        return kind, path, f"{kind} files are in it"
    return ("folder", path, "pictures are in it") if counts["image"] else None


def _kind(names: Iterable[str]):
    for name in names:
        suffix = name.rpartition(".")[2].lower()
        if suffix in IMAGE_SUFFIXES:
            yield "image"
        elif suffix in CAPTION_SUFFIXES:
            yield "text"
        elif suffix in _BY_SUFFIX:
            yield suffix
