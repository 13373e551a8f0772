"""From parsed arguments to a trained model: lock, find the checkpoint, load, train."""

import logging
import math
import os
from pathlib import Path
from typing import Any

import paddle
from paddlenlp.trainer.trainer_utils import IntervalStrategy

from sd import devices
from sd.data.filters.rows import RowFilter
from sd.data.parts.moments import find_manifest
from sd.data.streaming.buckets import BucketTable
from sd.data.streaming.caption_draw import check_sources
from sd.data.streaming.captions import by_source, describe_truncation, sample_records
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.dataset import EvalPairs, TextImagePair, collate, raise_if_failed
from sd.diffusion.model import StableDiffusionModel
from sd.errors import ArgumentError, InputError, signal_name
from sd.flags.arguments import SDDataArguments, SDModelArguments
from sd.flags.training import SDTrainingArguments
from sd.latents.fit import cached_components, check_fit
from sd.processes.progress import RESTARTED
from sd.processes.ranks import on_rank_0
from sd.processes.signals import write_to_launcher
from sd.runs.checkpoint import (
    find_problem,
    list_checkpoints,
    lock_output_dir,
    newest_intact_checkpoint,
    read_json,
    remove_checkpoint,
    remove_leftovers,
)
from sd.runs.settings import check_same_run, checkpoint_settings, write_run_json
from sd.runs.skipped import SKIPPED, gaps_of, mark_abandoned, skipped_samples
from sd.sampling.prompts import read_prompts
from sd.training.identity import component_hashes, settings_of
from sd.training.previews import COUNT as PREVIEW_COUNT
from sd.training.previews import Previews
from sd.training.setup import keep_global_batch
from sd.training.trainer import StableDiffusionTrainer

logger = logging.getLogger(__name__)


