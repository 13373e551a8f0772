"""Which cached part is made of which source part, and which of them are there already."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from sd.data.filters.rows import RowFilter, RowRule
from sd.data.images.resize import EARLIER_RESIZER
from sd.data.parts import storage
from sd.data.parts.filelist import read_file_list
from sd.data.parts.index import SUFFIX, PartError, PartIndex, parse_index
from sd.data.parts.moments import KIND, Manifest
from sd.data.parts.part import load_index
from sd.data.streaming.bucketing import Bucketing
from sd.data.streaming.buckets import BucketTable
from sd.data.streaming.captions import by_source, sample_records
from sd.data.streaming.catalog import Catalog
from sd.errors import InputError
from sd.flags.aspect import format_size, parse_aspect_buckets
from sd.latents.options import CacheOptions
from sd.models.loading import component_source, local_folder, local_vae_factor, side_multiple

PART_FOLDER, LIST_FOLDER = "latents", "filelist"
_REMOTE_THREADS = 32


@dataclass(frozen=True)
class Task:
    """One source part and the cached part to be made of it.

    checksum: names the source's bytes; rule: which of its rows are used, num_usable of them; digest: of which rows pass
    the filters, "" without filters. goes_to: the bucket that stands for each, where small ones are merged; nothing for
    squares.
    """

    number: int
    source: str
    path: str
    checksum: str
    num_usable: int
    rule: RowRule
    digest: str = ""
    goes_to: tuple = ()


@dataclass(frozen=True)
class Plan:
    """Everything to be made of a file list.

    sources: [(weight, Tasks in the list's order)], one for each filelist; tasks: each once; unreadable: {source part:
    why}, the parts of which nothing can be made. fingerprint: of the source. captions: with
    --cache_text a sample, by source. buckets: lines on the rows of each bucket.
    """

    sources: list
    tasks: list
    unreadable: dict
    fingerprint: str
    captions: dict = field(default_factory=dict)
    buckets: list = field(default_factory=list)


def check_inputs(options: CacheOptions) -> None:
    """Raise InputError for a list, a filter, a model or a size that local files show to be wrong, without Paddle."""
    if options.data_filter is not None:
        RowFilter(options.data_filter)
    read_file_list(options.file_list)
    components = ("vae", "text_encoder", "tokenizer") if options.cache_text else ("vae",)
    folders = {component: local_folder(component, *component_source(options, component)) for component in components}
    if factor := local_vae_factor(folders["vae"]):
        check_sides(options, factor)


def check_sides(options: CacheOptions, factor: int) -> None:
    """Raise InputError for sides that a VAE, which divides them by `factor`, cannot encode."""
    if options.resolution % factor:
        raise InputError(f"--resolution {options.resolution}: the VAE divides it by {factor}; use a multiple of it")
    if options.aspect_buckets is None or isinstance(parse_aspect_buckets(options.aspect_buckets), int):
        return  # a number of buckets is turned into sizes that fit
    for size in options.sizes or ():
        if size[0] % factor or size[1] % factor:
            raise InputError(f"bucket {format_size(size)}: the VAE divides its sides by {factor}; use multiples of it")


def make_plan(options: CacheOptions) -> Plan:
    """The Plan for CacheOptions. Raises InputError if the file list cannot be used, or is a cache itself."""
    bucketing = None
    if options.sizes is not None:
        bucketing = Bucketing(BucketTable(options.sizes), options.aspect_group_size, options.enlarge)
    catalog = Catalog(
        options.file_list,
        options.resolution,
        max_bad_fraction=options.max_bad_fraction,
        enlarge=options.enlarge,
        data_filter=options.data_filter,
        bucketing=bucketing,
    )
    if catalog.kind == KIND:
        raise InputError(f"--file_list {options.file_list} is a cache of latents; name the list of the images")
    tasks, unreadable = {}, {}
    of_source: list[list] = [[] for _ in catalog.weights]
    for at, path in enumerate(catalog.paths):
        source = catalog.source_of(at)
        rule = catalog.rules[source]
        goes_to = () if catalog.bucket_rows is None else tuple(catalog.bucket_rows.goes_to[source].tolist())
        if (path, rule, goes_to) in tasks:
            of_source[source].append(tasks[path, rule, goes_to])
            continue
        if path in unreadable:
            continue
        number = len(tasks) + len(unreadable)
        if catalog.checksums[at] == "missing":
            unreadable[path] = catalog.damage[at]
            continue
        out = storage.join(part_folder(options), f"part-{number + 1:06d}.gz")
        task = Task(
            number, path, out, catalog.checksums[at], int(catalog.usable[at]), rule, catalog.digests[at], goes_to
        )
        tasks[path, rule, goes_to] = task
        of_source[source].append(task)
    sources = list(zip(catalog.weights, of_source, strict=True))
    buckets = catalog.bucket_rows.lines() if catalog.bucket_rows else []
    captions = by_source(sample_records(catalog)) if options.cache_text else {}
    return Plan(sources, list(tasks.values()), unreadable, catalog.fingerprint, captions, buckets)


def part_folder(options: CacheOptions) -> str:
    return storage.join(options.output_path, PART_FOLDER)


def resumed_manifest(tasks: Sequence, manifest: Manifest, options: CacheOptions) -> Manifest:
    """The Manifest, with the resizer of the parts that the folder holds: the earlier one, or none from before that was
    written down."""
    candidates = [replace(manifest, resizer=name) for name in (None, EARLIER_RESIZER)]
    existing = set(storage.list_folder(part_folder(options)))
    for task in tasks:
        if storage.base_name(task.path) in existing and not options.overwrite:
            try:
                index = parse_index(storage.read_bytes(task.path + SUFFIX), task.path)
            except (FileNotFoundError, PartError):
                continue
            return next((earlier for earlier in candidates if earlier.id == index.notes.get("cache")), manifest)
    return manifest


def unfinished(tasks: Sequence, manifest: Manifest, options: CacheOptions) -> list[Task]:
    """The Tasks whose part is not there whole. Raises InputError as `is_finished`."""
    existing = set(storage.list_folder(part_folder(options)))

    def is_missing(task):
        return storage.base_name(task.path) not in existing or not is_finished(task, manifest, options)

    return [task for task, missing in zip(tasks, each(is_missing, tasks), strict=True) if missing]


def is_finished(task: Task, manifest: Manifest, options: CacheOptions) -> bool:
    """Whether a Task's part is there whole. Raises InputError as `finished`, unless --overwrite has it replaced."""
    try:
        return finished(task, manifest) is not None
    except InputError:
        if not options.overwrite:
            raise
        return False


def each(function: Callable, tasks: Sequence) -> list:
    """`function(task)` of each, in order, many at a time where the parts are far away."""
    if tasks and storage.is_remote(tasks[0].path):
        with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
            return list(pool.map(function, tasks))
    return list(map(function, tasks))


def finished(task: Task, manifest: Manifest) -> PartIndex | None:
    """PartIndex of a Task's cached part; None if it is not there whole. Raises InputError if it is another's."""
    try:
        index = parse_index(storage.read_bytes(task.path + SUFFIX), task.path)
        num_bytes = storage.size_of(task.path)
    except (FileNotFoundError, PartError):
        return None
    if index.kind != KIND or "cache" not in index.notes:
        raise _refusal(task, "is no part of a cache")
    if index.notes["cache"] != manifest.id:
        other = Manifest(**index.notes["settings"])
        raise _refusal(task, "was made with other settings: " + "; ".join(other.differences_from(manifest)))
    if index.notes["source"] != task.checksum:
        raise _refusal(task, f"is not of {task.source} as it is now")
    if index.notes.get("passing", "") != task.digest:
        raise _refusal(task, "holds other rows: the filter or the columns that it judges by have changed")
    return index if num_bytes == index.part_bytes else None


def _refusal(task, reason):
    return InputError(f"{task.path} {reason}; take another --output_path, or --overwrite to replace such parts")


def usable_rows(task: Task) -> tuple[PartIndex, list[int], list[tuple[int, int]]]:
    """(PartIndex of the source part, numbers of its rows that are used, (width, height) of the bucket of each).

    Without buckets the last is empty. Raises PartError.
    """
    index = load_index(task.source)
    selected = task.rule.select_index(index)
    rows = selected.rows.tolist()
    if selected.buckets is None or task.rule.shapes is None:
        return index, rows, []
    sizes = task.rule.shapes.table.sizes
    return index, rows, [sizes[task.goes_to[bucket]] for bucket in selected.buckets[selected.rows].tolist()]


def with_table(options: CacheOptions) -> CacheOptions:
    """The CacheOptions with --aspect_buckets as a sorted list of sizes, as training names it. Raises InputError."""
    if options.aspect_buckets is None:
        return options
    parsed = parse_aspect_buckets(options.aspect_buckets)
    if not isinstance(parsed, int):
        return replace(options, aspect_buckets=str(BucketTable(parsed)))
    table = BucketTable.from_flag(options.aspect_buckets, options.resolution, side_multiple(options))
    return replace(options, aspect_buckets=str(table))
