"""Look at a data set before training on it: `python -m sd.data.inspect FILE_LIST`.

Prints what the parts hold, how large the images and how long the captions are and which rows are bad, and writes a
contact sheet of random samples as the model will see them; with a filter, a second one of what it leaves out, and how
many rows each of its clauses removes. Of a cache of latents it prints what made it and how the
latents are distributed; pictures of it draws `precompute_latents.py --check`.
"""

import sys

if __name__ == "__main__":  # before the imports, so that a wrong Python gets one line
    from sd.entry import inspect

    inspect()
    sys.exit()

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sd.data.findings import contact_sheet, read_rows, read_sizes, report
from sd.data.inspect_options import InspectOptions
from sd.data.parts.moments import Manifest, find_manifest
from sd.data.streaming.captions import describe_truncation
from sd.data.streaming.catalog import Catalog
from sd.data.timing import report as timing_report
from sd.data.timing import time_samples
from sd.errors import RunError
from sd.flags.idle import idle_flags
from sd.flags.options import parse
from sd.home import ensure_writable_home

_RESOLUTION = 256  # train.sh's
_ROWS_TIMED = 512


def load_tokenizer(name: str) -> Any:
    """The tokenizer that training would use; only here the libraries are imported."""
    from sd.logs import import_quietly

    import_quietly()
    from sd.models.loading import load_component

    return load_component("tokenizer", name)


def _timing(catalog, options):
    """The lines of --time."""
    tokenize = None
    if options.tokenizer_name:
        from sd.models import encoders

        tokenizer = load_tokenizer(options.tokenizer_name)
        tokenize = partial(encoders.tokenize, tokenizer, max_length=options.model_max_length)
    rows = min(options.rows or catalog.num_usable, _ROWS_TIMED)
    seconds, count = time_samples(catalog, rows, options.interpolation, tokenize)
    return timing_report(seconds, count, tokenize is not None)


def _note_idle(options: InspectOptions, manifest: Manifest | None) -> None:
    """A line on standard error for each flag without an effect."""
    drawing = "samples output caption_dropout seed"
    on_images = options.time or manifest is None
    rules = [
        (not options.time, drawing, "with --time, which draws nothing"),
        (on_images, drawing, "on a cache of latents; precompute_latents.py --check compares pictures"),
        (on_images, "interpolation enlarge", "on a cache of latents"),
    ]
    for line in idle_flags(options, rules):
        print(f"note: {line}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the flags, look, print, draw."""
    description = (__doc__ or "").split("\n\n")[1]
    options = parse(InspectOptions, arguments, prog="python -m sd.data.inspect", description=description)
    ensure_writable_home(os.environ)
    manifest = find_manifest(options.file_list)
    _note_idle(options, manifest)
    resolution = options.resolution or (manifest.resolution if manifest else _RESOLUTION)

    def look(side: int = resolution, left_out: bool = False, whole: bool = False) -> Catalog:
        return Catalog(
            options.file_list,
            side,
            max_bad_fraction=1.0,
            may_be_unusable=True,
            data_filter=options.data_filter,
            enlarge=options.enlarge,
            left_out=left_out,
            bucketing=None if whole else bucketing,
        )

    bucketing = options.bucketing(resolution, manifest)
    catalog = look()
    if options.time and catalog.num_usable:
        print("\n".join(_timing(catalog, options)))
        return
    readable = catalog
    too_small = not catalog.filtering.num_large
    if not catalog.num_usable:
        reason = f"is usable at {resolution} px" if too_small else "passes the filter"
        print(f"no row {reason}, so training would refuse the list; this is in it:")
        readable = look(1, whole=True) if too_small else look(left_out=True)
    findings = read_rows(readable, options, whole=too_small)
    print("\n".join(report(catalog, read_sizes(catalog), findings)))
    tokenizer = load_tokenizer(options.tokenizer_name) if options.tokenizer_name else None
    for line in describe_truncation(findings.captions, options.model_max_length, tokenizer):
        print(line + ("" if tokenizer else " (CLIP's words counted; --tokenizer_name NAME counts its tokens)"))
    output = Path(options.output)
    left_out_path = output.with_name(f"{output.stem}_left_out{output.suffix}")
    _write_sheet(
        findings.samples, "contact sheet", left_out_path if readable is not catalog and not too_small else output
    )
    if catalog.filtering.removed and readable is catalog and catalog.manifest is None:
        others = look(left_out=True)
        samples = read_rows(others, replace(options, rows=options.samples)).samples if others.num_usable else []
        _write_sheet(samples, "contact sheet of what the filter leaves out", left_out_path)


def _write_sheet(samples, title, path):
    if not samples:
        return
    try:
        contact_sheet(samples).save(path, "PNG")
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    print(f"{title}: {path}")
