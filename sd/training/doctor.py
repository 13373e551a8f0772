"""Preflight check of a long run: `python -m sd.doctor` with the flags of the training command.

Takes a few real steps with growing batches and reads a few real batches; output_dir is left alone.
"""

import copy
import itertools
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd import devices, runtime
from sd.errors import InputError, RunError, as_typed, explain_paddle_errors, is_out_of_memory
from sd.flags.arguments import SDDataArguments, SDModelArguments
from sd.flags.command_line import check_early, parse_arguments
from sd.flags.files import expand
from sd.flags.help import training_help
from sd.logs import import_quietly, set_up_logging
from sd.training.start_report import answer, existing_folder, report_resume, report_start

if TYPE_CHECKING:
    from sd.flags.training import SDTrainingArguments

GIB = 2**30
TIMED_STEPS = 2
HEADROOM = 0.6
PATIENCE_SECONDS = 30
READ_SECONDS = 5


def main(argv: list[str] | None = None) -> None:
    """Print a line for each question, and end with exit code 1 if the run would not get through.

    argv: the flags of the training command; by default those of this process.
    """
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(training_help(Path(sys.argv[0]).name, argv, os.environ))
        return
    device = devices.requested(expand(argv, {"device": False}))
    devices.check_flags(device)
    check_early(argv)
    runtime.prepare(device)
    set_up_logging()
    import_quietly()
    arguments = parse_arguments(argv)
    problems = sum(examine(*arguments))
    print(f"\n{problems} problem(s)" if problems else "\nready")
    sys.exit(min(problems, 1))


def examine(model_args: SDModelArguments, data_args: SDDataArguments, training_args: "SDTrainingArguments") -> Any:
    """Yield for each question whether its answer is a problem, after printing it."""
    from sd.diffusion.model import StableDiffusionModel
    from sd.latents.fit import cached_components, check_fit
    from sd.versions import mismatches

    wrong = mismatches()
    text = ", ".join(f"{name} {installed or 'missing'} (needed {pinned})" for name, installed, pinned in wrong)
    yield answer("versions", f"as pinned, Python {sys.version.split()[0]}" if not wrong else text, bad=bool(wrong))
    device = devices.current()
    yield answer("device", devices.describe(device))
    total_memory = devices.memory_bytes(device)
    manifest = find_cache(data_args.file_list)
    try:
        if manifest:
            check_fit(data_args.file_list, model_args, data_args)
            yield answer("cache", f"{manifest.path} fits, {manifest.num_variants} variant(s) of a picture")
        model = StableDiffusionModel.from_arguments(model_args, data_args.resolution, cached_components(manifest))
    except InputError as error:
        yield answer("models", as_typed(error), bad=True)
        return
    text = ", ".join(f"{component} {millions(model, component):.1f} M" for component in ("unet", "vae", "text_encoder"))
    left_out = ", ".join(model.deferred)
    yield answer("models", text + (f"; not loaded for training from the cache: {left_out}" if left_out else ""))
    as_given = copy.copy(training_args)
    with tempfile.TemporaryDirectory() as folder:
        training_args.output_dir, output_dir = folder, training_args.output_dir
        peaks, seconds_per_image, full_at = measure_steps(model, data_args, training_args, total_memory)
    yield report_memory(peaks, total_memory, training_args.per_device_train_batch_size, full_at)
    if not peaks:
        return
    steps_rate = 1 / seconds_per_image
    yield answer("step", f"{seconds_per_image:.3g} s an image, {steps_rate:.3g} images/s on this device")
    if training_args.recompute:
        yield report_without_recompute(model, data_args, training_args, total_memory, steps_rate)
    is_bad, checkpoint = report_start(as_given)
    yield is_bad
    is_bad, dataset = report_data(model, data_args, as_given, checkpoint, steps_rate)
    yield is_bad
    if checkpoint and dataset is not None:
        yield report_resume(model, model_args, data_args, as_given, checkpoint, dataset)
    yield report_disk(model, training_args, output_dir)
    yield report_saving(model, training_args)


def find_cache(file_list: str) -> Any:
    """The manifest of a cache, None for images; errors in the list are reported when its data is read."""
    from sd.data.parts.moments import find_manifest

    try:
        return find_manifest(file_list)
    except InputError:
        return None


def millions(model: Any, component: str) -> float:
    """Parameters of a part of the model, in millions."""
    if component in model.deferred:
        return model.deferred[component].num_parameters / 1e6
    return sum(parameter.size for parameter in getattr(model, component).parameters()) / 1e6


