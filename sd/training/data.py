"""What training reads, by its flags and the checkpoint: the stream of samples, held-out records, previews."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paddlenlp.trainer.trainer_utils import IntervalStrategy

from sd.data.filters.rows import RowFilter
from sd.data.images.resize import EARLIER_RESIZER, RESIZER
from sd.data.parts.filelist import read_file_list
from sd.data.parts.moments import Manifest
from sd.data.streaming.bucketing import Bucketing
from sd.data.streaming.buckets import BucketTable
from sd.data.streaming.caption_draw import check_sources
from sd.data.streaming.captions import by_source, describe_truncation, sample_records
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.dataset import TextImagePair, collate, raise_if_failed
from sd.data.streaming.eval_pairs import EvalPairs
from sd.data.streaming.options import StreamOptions
from sd.diffusion.model import StableDiffusionModel
from sd.errors import InputError
from sd.flags.arguments import SDDataArguments, SDModelArguments
from sd.flags.training import SDTrainingArguments
from sd.models.loading import side_multiple
from sd.runs.checkpoint import read_json
from sd.runs.settings import checkpoint_settings
from sd.runs.skipped import SkippedSamples, gaps_of
from sd.sampling.prompts import read_prompts
from sd.training.previews import COUNT as PREVIEW_COUNT
from sd.training.previews import Previews

logger = logging.getLogger(__name__)


def file_lists(data_args: SDDataArguments) -> list[str]:
    """The lists that are read: of training, and of validation if there is one."""
    return list(filter(None, (data_args.file_list, data_args.eval_file_list)))


def num_machines(training_args: SDTrainingArguments) -> int:
    """Machines of the run, by what the launcher says of this one."""
    return max(
        1, training_args.dataset_world_size // int(os.environ.get("PADDLE_LOCAL_SIZE") or training_args.world_size)
    )


def stream_options(
    model_args: SDModelArguments,
    data_args: SDDataArguments,
    training_args: SDTrainingArguments,
    checkpoint: str | Path | None = None,
    skipped: Sequence[SkippedSamples] = (),
) -> StreamOptions:
    """The options of the endless stream of samples, from where the checkpoint stands, without the skipped ones; `draw`
    is the model's to fill in. Raises InputError where the flags are not those of the checkpoint."""
    state = read_json(checkpoint, "data_state.json") if checkpoint else {}
    earlier = checkpoint is not None and checkpoint_settings(checkpoint).get("resizer") == EARLIER_RESIZER
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
    machines = num_machines(training_args)
    batch_size = training_args.per_device_train_batch_size
    # With a lane for each machine, a part is fetched and unpacked by one machine, whatever ranks and workers it has.
    deal_size = batch_size if data_args.data_lanes else batch_size * training_args.dataset_world_size // machines
    return StreamOptions(
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
        resizer=EARLIER_RESIZER if earlier else RESIZER,
        caption_dropout=data_args.caption_dropout,
        max_bad_fraction=data_args.max_bad_fraction,
        cache_bytes=data_args.data_cache_bytes,
        enlarge=data_args.enlarge,
        data_filter=data_args.data_filter,
        captions=data_args.caption_flags,
        buckets=bucket_table(model_args, data_args),
        group_size=group_size or data_args.aspect_group_size,
    )


def make_dataset(model: StableDiffusionModel, catalog: Catalog, options: StreamOptions) -> TextImagePair:
    """The stream of samples for a model. catalog: that of the same options."""
    draw = model.draws(options.resolution, None if options.buckets is None else options.buckets.sizes)
    return TextImagePair(catalog, model.tokenize, replace(options, draw=draw))


def bucket_table(model_args: SDModelArguments, data_args: SDDataArguments) -> BucketTable | None:
    """The table of --aspect_buckets for these models; None for squares."""
    if data_args.aspect_buckets is None:
        return None
    return BucketTable.from_flag(data_args.aspect_buckets, data_args.resolution, side_multiple(model_args))


def used_buckets(catalog: Catalog) -> BucketTable | None:
    """The buckets that training draws from; None for squares."""
    return None if catalog.bucket_rows is None else catalog.bucket_rows.used


