"""The work on one part: load its rows, check their images, write what is good. The same function in every engine."""

from collections import Counter
from dataclasses import dataclass, field

from PIL import Image

from sd.data.images.decode import decode, shrink
from sd.data.images.open import MAX_PIXELS, open_image
from sd.data.images.resize import EARLIER_RESIZER
from sd.data.packing.columns import ColumnBuilder, parse_keep_columns
from sd.data.packing.options import PackOptions
from sd.data.packing.outcomes import BadRow, Filtered
from sd.data.packing.sources.choose import Source
from sd.data.parts import storage
from sd.data.parts.columns import SUFFIX as COLUMNS_SUFFIX
from sd.data.parts.columns import ColumnsFile
from sd.data.parts.index import SUFFIX, PartError, PartIndex, parse_index
from sd.data.parts.part import PartWriter
from sd.data.parts.record import RowError, clean_caption, encode_named_row, encode_row


@dataclass(frozen=True)
class Task:
    """Rows that become one part."""

    path: str
    items: list
    done_fraction: float  # of the input, when this part is done
    repeat: int = 1  # how often the file list names it


@dataclass
class PartResult:
    """The outcomes of the rows of a part; `changed` is why an existing part cannot be resumed from."""

    path: str
    done_fraction: float = 1.0
    num_packed: int = 0
    num_bytes: int = 0
    rejected: list = field(default_factory=list)  # dicts, the lines of rejected.jsonl
    changed: str = ""
    repeat: int = 1
    num_filtered: int = 0  # rows that --data_filter took out, too many to be listed
    captions: Counter = field(default_factory=Counter)  # rows that have one, by key, where there are several keys
    columns: dict = field(default_factory=dict)  # of the columns kept: {name: {type, missing, unfit}}


def pack_part(task: Task, source: Source, options: PackOptions) -> PartResult:
    """Write one part, or find that it is there already. Raises OSError for an output that cannot be written."""
    Image.MAX_IMAGE_PIXELS = options.max_pixels  # Pillow refuses twice as many
    with source.open() as loader:
        signature = loader.signature(task.items)
        finished = _finished(task.path, signature, options.part_settings())
        result = finished or _write(task, source, loader, signature, options)
    result.done_fraction, result.repeat = task.done_fraction, task.repeat
    return result


def _write(task, source, loader, signature, options):
    rejected, builder = [], ColumnBuilder(options.column_specs)
    with PartWriter(task.path, save_gzip=options.save_gzip_file) as part:
        num_packed, rows_with = 0, Counter()
        for item in task.items:
            try:
                loaded = loader.load(item)
                captions = _captions(loaded.captions, options)
                image, size, original_size = _image(loaded.image, options)
            except BadRow as bad:
                rejected.append(source.position(item) | _outcome(bad, loader.image_name(item)))
                continue
            part.add(_encode(captions, image, options), *size)
            builder.add(loaded.fields, original_size, loaded.has_types)
            num_packed += 1
            rows_with.update({key for key, _ in captions})
        part.notes = {"settings": options.part_settings(), "input": signature, "rejected": rejected}
        if len(options.caption_keys) > 1:
            part.notes["captions"] = dict(sorted(rows_with.items()))
        part.columns = builder.columns()
        if part.columns:
            part.notes["columns"] = {
                name: {"type": column.type, "missing": column.num_missing, "unfit": builder.num_unfit[name]}
                for name, column in part.columns.items()
            }
    return PartResult(
        task.path,
        num_packed=num_packed,
        num_bytes=part.index.part_bytes,
        rejected=rejected,
        captions=rows_with,
        columns=part.notes.get("columns", {}),
    )


def _outcome(bad, image_name):
    detail = bad.detail if image_name in bad.detail else f"{image_name}: {bad.detail}".removesuffix(": ")
    return {"outcome": bad.outcome, "reason": bad.reason, "detail": detail}


