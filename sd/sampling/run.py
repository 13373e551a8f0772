"""eval.py's work: flags -> models, jobs, pictures, grid."""

import logging
from dataclasses import replace
from pathlib import Path

from sd import devices
from sd.sampling.compare import find_columns
from sd.sampling.files import make_folder, read_pixels, slug, write_png
from sd.sampling.grid import labelled_sheet, labelled_table
from sd.sampling.job import Job, draw, settings_from, warn_truncated_prompts
from sd.sampling.models import load_models
from sd.sampling.options import SampleOptions
from sd.sampling.processes import Source, draw_shared

logger = logging.getLogger(__name__)

_GRID_PICTURES = 400
_GRID_COLUMNS = 12


def run(flags: SampleOptions) -> None:
    """Draw what the flags ask for. Raises InputError or RunError."""
    prompts = flags.read_prompts()
    selected = devices.select(flags.device, flags.dtype)
    logger.info("device: %s; precision %s", devices.describe(selected), flags.dtype)
    device = selected.kind
    if flags.compare:
        _compare(flags, prompts, device)
    else:
        _draw(flags, prompts, device)


def _output_paths(output, count):
    """(folder of the pictures, file of the grid, file of a single picture or None)."""
    output = Path(output or "eval_output")
    if output.suffix.lower() != ".png":
        return make_folder(output), output / "grid.png", None
    make_folder(output.parent)
    if count == 1:
        return output.parent, None, output
    return make_folder(output.with_suffix("")), output, None


def _jobs(flags, prompts, folder, single=None):
    """Each prompt's pictures in turn. Every prompt starts from the same noise: the words make the difference."""
    digits = len(str(len(prompts) - 1))
    return [
        Job(prompt, flags.seed + k, single or folder / f"{number:0{digits}d}-{slug(prompt)}-{flags.seed + k}.png")
        for number, prompt in enumerate(prompts)
        for k in range(flags.num_images)
    ]


def _title(label, settings, guidance_scales):
    """A line over the grid; a guidance scale that differs from column to column stands above each instead."""
    guidance = f", guidance {settings.guidance_scale:g}" if len(guidance_scales) == 1 else ""
    without = f", without {settings.negative_prompt!r}" if settings.negative_prompt else ""
    sampler = f"{settings.scheduler}, {settings.num_inference_steps} steps{guidance}{without}"
    return f"{label}: {settings.width} x {settings.height}, {sampler}"


def _draw_jobs(processes, source, models, jobs, settings):
    """By this process, or by several that load the models of the source."""
    if processes == 1:
        draw(models, jobs, settings)
    else:
        draw_shared(source, models, jobs, settings, processes)


def _draw(flags, prompts, device):
    source = Source.of(flags, flags.unet, flags.variant)
    models = load_models(**dict(source.models))
    settings = settings_from(flags, models, device)
    folder, grid, single = _output_paths(flags.output, len(prompts) * flags.num_images)
    warn_truncated_prompts(models.tokenizer, prompts)
    jobs = _jobs(flags, prompts, folder, single)
    _draw_jobs(flags.processes, source, models, jobs, settings)
    if len(jobs) == 1:
        print(f"picture: {jobs[0].path}")
        return
    grid = grid or folder / "grid.png"
    grid_jobs = jobs[:_GRID_PICTURES]
    captions = [job.prompt if flags.num_images == 1 else f"{job.prompt} (seed {job.seed})" for job in grid_jobs]
    images = [read_pixels(job.path) for job in grid_jobs]
    each = flags.num_images  # the pictures of a prompt stay side by side
    columns = each * (_GRID_COLUMNS // each) if 1 < each <= _GRID_COLUMNS else None
    write_png(
        grid,
        labelled_sheet(
            images, captions, title=_title(models.label, settings, {settings.guidance_scale}), columns=columns
        ),
    )
    print(f"{len(jobs)} pictures: {folder}\ngrid: {grid}")


def _compare(flags, prompts, device):
    columns = find_columns(flags.compare, flags.unet, flags.variant, flags.guidance_scale)
    pictures, models = [], None
    for number, column in enumerate(columns):
        source = Source.of(flags, column.unet, column.variant)
        models = load_models(**dict(source.models), shared=models)
        settings = replace(settings_from(flags, models, device), guidance_scale=column.guidance_scale)
        if number == 0:
            folder, grid, _ = _output_paths(flags.output, 2)
            warn_truncated_prompts(models.tokenizer, prompts)
            title = _title("same prompts and noise", settings, {column.guidance_scale for column in columns})
        jobs = _jobs(flags, prompts, make_folder(folder / f"{number}-{slug(column.label)}"))
        print(f"{number + 1} of {len(columns)}: {column.label}", flush=True)
        _draw_jobs(flags.processes, source, models, jobs, settings)
        pictures.append([read_pixels(job.path) for job in jobs[: _GRID_PICTURES // len(columns)]])
    labels = [job.prompt if flags.num_images == 1 else f"{job.prompt} (seed {job.seed})" for job in jobs]
    rows = [list(row) for row in zip(*pictures, strict=True)]
    sheet = labelled_table(rows, labels[: len(rows)], [column.label for column in columns], title=title)
    write_png(grid, sheet)
    print(f"pictures: {folder}\ngrid: {grid}")
