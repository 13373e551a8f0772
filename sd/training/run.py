"""From parsed arguments to a trained model: lock, find the checkpoint, load, train."""

import logging
import math
import os
from pathlib import Path
from typing import TextIO

import paddle

from sd import devices
from sd.data.filters.rows import RowFilter
from sd.data.parts.moments import find_manifest
from sd.data.streaming.dataset import collate
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
from sd.runs.skipped import SKIPPED, mark_abandoned, skipped_samples
from sd.training.data import (
    check_captions,
    check_tags,
    file_lists,
    log_buckets,
    make_dataset,
    make_eval_catalog,
    make_eval_dataset,
    make_previews,
    stream_options,
    used_buckets,
)
from sd.training.identity import component_hashes, settings_of
from sd.training.report import HISTORY
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
    for line in training_args.idle() if training_args.process_index == 0 else ():
        logger.warning("%s", line)
    # Errors in the data are raised before gigabytes of models are loaded.
    if data_args.data_filter is not None:
        RowFilter(data_args.data_filter)
    manifests = [find_manifest(file_list) for file_list in file_lists(data_args)]
    check_tags(data_args, manifests[0])
    locks: list[TextIO] = []
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
    skipped = skipped_samples(training_args.output_dir, checkpoint)
    options = stream_options(model_args, data_args, training_args, checkpoint, skipped)
    catalog = options.catalog(data_args.file_list)
    eval_catalog = make_eval_catalog(data_args, used_buckets(catalog))
    model = StableDiffusionModel.from_arguments(model_args, data_args.resolution, cached_components(manifests[0]))
    dataset = make_dataset(model, catalog, options)
    on_rank_0(training_args, lambda: check_captions(model, data_args, catalog))
    if training_args.process_index == 0:
        log_buckets(catalog)
    if training_args.max_steps <= 0:
        training_args.max_steps = steps_of_epochs(training_args, min(data_args.num_records, dataset.num_usable))
        if checkpoint and is_finished(checkpoint, training_args):
            return None
    hashes = on_rank_0(training_args, lambda: component_hashes(model, model_args, manifests[0]))
    arguments = (model_args, data_args, training_args)
    settings = settings_of(*arguments, dataset, hashes)
    if checkpoint:
        before = checkpoint_settings(checkpoint)
        message = check_same_run(before, settings, checkpoint, training_args.allow_changed_resume, data_args.file_list)
        changed = f"; changed settings: {message}" if message else ""
        logger.info("resuming from %s, whose weights replace those above%s", checkpoint, changed)
    on_rank_0(
        training_args,
        lambda: write_run_json(training_args.output_dir, arguments, dataset.fingerprint, checkpoint, skipped),
    )
    trainer = StableDiffusionTrainer(
        model,
        training_args,
        train_dataset=dataset,
        data_collator=collate,
        eval_dataset=make_eval_dataset(model, data_args, training_args, eval_catalog, options.resizer),
        run_settings=settings,
        previews=make_previews(model, model_args, data_args, training_args, catalog, options.resizer),
        skipped=skipped,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    for lock in locks:
        lock.close()
    if trainer.stop_signal is not None:
        _report_stop(trainer, trainer.stop_signal, training_args)
    return trainer.stop_signal


def _report_stop(trainer: StableDiffusionTrainer, number: int, training_args: SDTrainingArguments) -> None:
    """Log why training ended early, and whether its last step is saved; the launcher hears it too."""
    saved = "saved" if trainer.saved_step == trainer.state.global_step else "not saved"
    saved += "" if training_args.save_on_exit else " (--save_on_exit False)"
    message = (
        f"stopped by {signal_name(number)} after step {trainer.state.global_step}, {saved}; the same command resumes"
    )
    logger.info(message)
    if training_args.process_index == 0:
        write_to_launcher(message)


def prepare(
    model_args: SDModelArguments, data_args: SDDataArguments, training_args: SDTrainingArguments, locks: list[TextIO]
) -> str | None:
    """Rank 0 alone, before anything is loaded: check, lock output_dir, clean up after a kill, find the checkpoint to
    resume from. Returns its path as text, or None. locks: a list that takes the open lock."""
    for file_list in file_lists(data_args):
        check_fit(file_list, model_args, data_args)
    locks.append(lock_output_dir(training_args.output_dir))
    remove_leftovers(training_args.output_dir)
    mark_abandoned(training_args.output_dir)
    checkpoint = find_start(training_args)
    return str(checkpoint) if checkpoint else None


def find_start(training_args: SDTrainingArguments, only_look: bool = False) -> Path | None:
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
        if named:
            raise InputError(
                f"--resume_from_checkpoint {named} with --overwrite_output_dir True, which removes them; give one"
            )
        if only_look:
            return None
        for folder in list_checkpoints(output_dir):
            logger.info("removing %s (overwrite_output_dir)", folder)
            remove_checkpoint(folder)
        for name in (SKIPPED, HISTORY):
            (Path(output_dir) / name).unlink(missing_ok=True)
        return None
    return newest_intact_checkpoint(output_dir, mark=not only_look)


def is_finished(checkpoint: str | Path, training_args: SDTrainingArguments) -> bool:
    """Whether the checkpoint is the end of the run; says so."""
    done = 0 < training_args.max_steps <= read_json(checkpoint, "trainer_state.json")["global_step"]
    if done:
        logger.info("%s: this run of %d steps is finished, nothing to do", checkpoint, training_args.max_steps)
    return done


def steps_of_epochs(training_args: SDTrainingArguments, records: int) -> int:
    """Optimizer steps in num_train_epochs passes over `records` records."""
    batch = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    return max(1, math.ceil(training_args.num_train_epochs * records / (batch * training_args.dataset_world_size)))
