"""A caching run: plan, make what is missing in this process or on a Ray cluster, write the lists, check."""

import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import groupby
from typing import Any

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from sd import devices
from sd.data.parts import storage
from sd.data.parts.filelist import check_replaceable, file_list_path
from sd.data.parts.index import PartError
from sd.data.resumable import resumable
from sd.data.streaming.captions import describe_truncation
from sd.errors import RunError, last_line
from sd.latents.check import check_cache
from sd.latents.claims import Claims
from sd.latents.decode import close_readers, decode_alone, decode_chunk
from sd.latents.finish import finish
from sd.latents.models import encoders_for
from sd.latents.options import CacheOptions
from sd.latents.part import chunks_of, write_part
from sd.latents.plan import (
    LIST_FOLDER,
    Task,
    is_finished,
    make_plan,
    part_folder,
    resumed_manifest,
    unfinished,
    with_table,
)
from sd.logs import bar_seconds, rank
from sd.processes.pool import run_local
from sd.processes.ray_engine import run_on_ray
from sd.runtime import usable_cores

_MAX_BAD_ROWS_AT_START = 1000  # this many rows and none of them good: the rest will not be better
_RAY_THREADS = 4  # that decode beside each GPU


def precompute(options: CacheOptions) -> tuple[str, dict] | None:
    """Cache as the CacheOptions say. Returns (path of the `.filelist.list`, report), or None where other processes
    are still making parts, the last of which will write it.

    A run that was stopped resumes from its finished parts. Raises InputError for wrong input or a folder that holds
    another cache, RunError for too many bad rows, an output that cannot be written, or rows that --check finds wrong.
    """
    try:
        with resumable(options.output_path) as raise_if_stopped:
            return _precompute(options, raise_if_stopped)
    except PartError as error:
        raise RunError(f"{error}; the same command resumes from the finished parts") from error
    except MemoryError as error:  # Paddle's, of a GPU's too
        full = last_line(error) if str(error) else "out of memory"
        raise RunError(f"{full}; lower --batch_size, and the same command resumes") from error
    finally:
        close_readers()


def _precompute(options, raise_if_stopped):
    options = with_table(options)
    plan = make_plan(options)
    lists = storage.join(options.output_path, LIST_FOLDER)
    file_list = file_list_path(lists, options.output_name)
    check_replaceable(file_list, part_folder(options))
    for line in plan.buckets:
        tqdm.write(line, sys.stderr)
    encoders = encoders_for(options)
    manifest = resumed_manifest(plan.tasks, encoders.manifest(source=plan.fingerprint), options)
    tokenizer = encoders.tokenizer if options.cache_text else None
    for line in describe_truncation(plan.captions, options.model_max_length, tokenizer):
        tqdm.write(f"{options.file_list}: {line}", sys.stderr)
    for folder in (part_folder(options), lists):
        storage.make_folder(folder)
    todo = unfinished(plan.tasks, manifest, options)
    if len(todo) < len(plan.tasks):
        tqdm.write(f"{len(plan.tasks) - len(todo)} of {len(plan.tasks)} parts are there already", sys.stderr)
    if todo and options.overwrite:  # first what would lead a training run to parts of two kinds
        storage.remove(file_list)
    claims = Claims(part_folder(options))
    with closing(claims):
        if todo and options.engine == "ray":
            _make_on_ray(todo, manifest, options)
        elif todo:
            _make_here(todo, claims, encoders, manifest, options)
        raise_if_stopped()
        done = finish(plan, manifest, encoders, claims)
    if done is not None and options.check:
        check_cache(plan.tasks, manifest, encoders)
    return done


class Progress:
    """A bar of images, on rank 0 alone, and the end of a run of which nothing will come."""

    def __init__(self, total: int):
        self._bar = tqdm(
            total=total, desc="caching latents", unit=" images", mininterval=bar_seconds(), disable=rank() > 0
        )
        self._num_good, self._num_bad = 0, 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.close()

    def update(self, num_images: int) -> None:
        self._bar.update(num_images)

    def expect(self, num_images: int) -> None:
        """So many images more than was thought."""
        self._bar.total += num_images

    def add_outcome(self, task: Task, num_good: int, num_bad: int, first_bad: Any) -> None:
        """Take a part's outcome. Raises RunError when many rows were bad and none good."""
        self._num_good += num_good
        self._num_bad += num_bad
        if not self._num_good and self._num_bad >= _MAX_BAD_ROWS_AT_START:
            (row,) = first_bad
            raise RunError(
                f"none of the first {self._num_bad} rows could be cached; of {task.source} the first was row "
                f"{row['row']}: {row['reason']} {row['detail']}".rstrip()
                + "; mend the input or the models"
            )


def _make_here(todo, claims, encoders, manifest, options):
    """Make this rank's share of the parts, then the unclaimed parts of other ranks."""
    ranks, here = int(os.environ.get("PADDLE_TRAINERS_NUM") or 1), int(os.environ.get("PADDLE_LOCAL_SIZE") or 1)
    own = [task for task in todo if task.number % ranks == rank()]
    others = [task for task in reversed(todo) if task.number % ranks != rank()] if claims.shared else []
    by_number = {task.number: task for task in todo}
    workers = max(1, usable_cores() // here) if options.num_workers is None else options.num_workers

    with Progress(sum(task.num_usable for task in own)) as progress:

        def chunks():
            for task in own + others:
                if not claims.acquire(task.number):
                    continue
                if is_finished(task, manifest, options):  # by another rank meanwhile
                    continue
                if task.number % ranks != rank():
                    progress.expect(task.num_usable)
                yield from chunks_of(task, options, manifest.decodes_by)

        if workers:
            decoded = run_local(partial(decode_alone, options=options), chunks(), workers)
        else:
            decoded = (decode_chunk(chunk, options) for chunk in chunks())
        with closing(decoded):
            for number, of_part in groupby(decoded, key=lambda done: done.chunk.task):
                task = by_number[number]
                progress.add_outcome(task, *write_part(task, of_part, encoders, manifest, progress.update))


def _make_on_ray(todo, manifest, options):
    work = partial(_make_one, manifest=manifest, options=options)
    on_gpus = not (options.device or "").startswith("cpu")
    results = run_on_ray(work, todo, options.ray_address, on_gpus=on_gpus)
    with Progress(sum(task.num_usable for task in todo)) as progress, closing(results):
        for task, outcome in zip(todo, results, strict=True):
            progress.update(task.num_usable)
            progress.add_outcome(task, *outcome)


def _make_one(task, manifest, options):
    """A Ray task: one part, by the encoders that this worker keeps; threads decode ahead."""
    threadpool_limits(1)  # Ray gives a task one core
    devices.select(options.device)
    encoders = encoders_for(options)
    decode = partial(decode_chunk, options=options)
    chunks = chunks_of(task, options, manifest.decodes_by)
    threads = options.num_workers or _RAY_THREADS
    try:
        with ThreadPoolExecutor(threads) as pool:
            return write_part(task, _ahead(pool, decode, chunks, threads), encoders, manifest, lambda rows: None)
    finally:
        close_readers()


def _ahead(pool, function, items, count):
    """`map` by a pool's threads, `count` items ahead."""
    pending = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > count:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