def log_buckets(catalog: Catalog) -> None:
    """Log the rows of each bucket, and which buckets are merged or empty."""
    if catalog.bucket_rows is not None:
        for line in catalog.bucket_rows.lines():
            logger.info("%s", line)
        logger.info("groups of %d samples of one bucket", catalog.bucket_rows.bucketing.group_size)


def check_captions(model: StableDiffusionModel, data_args: SDDataArguments, catalog: Catalog) -> None:
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


def check_tags(data_args: SDDataArguments, manifest: Manifest | None) -> None:
    """Raise InputError where tags are to be shuffled, but the list has the states of texts that were encoded before."""
    if data_args.shuffle_tags is not None and manifest is not None and manifest.has_text:
        raise InputError(
            f"--shuffle_tags {data_args.shuffle_tags}, but {data_args.file_list} has the texts' states, in which the "
            "tags have their order; cache without --cache_text"
        )


def make_eval_catalog(data_args: SDDataArguments, buckets: BucketTable | None) -> Catalog | None:
    """The held-out rows in training's buckets, if --eval_file_list is given.

    They are filtered as training's rows are, unless the list names filters of its own.
    """
    path = data_args.eval_file_list
    if path is None:
        return None
    chosen = None
    if data_args.data_filter is not None and not any(source.filter for source in read_file_list(path)):
        chosen = RowFilter(
            data_args.data_filter, f"{path} (--eval_file_list; a `where` of its own takes the place of --data_filter)"
        )
    return Catalog(
        path,
        data_args.resolution,
        enlarge=data_args.enlarge,
        data_filter=chosen,
        bucketing=None if buckets is None else Bucketing(buckets, 1, data_args.enlarge),
    )


def _eval_pairs(model, data_args, training_args, catalog, resizer, limit):
    bucketing = catalog.bucketing
    return EvalPairs(
        catalog,
        model.tokenize,
        draw=model.draws(data_args.resolution, None if bucketing is None else bucketing.table.sizes),
        seed=training_args.seed,
        interpolation=data_args.interpolation,
        resizer=resizer,
        limit=limit,
    )


def make_eval_dataset(
    model: StableDiffusionModel,
    data_args: SDDataArguments,
    training_args: SDTrainingArguments,
    catalog: Catalog | None,
    resizer: str = RESIZER,
) -> EvalPairs | None:
    """The held-out records, and validation every eval_steps; catalog: of `make_eval_catalog`."""
    if catalog is None:
        training_args.evaluation_strategy = IntervalStrategy.NO
        return None
    training_args.evaluation_strategy = IntervalStrategy.STEPS
    training_args.eval_steps = training_args.eval_steps or training_args.save_steps
    limit = training_args.max_evaluate_steps * training_args.per_device_eval_batch_size
    return _eval_pairs(model, data_args, training_args, catalog, resizer, limit if limit > 0 else None)


def make_previews(
    model: StableDiffusionModel,
    model_args: SDModelArguments,
    data_args: SDDataArguments,
    training_args: SDTrainingArguments,
    catalog: Catalog,
    resizer: str = RESIZER,
) -> Previews | None:
    """What is drawn while training, on rank 0 alone: the first records of the file list and the user's prompts."""
    path = training_args.validation_prompts
    prompts = read_prompts(path, flag="validation_prompts") if path else []
    enabled = training_args.image_logging_steps > 0 and "visualdl" in training_args.report_to
    if training_args.process_index != 0 or not enabled:
        return None
    pairs = _eval_pairs(model, data_args, training_args, catalog, resizer, PREVIEW_COUNT)
    records = [collate([pairs[index]]) for index in range(len(pairs))]
    for record in records:
        raise_if_failed(record)
    square, used = (data_args.resolution, data_args.resolution), used_buckets(catalog)
    return Previews(
        records,
        [pairs.caption(index) for index in range(len(pairs))],
        prompts,
        sizes=[pairs.size(index) or square for index in range(len(pairs))],
        prompt_sizes=[square] if used is None else used.spread(),
        num_inference_steps=model_args.num_inference_steps,
    )