def measure_steps(model: Any, data_args: SDDataArguments, training_args: "SDTrainingArguments", available: Any) -> Any:
    """Take optimizer steps on made-up batches of 1, 2, 4, ... images up to the chosen size, as long as the next fits
    into `available` bytes with room to spare.

    Returns ({batch size: peak bytes}, seconds per image at the largest, batch size that ran out of memory or None).
    """
    from sd.training.data import bucket_table
    from sd.training.memory import synthetic_batch
    from sd.training.step import StepRunner
    from sd.training.trainer import StableDiffusionTrainer

    training_args.report_to, training_args.gradient_accumulation_steps = [], 1
    trainer = StableDiffusionTrainer(model, training_args)
    trainer.create_scheduler(training_args.max_steps if training_args.max_steps > 0 else 1000)
    trainer.create_optimizer(trainer.lr_scheduler)
    trainer._load_from_checkpoint()
    model.train()
    buckets = bucket_table(model.model_args, data_args)
    largest = buckets.largest if buckets else (data_args.resolution, data_args.resolution)
    runner = StepRunner(trainer, model)
    peaks, per_image, size = {}, math.inf, 1
    while True:
        seconds = []
        try:
            batches = itertools.repeat(synthetic_batch(model, largest, size))
            for _ in range(TIMED_STEPS + 1):
                outcome = runner.run(batches)
                assert outcome is not None  # no stop signal here
                seconds.append(outcome.busy_seconds)
        except (MemoryError, RuntimeError, SystemError) as error:
            if not is_out_of_memory(error):
                raise
            return peaks, per_image, size
        peaks[size], per_image = peak_bytes(training_args.device), min(seconds[1:]) / size
        size *= 2
        if len(peaks) > 1 and (
            size > training_args.per_device_train_batch_size
            or predicted_peak(peaks, size) > HEADROOM * available
            or sum(seconds) > PATIENCE_SECONDS
        ):
            return peaks, per_image, None


def report_without_recompute(
    model: Any, data_args: SDDataArguments, training_args: "SDTrainingArguments", available: Any, images_per_second: Any
) -> Any:
    """Report the speed without recompute, and whether the activations fit into memory."""
    import paddle

    if training_args.device == "gpu":
        paddle.device.cuda.reset_max_memory_reserved()
    training_args.recompute = False
    with tempfile.TemporaryDirectory() as training_args.output_dir:
        peaks, seconds_per_image, full_at = measure_steps(model, data_args, training_args, available)
    training_args.recompute = True
    if not peaks:
        return answer("recompute", "needed: without it a single image runs out of memory")
    batch_size = training_args.per_device_train_batch_size
    fits = full_at is None and (len(peaks) < 2 or predicted_peak(peaks, batch_size) <= available)
    speed = f"{1 / seconds_per_image:.3g} images/s instead of {images_per_second:.3g} without it"
    advice = "fits too; use --recompute False" if fits else "does not fit; keep it, or take a smaller batch"
    return answer("recompute", f"{speed}, and batch {batch_size} {advice}")


def predicted_peak(peaks: Any, batch_size: int) -> Any:
    """Peak bytes at `batch_size` if every image costs what it cost between the smallest and the largest measured."""
    low, high = min(peaks), max(peaks)
    return peaks[high] + (batch_size - high) * (peaks[high] - peaks[low]) / (high - low)


def peak_bytes(device: Any) -> int:
    """The most memory used so far: of the process on a CPU, of Paddle's allocator on a GPU."""
    import resource

    import paddle

    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return paddle.device.cuda.max_memory_reserved()