def _captions(captions, options):
    """The captions of a row, cleaned; of several those that are long enough and not blank. Raises Filtered."""
    cleaned = [(key, clean_caption(text)) for key, text in captions]
    long_enough = [(key, text) for key, text in cleaned if len(text.strip()) >= options.min_caption_length]
    if not long_enough:
        longest = max(len(text.strip()) for _, text in cleaned)
        raise Filtered("caption too short", f"{longest} characters")
    return [(key, text) for key, text in long_enough if text.strip()] or long_enough[:1]


def _encode(captions, image, options):
    """The row; a single caption of a single key stands in it without its name."""
    if len(captions) == len(options.caption_keys) == 1:
        return encode_row(captions[0][1], image)
    return encode_named_row(captions, image)


def _image(data, options):
    """(bytes to pack, size as shown, size before --resize) of an image file. Raises BadRow."""
    try:
        opened = open_image(data, options.max_pixels)
        size = original_size = opened.size
        _filter(size, options)
        if options.resize and min(size) > options.resize:
            data, size = shrink(opened, options.resize, options.quality)
        elif options.verify == "decode":
            decode(opened)
        if size[0] * size[1] > MAX_PIXELS:
            raise RowError(f"too many pixels: {size[0]}x{size[1]}, readers of parts take {MAX_PIXELS}")
    except RowError as error:
        if options.verify != "none":
            reason, _, detail = str(error).partition(": ")
            raise BadRow(reason, detail) from error
        size = original_size = (0, 0)  # packed as it is; without a size, training passes it by
    return data, size, original_size


def _filter(size, options):
    width, height = size
    if min(size) < options.min_size:
        raise Filtered("image too small", f"{width}x{height}")
    if options.max_aspect_ratio and max(size) > options.max_aspect_ratio * min(size):
        raise Filtered("aspect ratio too large", f"{width}x{height}")


def _finished(path, signature, settings):
    """The result of an earlier run for this part, None if there is none."""
    try:
        index = parse_index(storage.read_bytes(path + SUFFIX), path)
        num_bytes = storage.size_of(path)
    except FileNotFoundError:
        if storage.exists(path):
            return PartResult(path, changed="it was made by another program")
        return None
    except PartError:
        return None
    if (difference := _difference(index.notes, signature, settings)) is not None:
        if is_empty_part(index):
            return None
        return PartResult(path, changed=difference)
    if num_bytes != index.part_bytes or not _has_columns(index, settings):
        return None
    captions = Counter(index.notes.get("captions", {}))
    return PartResult(
        path,
        num_packed=index.num_rows,
        num_bytes=num_bytes,
        rejected=index.notes["rejected"],
        captions=captions,
        columns=index.notes.get("columns", {}),
    )


def _has_columns(index, settings):
    """Whether the columns that were to be kept are there whole."""
    names = {column.name for column in parse_keep_columns(settings["keep_columns"])}
    try:
        with ColumnsFile(index) as file:
            return names <= file.types.keys() and file.num_bytes == storage.size_of(index.path + COLUMNS_SUFFIX)
    except FileNotFoundError:
        return not names
    except PartError:
        return False


def is_empty_part(index: PartIndex) -> bool:
    """Whether a part of this packer has no row: packing it again loses nothing."""
    return index.num_rows == 0 and "settings" in index.notes


def _difference(notes, signature, settings):
    if "settings" not in notes:
        return "it was made by another program"
    if notes["settings"].get("resizer") == EARLIER_RESIZER:  # as good as today's
        settings = settings | {"resizer": EARLIER_RESIZER}
    for name, value in settings.items():
        if notes["settings"].get(name) != value:
            flag = name if name == "resizer" else f"--{name}"
            return f"it was packed with {flag} {notes['settings'].get(name)}, now {value}"
    if isinstance(notes["input"], int):
        return "it was packed by an earlier version, which did not see every change of its input"
    return None if notes["input"] == signature else "its input has changed since"