def train(model_args: SDModelArguments, data_args: SDDataArguments, training_args: SDTrainingArguments) -> int | None:
    """Train as the arguments say. Returns the number of the signal that ended training early, or None."""
    if not training_args.do_train:
        raise InputError("nothing to do; give --do_train")
    precision = f"{training_args.precision} {training_args.fp16_opt_level}".removesuffix(" O1")
    ranks = f"{training_args.world_size} rank(s)"
    logger.info("device: %s; precision %s; %s", devices.describe(devices.current()), precision, ranks)
    # Errors in the data are raised before gigabytes of models are loaded.
    if data_args.data_filter is not None:
        RowFilter(data_args.data_filter)
    manifests = [find_manifest(file_list) for file_list in file_lists(data_args)]
    check_tags(data_args, manifests[0])
    locks = []
    checkpoint = on_rank_0(training_args, lambda: prepare(model_args, data_args, training_args, locks))
    if checkpoint and not Path(checkpoint).is_dir():
        raise InputError(
            f"{checkpoint} is not there on this machine; --output_dir must be on storage that all machines share"
        )
    if checkpoint and is_finished(checkpoint, training_args):
        return None
    if checkpoint and training_args.allow_fewer_ranks:
        keep_global_batch(training_args, checkpoint_settings(checkpoint).get("global_batch_size"))
    paddle.seed(training_args.seed)
    model = StableDiffusionModel.from_arguments(model_args, data_args.resolution, cached_components(manifests[0]))
    skipped = skipped_samples(training_args.output_dir, checkpoint)
    dataset = make_dataset(model, data_args, training_args, checkpoint, skipped)
    on_rank_0(training_args, lambda: check_captions(model, data_args, dataset.catalog))
    if training_args.process_index == 0:
        log_buckets(dataset.catalog)
    if training_args.max_steps <= 0:
        training_args.max_steps = steps_of_epochs(training_args, min(data_args.num_records, dataset.num_usable))
        if checkpoint and is_finished(checkpoint, training_args):
            return None
    hashes = on_rank_0(training_args, lambda: component_hashes(model, model_args, manifests[0]))
    settings = settings_of(model_args, data_args, training_args, dataset, hashes)
    if checkpoint:
        before = checkpoint_settings(checkpoint)
        message = check_same_run(before, settings, checkpoint, training_args.allow_changed_resume, data_args.file_list)
        changed = f"; changed settings: {message}" if message else ""
        logger.info("resuming from %s, whose weights replace those above%s", checkpoint, changed)
    arguments = (model_args, data_args, training_args)
    on_rank_0(
        training_args,
        lambda: write_run_json(training_args.output_dir, arguments, dataset.fingerprint, checkpoint, skipped),
    )
    trainer = StableDiffusionTrainer(
        model,
        training_args,
        train_dataset=dataset,
        data_collator=collate,
        eval_dataset=make_eval_dataset(model, data_args, training_args, used_buckets(dataset.catalog)),
        run_settings=settings,
        previews=make_previews(model, model_args, data_args, training_args, dataset.catalog),
        skipped=skipped,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    for lock in locks:
        lock.close()
    if trainer.stop_signal is not None:
        saved = "saved" if trainer.saved_step == trainer.state.global_step else "not saved"
        saved += "" if training_args.save_on_exit else " (--save_on_exit False)"
        name, step = signal_name(trainer.stop_signal), trainer.state.global_step
        message = f"stopped by {name} after step {step}, {saved}; the same command resumes"
        logger.info(message)
        if training_args.process_index == 0:
            write_to_launcher(message)
    return trainer.stop_signal


def file_lists(data_args: SDDataArguments) -> Any:
    """The lists that are read: of training, and of validation if there is one."""
    return list(filter(None, (data_args.file_list, data_args.eval_file_list)))


def prepare(
    model_args: SDModelArguments, data_args: SDDataArguments, training_args: SDTrainingArguments, locks: Any
) -> Any:
    """Rank 0 alone, before anything is loaded: check, lock output_dir, clean up after a kill, find the checkpoint to
    resume from. Returns its path as text, or None. locks: a list that takes the open lock."""
    for file_list in file_lists(data_args):
        check_fit(file_list, model_args, data_args)
    locks.append(lock_output_dir(training_args.output_dir))
    remove_leftovers(training_args.output_dir)
    mark_abandoned(training_args.output_dir)
    checkpoint = find_start(training_args)
    return str(checkpoint) if checkpoint else None


def find_start(training_args: SDTrainingArguments, only_look: bool = False) -> Any:
    """The checkpoint to resume from, or None. only_look: nothing is removed or marked on the way."""
    output_dir, named = training_args.output_dir, training_args.resume_from_checkpoint
    if os.environ.get(RESTARTED) and (newest := newest_intact_checkpoint(output_dir)):
        return newest
    if named and named.lower() == "latest":
        raise ArgumentError("resume_from_checkpoint", named, "; leave it out: the newest whole one is the default")
    if named and named.lower() not in ("true", "last"):
        problem = find_problem(named) if Path(named).is_dir() else "no such folder"
        if problem:
            existing = ", ".join(folder.name for folder in list_checkpoints(output_dir)) or "none"
            raise ArgumentError("resume_from_checkpoint", named, f": {problem}; in {output_dir} there are: {existing}")
        return Path(named)
    if training_args.overwrite_output_dir:
        if only_look:
            return None
        for folder in list_checkpoints(output_dir):
            logger.info("removing %s (overwrite_output_dir)", folder)
            remove_checkpoint(folder)
        (Path(output_dir) / SKIPPED).unlink(missing_ok=True)
        return None
    return newest_intact_checkpoint(output_dir, mark=not only_look)


def is_finished(checkpoint: Any, training_args: SDTrainingArguments) -> bool:
    """Whether the checkpoint is the end of the run; says so."""
    done = 0 < training_args.max_steps <= read_json(checkpoint, "trainer_state.json")["global_step"]
    if done:
        logger.info("%s: this run of %d steps is finished, nothing to do", checkpoint, training_args.max_steps)
    return done


def steps_of_epochs(training_args: SDTrainingArguments, records: int) -> int:
    """Optimizer steps in num_train_epochs passes over `records` records."""
    batch = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    return max(1, math.ceil(training_args.num_train_epochs * records / (batch * training_args.dataset_world_size)))


def num_machines(training_args: SDTrainingArguments) -> int:
    """Machines of the run, by what the launcher says of this one."""
    return max(
        1, training_args.dataset_world_size // int(os.environ.get("PADDLE_LOCAL_SIZE") or training_args.world_size)
    )


def make_dataset(
    model: Any, data_args: SDDataArguments, training_args: SDTrainingArguments, checkpoint: Any, skipped: Any = ()
) -> Any:
    """The endless stream of samples, from where the checkpoint stands, without the skipped ones."""
    state = read_json(checkpoint, "data_state.json") if checkpoint else {}
    if data_args.data_lanes and state and data_args.data_lanes != state["lanes"]:
        raise InputError(
            f"--data_lanes {data_args.data_lanes}, but {checkpoint} was dealt in {state['lanes']}; leave it out"
        )
    group_size = state.get("group_size")
    if data_args.aspect_group_size and group_size and data_args.aspect_group_size != group_size:
        raise InputError(
            f"--aspect_group_size {data_args.aspect_group_size}, but {checkpoint} was dealt in groups of {group_size}; "
            "leave it out"
        )
    buckets = bucket_table(model, data_args)
    machines = num_machines(training_args)
    batch_size = training_args.per_device_train_batch_size
    # With a lane for each machine, a part is fetched and unpacked by one machine, whatever ranks and workers it has.
    deal_size = batch_size if data_args.data_lanes else batch_size * training_args.dataset_world_size // machines
    return TextImagePair(
        data_args.file_list,
        model.tokenize,
        resolution=data_args.resolution,
        batch_size=batch_size,
        num_workers=training_args.dataloader_num_workers,
        rank=training_args.dataset_rank,
        world_size=training_args.dataset_world_size,
        seed=training_args.seed,
        start_sample=state.get("samples_seen", 0),
        skipped=gaps_of(skipped).intervals,
        lanes=state.get("lanes", data_args.data_lanes or machines),
        deal_size=state.get("deal_size", deal_size),
        buffer_size=data_args.buffer_size or state.get("buffer_size"),
        interpolation=data_args.interpolation,
        caption_dropout=data_args.caption_dropout,
        max_bad_fraction=data_args.max_bad_fraction,
        cache_bytes=data_args.data_cache_bytes,
        draw=model.draws(data_args.resolution, buckets and buckets.sizes),
        enlarge=data_args.enlarge,
        data_filter=data_args.data_filter,
        captions=data_args.caption_flags,
        buckets=buckets,
        group_size=group_size or data_args.aspect_group_size,
    )


def bucket_table(model: Any, data_args: SDDataArguments) -> BucketTable | None:
    """The table of --aspect_buckets for this model; None for squares."""
    if data_args.aspect_buckets is None:
        return None
    return BucketTable.from_flag(data_args.aspect_buckets, data_args.resolution, model.side_multiple)


def used_buckets(catalog: Catalog) -> BucketTable | None:
    """The buckets that training draws from; None for squares."""
    return None if catalog.bucket_rows is None else catalog.bucket_rows.used


def log_buckets(catalog: Any) -> None:
    """Log the rows of each bucket, and which buckets are merged or empty."""
    if catalog.bucket_rows is not None:
        for line in catalog.bucket_rows.lines():
            logger.info("%s", line)
        logger.info("groups of %d samples of one bucket", catalog.bucketing.group_size)


def check_captions(model: Any, data_args: SDDataArguments, catalog: Any) -> None:
    """Log which share of a sample of the captions is longer than the text encoder sees, and how many rows lack one that
    has a share. Raises InputError where the flags name captions that no row has."""
    if "text_encoder" in model.deferred and not data_args.caption_flags.named:
        return  # the captions' states were computed when they were cached
    records = sample_records(catalog)
    lines = check_sources([record.sources for record in records], data_args.caption_flags)
    if "text_encoder" not in model.deferred:
        lines += describe_truncation(by_source(records), model.model_args.model_max_length, model.tokenizer)
    for line in lines:
        logger.warning("%s: %s", catalog.file_list, line)


def check_tags(data_args: SDDataArguments, manifest: Any) -> Any:
    """Raise InputError where tags are to be shuffled, but the list has the states of texts that were encoded before."""
    if data_args.shuffle_tags is not None and manifest is not None and manifest.has_text:
        raise InputError(
            f"--shuffle_tags {data_args.shuffle_tags}, but {data_args.file_list} has the texts' states, in which the "
            "tags have their order; cache without --cache_text"
        )


def _eval_pairs(model, data_args, training_args, file_list, limit, buckets):
    return EvalPairs(
        file_list,
        model.tokenize,
        resolution=data_args.resolution,
        draw=model.draws(data_args.resolution, buckets and buckets.sizes),
        seed=training_args.seed,
        interpolation=data_args.interpolation,
        limit=limit,
        enlarge=data_args.enlarge,
        buckets=buckets,
    )


def make_eval_dataset(
    model: Any, data_args: SDDataArguments, training_args: SDTrainingArguments, buckets: Any = None
) -> Any:
    """The held-out records in training's buckets, and validation every eval_steps, if --eval_file_list is given."""
    if data_args.eval_file_list is None:
        training_args.evaluation_strategy = IntervalStrategy.NO
        return None
    training_args.evaluation_strategy = IntervalStrategy.STEPS
    training_args.eval_steps = training_args.eval_steps or training_args.save_steps
    limit = training_args.max_evaluate_steps * training_args.per_device_eval_batch_size
    limit = limit if limit > 0 else None
    return _eval_pairs(model, data_args, training_args, data_args.eval_file_list, limit, buckets)


def make_previews(
    model: Any,
    model_args: SDModelArguments,
    data_args: SDDataArguments,
    training_args: SDTrainingArguments,
    catalog: Any,
) -> Any:
    """What is drawn while training, on rank 0 alone: the first records of the file list and the user's prompts."""
    path = training_args.validation_prompts
    prompts = read_prompts(path, flag="validation_prompts") if path else []
    enabled = training_args.image_logging_steps > 0 and "visualdl" in training_args.report_to
    if training_args.process_index != 0 or not enabled:
        return None
    buckets = bucket_table(model, data_args)
    pairs = _eval_pairs(model, data_args, training_args, catalog, PREVIEW_COUNT, buckets)
    records = [collate([pairs[index]]) for index in range(len(pairs))]
    for record in records:
        raise_if_failed(record)
    square, used = (data_args.resolution, data_args.resolution), used_buckets(catalog)
    return Previews(
        records,
        [pairs.caption(index) for index in range(len(pairs))],
        prompts,
        sizes=[square if buckets is None else buckets.sizes[pairs.bucket(index)] for index in range(len(pairs))],
        prompt_sizes=[square] if used is None else used.spread(),
        num_inference_steps=model_args.num_inference_steps,
    )
