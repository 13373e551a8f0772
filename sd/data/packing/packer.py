"""Packing: input rows -> parts in a bounded pool -> report -> file lists, in this order."""

import errno
import json
import re
import sys
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import chain, groupby, islice
from typing import Any

from tqdm import tqdm

from sd.data.packing.options import PackOptions
from sd.data.packing.part import Task, is_empty_part, pack_part
from sd.data.packing.report import Progress, Tally
from sd.data.packing.sources.choose import open_source, other_format
from sd.data.parts import storage
from sd.data.parts.columns import SUFFIX as COLUMNS_SUFFIX
from sd.data.parts.filelist import check_replaceable, file_list_path, write_file_lists
from sd.data.parts.index import SUFFIX, PartError, parse_index
from sd.data.resumable import resumable
from sd.errors import InputError
from sd.files import is_unfinished
from sd.processes.locks import locked_folder
from sd.processes.pool import run_local
from sd.processes.ray_engine import run_on_ray

PART_FOLDER, LIST_FOLDER = "laion400m_format_data", "filelist"
_MAX_BAD_ROWS_AT_START = 10_000  # this many rows and none of them good: the rest will not be better


def pack(options: PackOptions) -> tuple[str, dict[str, Any]]:
    """Pack as the PackOptions say. Returns the path of the `.filelist.list` and what report.json holds.

    A run that was stopped resumes from its finished parts. Raises InputError for wrong input or an output that belongs
    to other input or flags, RunError for too many bad rows or an output that cannot be written.
    """
    with resumable(options.output_path) as raise_if_stopped:
        source = open_source(options)
        tasks = _tasks(source.items(), options, raise_if_stopped)
        with _other_format_named(options):
            first = next(tasks, None)
            if first is None:
                raise InputError(f"--input_path {options.input_path}: no rows in it")
        with _locked_output(options):
            tally = _pack_parts(chain([first], tasks), source, options)
            raise_if_stopped()
            return _finish(tally, options)


def _part_folder(options):
    return storage.join(options.output_path, PART_FOLDER)


@contextmanager
def _other_format_named(options):
    """An error of the input ends with the format that it looks like, where that is another one."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}{other_format(options)}") from error


def _tasks(items, options, raise_if_stopped):
    """Tasks of rows that follow each other and have one repeat."""
    suffix = ".gz" if options.save_gzip_file else ""
    number = 0
    for repeat, run in groupby(items, lambda pair: getattr(pair[0], "repeat", 1)):
        while chunk := list(islice(run, options.per_part_file_num)):
            raise_if_stopped()
            number += 1
            path = storage.join(_part_folder(options), f"part-{number:06d}{suffix}")
            yield Task(path, [item for item, _ in chunk], done_fraction=chunk[-1][1], repeat=repeat)


@contextmanager
def _locked_output(options):
    """The output's folders, locked against a second run, and cleared of unfinished files before and after."""
    folder = _part_folder(options)
    try:
        storage.make_folder(folder)
        storage.make_folder(storage.join(options.output_path, LIST_FOLDER))
    except OSError as error:
        if error.errno == errno.EIO:  # a store that does not answer, not a wrong path
            raise
        raise InputError(f"--output_path {options.output_path}: {error.strerror or error}") from error
    with nullcontext() if storage.is_remote(folder) else locked_folder(folder):
        lists = storage.join(options.output_path, LIST_FOLDER)
        check_replaceable(file_list_path(lists, options.output_name), folder)
        try:
            _clear(folder, options)
            yield
        finally:
            _remove_unfinished(options)


def _clear(folder, options):
    _remove_unfinished(options)
    if options.overwrite:
        lists = storage.join(options.output_path, LIST_FOLDER)
        for suffix in (".filelist.list", ".filelist"):  # first what would lead a training run to missing parts
            storage.remove(storage.join(lists, options.output_name + suffix))
        for name in _parts_in(folder):
            _remove_part(folder, name)
    other = [name for name in _parts_in(folder) if name.endswith(".gz") != options.save_gzip_file]
    if other := _without_empty(folder, other):
        now = "with" if options.save_gzip_file else "without"
        raise _refuse(storage.join(folder, other[0]), f"it was packed otherwise, now {now} --save_gzip_file")


def _remove_part(folder, name):
    storage.remove(storage.join(folder, name))
    storage.remove(storage.join(folder, name + SUFFIX))
    if storage.exists(columns := storage.join(folder, name + COLUMNS_SUFFIX)):
        storage.remove(columns)


def _without_empty(folder, names):
    """The names of the parts that hold rows; the others, left from a command that packed none, are removed."""
    left = []
    for name in names:
        path = storage.join(folder, name)
        try:
            is_empty = is_empty_part(parse_index(storage.read_bytes(path + SUFFIX), path))
        except (FileNotFoundError, PartError):
            is_empty = False
        if is_empty:
            _remove_part(folder, name)
        else:
            left.append(name)
    return left


def _parts_in(folder):
    names = (name.removesuffix(SUFFIX) for name in storage.list_folder(folder))
    return sorted({name for name in names if re.fullmatch(r"part-\d{6,}(\.gz)?", name)})


def _remove_unfinished(options):
    """Remove temporary files of killed processes."""
    output = options.output_path
    for folder in (output, storage.join(output, LIST_FOLDER), _part_folder(options)):
        for name in storage.list_folder(folder):
            if is_unfinished(name):
                storage.remove(storage.join(folder, name))


def _refuse(path, reason):
    return InputError(f"{path}: {reason}; take another --output_path, or --overwrite to pack everything again")


def _pack_parts(tasks, source, options):
    work = partial(pack_part, source=source, options=options)
    if options.engine == "ray":
        results = run_on_ray(work, tasks, options.ray_address)
    else:
        results = run_local(work, tasks, options.num_workers)
    rejected_path = storage.join(options.output_path, "rejected.jsonl")
    with closing(results), storage.AtomicFile(rejected_path) as rejected, Progress() as progress:
        tally = Tally()
        for result in results:
            if result.changed:
                raise _refuse(result.path, result.changed)
            tally.add(result)
            progress.update(result)
            for line in tally.empty_columns():
                tqdm.write(line, sys.stderr)
            for row in result.rejected:
                rejected.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            if tally.num_packed == 0 and tally.num_bad >= _MAX_BAD_ROWS_AT_START:
                break
    return tally


def _finish(tally, options):
    report = tally.report(options.part_settings())
    if len(options.caption_keys) > 1:
        report["rows_with_caption"] = {key: tally.captions[key] for key in options.caption_keys}
    storage.write_atomic(
        storage.join(options.output_path, "report.json"), json.dumps(report, indent=2).encode() + b"\n"
    )
    with _other_format_named(options):
        tally.check(options.input_path, options)
    folder = _part_folder(options)
    extra = set(_parts_in(folder)) - {storage.base_name(path) for path in tally.all_parts}
    if extra := _without_empty(folder, sorted(extra)):
        raise _refuse(storage.join(folder, extra[0]), "it is left from longer input")
    lists = storage.join(options.output_path, LIST_FOLDER)
    return write_file_lists(lists, options.output_name, tally.listed, options.num_repeat), report