def largest_batch(peaks: Any, available: Any) -> Any:
    """Largest batch whose predicted peak is within `available` bytes; 0 if not even one image fits."""
    each = max(predicted_peak(peaks, 2) - predicted_peak(peaks, 1), 1)
    return max(0, int((available - predicted_peak(peaks, 0)) // each))


def report_memory(peaks: Any, available: Any, batch_size: int, full_at: Any = None) -> bool:
    """Report the memory of the chosen batch and the largest that fits. full_at: the batch that ran out of memory."""
    if full_at is not None:
        fits = max(peaks, default=0)
        if len(peaks) > 1:
            fits = max(fits, min(largest_batch(peaks, available), full_at - 1))
        usage = f"out of memory at batch {full_at}, of {available / GIB:.1f} GiB"
    else:
        fits = largest_batch(peaks, available)
        needed = predicted_peak(peaks, batch_size)
        usage = f"about {needed / GIB:.1f} GiB at batch {batch_size}, of {available / GIB:.1f}"
    advice = "" if batch_size <= fits else "; lower --per_device_train_batch_size, or use --recompute True"
    return answer("memory", f"{usage}; largest batch that fits: about {fits}{advice}", bad=batch_size > fits)


def report_data(
    model: Any,
    data_args: SDDataArguments,
    training_args: "SDTrainingArguments",
    checkpoint: str | Path | None,
    images_per_second: float,
) -> tuple[bool, Any]:
    """Report the data and whether reading keeps up with one device's step. Returns (bad, the dataset, None if
    it cannot be read)."""
    from sd.data.streaming.dataset import collate, raise_if_failed
    from sd.training.data import (
        check_captions,
        check_tags,
        make_dataset,
        make_eval_catalog,
        stream_options,
        used_buckets,
    )
    from sd.training.setup import end_workers, make_dataloader

    try:
        options = stream_options(model.model_args, data_args, training_args, checkpoint)
        dataset = make_dataset(model, options.catalog(data_args.file_list), options)
        check_tags(data_args, dataset.catalog.manifest)
        check_captions(model, data_args, dataset.catalog)
        make_eval_catalog(data_args, used_buckets(dataset.catalog))
        if dataset.catalog.bucket_rows is not None:
            answer("buckets", "; ".join(dataset.catalog.bucket_rows.lines()))
        batches = iter(make_dataloader(dataset, collate, training_args))
        with end_workers(batches), explain_paddle_errors():
            raise_if_failed(next(batches))
            begin, read = time.perf_counter(), 0
            while time.perf_counter() - begin < READ_SECONDS:
                raise_if_failed(next(batches))
                read += training_args.per_device_train_batch_size
            rate = read / (time.perf_counter() - begin)
    except (InputError, RunError) as error:
        return answer("data", as_typed(error), bad=True), None
    filtering = "".join(f"; {line}" for line in dataset.catalog.filtering.lines())
    slow = rate < images_per_second
    advice = "; more --dataloader_num_workers, or smaller images (--resize when packing)" if slow else ""
    summary = (
        f"{dataset.num_rows} rows, {dataset.num_usable} usable at {data_args.resolution} px, {rate:.0f} images/s with "
        f"{training_args.dataloader_num_workers} workers, {rate / images_per_second:.1f} x the step{filtering}{advice}"
    )
    return answer("data", summary, bad=slow), dataset


def checkpoint_bytes(model: Any, training_args: "SDTrainingArguments") -> int:
    """Bytes of a checkpoint: float32 weights of what is trained, two AdamW moments of each, the moving average."""
    trained = sum(millions(model, component) for component in model.trained_components) * 3
    average = millions(model, "unet") if training_args.use_ema else 0
    rest = 0 if training_args.only_save_updated_model else millions(model, "vae") + millions(model, "text_encoder")
    return int((trained + average + rest) * 1e6 * 4)


def report_saving(model: Any, training_args: "SDTrainingArguments") -> bool:
    """Report whether the checkpoint copy of --save_in_background fits into host memory."""
    import psutil

    from sd.training.background import fits_in_host_memory

    needed = checkpoint_bytes(model, training_args)
    fits = fits_in_host_memory(needed)
    requested = training_args.save_in_background
    advice = (
        "--save_in_background fits" if fits else "too little for --save_in_background, training waits while it saves"
    )
    free = psutil.virtual_memory().available
    return answer(
        "saving",
        f"a copy of {needed / GIB:.2f} GiB in host memory, {free / GIB:.1f} free: {advice}",
        requested and not fits,
    )


def report_disk(model: Any, training_args: "SDTrainingArguments", output_dir: str | Path) -> bool:
    """Report the disk space of save_total_limit checkpoints and one more that is being written."""
    free, each = shutil.disk_usage(existing_folder(output_dir)).free, checkpoint_bytes(model, training_args)
    limit = training_args.save_total_limit
    num_checkpoints = limit or max(1, training_args.max_steps // training_args.save_steps)
    needed = (num_checkpoints + 1) * each
    advice = f"; use --save_total_limit {max(1, free // each - 1)}" if needed > free else ""
    return answer(
        "disk",
        f"{num_checkpoints} checkpoints of {each / GIB:.2f} GiB and one being written: {needed / GIB:.1f} GiB, "
        f"free {free / GIB:.1f}{advice}",
        bad=needed > free,
    )
