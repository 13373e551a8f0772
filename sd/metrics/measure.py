"""`eval.py --metrics`: draw a file of prompts at several guidance scales, and score them by FID, CMMD, CLIP score."""

import functools
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sd import devices
from sd.metrics.extractors import load_clip, load_fid_extractor
from sd.metrics.inputs import check_inputs
from sd.metrics.reference import reference_features, reference_statistics
from sd.metrics.report import write_report
from sd.metrics.scores import Moments, clip_scores, cmmd, frechet_distance
from sd.sampling.files import make_folder, read_pixels
from sd.sampling.job import Job, draw, settings_from, warn_truncated_prompts
from sd.sampling.options import SampleOptions
from sd.sampling.pipeline import Settings
from sd.sampling.processes import Source, loaded, run_shared

GPU_BATCH_SIZES = {"mlperf": 16, "reference": 32}  # pictures in one UNet call; those of 256 pixels are smaller
TARGETS = {"mlperf": {"fid": 90.0, "clip_score": 0.15}}
_CHUNK = 16


@dataclass(frozen=True)
class Task:
    """A few pictures of one guidance scale."""

    source: Source
    extractors: tuple[str | None, str | None]  # --fid_model, --clip_model
    settings: Settings
    jobs: tuple


def measure(options: SampleOptions, unet: str | None, variant: str | None, keep: Path | None = None) -> dict[str, Any]:
    """Draw, score and report what the options ask for, by a UNet that `load_models` takes. Returns the report.

    keep: folder of what is computed of the real pictures, by default that of the pictures. The same command resumes
    where an earlier one was cut off: pictures that are there are not drawn again.
    """
    options = options.with_preset()
    prompts = options.read_prompts()
    check_inputs(options)
    source = Source.of(options, unet, variant)
    models, weights_id = loaded(source)
    extractors = options.fid_model, options.clip_model
    fid_extractor, clip = _extractors(*extractors)
    device = devices.current()
    if device.kind == "gpu" and options.batch_size is None:
        options = replace(options, batch_size=GPU_BATCH_SIZES.get(options.preset or ""))
    settings = settings_from(options, models, device.kind)
    warn_truncated_prompts(models.tokenizer, prompts)
    output = make_folder(options.output or "eval_metrics")
    real = _real(options, fid_extractor, clip, (settings.height, settings.width), keep or output)
    if fid_extractor and (line := fid_warning(len(prompts), fid_extractor.width)):
        print(line)
    tasks = []
    for scale in options.scales:
        folder = make_folder(output / f"guidance-{scale:g}")
        jobs = [Job(prompt, options.seed + row, folder / f"{row:05d}.png") for row, prompt in enumerate(prompts)]
        tasks += _tasks(source, extractors, replace(settings, guidance_scale=scale), jobs)
    with closing(_outcomes(tasks, options.processes, source)) as outcomes:
        results = [{"guidance_scale": scale, **_score(scale, outcomes, len(prompts), real)} for scale in options.scales]
    report = {
        "model": models.label,
        "weights": weights_id,
        "prompts_file": str(options.prompts_file),
        "pictures": len(prompts),
        "settings": {name: value for name, value in asdict(settings).items() if name != "guidance_scale"},
        "seed": options.seed,
        "fid_model": fid_extractor.name if fid_extractor else None,
        "fid_reference": options.fid_reference,
        "data_filter": options.data_filter,
        "cmmd_reference": options.cmmd_reference,
        "clip_model": clip.name if clip else None,
        "results": results,
        "targets": TARGETS.get(options.preset or ""),
    }
    write_report(report, output)
    return report


def fid_warning(num_pictures: int, num_features: int) -> str:
    """The warning about an FID of no more pictures than features, whose covariance is singular; "" of more."""
    if num_pictures > num_features:
        return ""
    return (
        f"FID of {num_pictures} pictures by {num_features} features: with no more pictures than features it comes out "
        "far too high; compare it with figures of as many pictures only"
    )


def _real(options, fid_extractor, clip, size, keep):
    """What the drawn pictures are compared with: `fid` statistics and `cmmd` features, None where not asked for."""
    return {
        "fid": reference_statistics(
            options.fid_reference, fid_extractor, size, keep / "fid_reference.npz", options.data_filter
        )
        if fid_extractor
        else None,
        "cmmd": reference_features(options.cmmd_reference, clip, size, keep / "cmmd_reference.npz", options.data_filter)
        if options.cmmd_reference
        else None,
    }


@functools.lru_cache(maxsize=1)
def _extractors(fid_model, clip_model):
    return load_fid_extractor(fid_model) if fid_model else None, load_clip(clip_model) if clip_model else None


def _tasks(source, extractors, settings, jobs):
    size = max(_CHUNK, settings.batch_size)
    starts = range(0, len(jobs), size)
    return [Task(source, extractors, settings, tuple(jobs[start : start + size])) for start in starts]


def _work(task):
    """Draw a task's pictures; returns (their number, FID features, CLIP features, CLIP scores), None for no model."""
    models, weights_id = loaded(task.source)
    fid_extractor, clip = _extractors(*task.extractors)
    draw(models, task.jobs, task.settings, weights_id, quiet=True)
    images = [read_pixels(job.path) for job in task.jobs]
    features = fid_extractor.embed_images(images) if fid_extractor else None
    clip_features = scores = None
    if clip:
        clip_features = clip.embed_images(images)
        scores = clip_scores(clip_features, clip.embed_texts([job.prompt for job in task.jobs]))
    return len(images), features, clip_features, scores


def _outcomes(tasks, processes, source):
    """Yield each task's outcome in order, from one pool for all of them: a process loads its models once."""
    yield from map(_work, tasks) if processes == 1 else run_shared(_work, tasks, processes, source)


def _score(scale, outcomes, total, real):
    """The measures of the next `total` pictures, of one guidance scale: `fid`, `cmmd` and `clip_score`, None where not
    asked for. real: what `_real` returned."""
    moments = Moments(len(real["fid"][0])) if real["fid"] else None
    embedded, all_scores = [], []
    with tqdm(total=total, desc=f"guidance {scale:g}", unit="picture") as bar:
        while bar.n < total:
            count, features, clip_features, scores = next(outcomes)
            if moments:
                moments.add(features)
            if real["cmmd"] is not None:
                embedded.append(clip_features)
            if scores is not None:
                all_scores.append(scores)
            bar.update(count)
    return {
        "fid": frechet_distance(*moments.mean_and_covariance(), *real["fid"]) if moments else None,
        "cmmd": cmmd(np.concatenate(embedded), real["cmmd"]) if embedded else None,
        "clip_score": float(np.concatenate(all_scores).mean()) if all_scores else None,
    }
