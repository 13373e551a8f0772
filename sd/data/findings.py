"""What a look at some rows of a data set finds, as lines and as a contact sheet."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from sd.data.column_report import column_lines
from sd.data.distribution import histogram, summary_of
from sd.data.images.decode import decode
from sd.data.images.open import open_image
from sd.data.inspect_options import InspectOptions
from sd.data.parts import storage
from sd.data.parts.index import PartError
from sd.data.parts.moments import Manifest, decode_payload
from sd.data.parts.part import load_index
from sd.data.parts.record import RowError
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.local_copies import LocalCopies
from sd.data.streaming.order import CAPTION, CROP, rng
from sd.data.streaming.sample import Framing, choose_caption
from sd.data.streaming.stream import RowReader
from sd.fonts import font_for
from sd.processes.watchdog import Watchdog
from sd.text_layout import fit_line

SIDES = (0, 1, 64, 128, 256, 384, 512, 768, 1024, 2048)
CAPTION_LENGTHS = (0, 1, 20, 50, 100, 200, 400)
_INDEXES_READ = 1000
_BAD_NAMED = 20
_TILE, _LABEL = 160, 30


@dataclass
class Findings:
    """Statistics of the rows that were read: caption lengths in characters, bad rows by name, samples for the sheet."""

    num_read: int = 0
    caption_lengths: list = field(default_factory=list)
    captions: dict = field(default_factory=dict)  # source -> its captions
    rows_with: Counter = field(default_factory=Counter)  # rows that have a caption of a source
    captions_per_row: Counter = field(default_factory=Counter)
    bad: list = field(default_factory=list)
    samples: list = field(default_factory=list)
    latents: list = field(default_factory=list)  # of cached rows: sums of mean, mean squared and variance, and numbers


def read_sizes(catalog: Catalog) -> tuple[np.ndarray, ...]:
    """Widths, heights and stored bytes of the rows of up to _INDEXES_READ parts, spread over the list."""
    count = min(_INDEXES_READ, len(catalog.paths))
    widths, heights, num_bytes = [], [], []
    for part in tqdm(np.linspace(0, len(catalog.paths) - 1, count).astype(int), desc="indexes", leave=False):
        try:
            index = load_index(catalog.paths[part])
        except PartError:  # the catalog has counted and named it
            continue
        widths.append(index.widths)
        heights.append(index.heights)
        num_bytes.append(index.lengths)
    return tuple(np.concatenate(column) if column else np.zeros(0, int) for column in (widths, heights, num_bytes))


def read_rows(catalog: Catalog, options: InspectOptions, whole: bool = False) -> Findings:
    """Read and decode `rows` usable rows (0: all) spread over the list; cut samples for the sheet from random ones.

    whole: samples are whole pictures, not crops as in training.
    """
    findings, seed, framing = Findings(), options.seed, Framing.of(catalog, options.interpolation)
    count = options.rows or catalog.num_usable
    rows = np.unique(np.linspace(0, catalog.num_usable - 1, min(count, catalog.num_usable)).astype(int))
    chosen = set(rng(seed, CROP).permutation(rows)[: options.samples].tolist())
    reader = RowReader(catalog, LocalCopies(), Watchdog())
    for row in tqdm(rows.tolist(), desc="rows", leave=False):
        part, ordinal = catalog.position(row)
        bucket = catalog.bucket_rows.bucket(part, ordinal) if catalog.bucket_rows else None
        findings.num_read += 1
        row_number = None
        try:
            row_number, record = reader.read(part, ordinal)
            if catalog.manifest is not None:
                _moments(record, findings)
            elif whole:
                picture = decode(open_image(record.image))
            else:
                picture = framing.decode(record.image, bucket)
        except RowError as error:
            at = getattr(error, "row", row_number)
            name = storage.base_name(catalog.paths[part]) if at is None else catalog.name(part, at)
            findings.bad.append(f"{name}: {error}")
            continue
        for source, caption in zip(record.sources, record.captions, strict=True):
            findings.captions.setdefault(source, []).append(caption)
        findings.rows_with.update({*record.sources})
        findings.caption_lengths += [len(caption) for caption in record.captions]
        findings.captions_per_row[len(record.captions)] += 1
        if row in chosen and catalog.manifest is None:
            caption = choose_caption(record.captions, options.caption_dropout, rng(seed, CAPTION, row))
            pixels = picture.array().transpose(2, 0, 1) if whole else framing.cut(picture, bucket, rng(seed, CROP, row))
            findings.samples.append((pixels, caption, catalog.name(part, row_number)))
    reader.close()
    return findings


def _moments(record, findings):
    moments, _ = decode_payload(record.image)
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=1)
    findings.latents.append((mean.sum(), np.square(mean).sum(), np.exp(logvar).sum(), mean.size))


def contact_sheet(samples: Sequence[Any]) -> Image.Image:
    """One picture of uint8 [3,H,W] samples with caption and name below each."""
    columns = max(1, int(np.ceil(np.sqrt(len(samples)))))
    lines = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * _TILE, lines * (_TILE + _LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (pixels, caption, name) in enumerate(samples):
        x, y = number % columns * _TILE, number // columns * (_TILE + _LABEL)
        tile = Image.fromarray(pixels.transpose(1, 2, 0))
        sheet.paste(ImageOps.contain(tile, (_TILE - 4, _TILE - 4), Image.Resampling.LANCZOS), (x + 2, y + 2))
        for line, text in enumerate((caption or "(caption dropped or empty)", name)):
            font = font_for(text, 10)
            line_text = fit_line(text, font, _TILE - 4)
            pen.text((x + 2, y + _TILE + 13 * line), line_text, "black" if line == 0 else "gray", font)
    return sheet


def report(catalog: Catalog, sizes: Sequence[np.ndarray], findings: Findings) -> list[str]:
    """The lines that the command prints."""
    widths, heights, num_bytes = sizes
    short = np.minimum(widths, heights)
    lost = f", about {catalog.num_lost} rows lost with damaged parts" if catalog.num_lost else ""
    usable = catalog.num_usable / max(1, catalog.num_rows)
    lines = [
        f"{catalog.file_list}: {catalog.num_parts} parts, {catalog.num_rows} rows{lost}",
        f"fingerprint {catalog.fingerprint}, weights {', '.join(f'{weight:g}' for weight in catalog.weights)}",
        f"usable at {catalog.resolution} px: {catalog.num_usable} ({usable:.1%})",
        *(catalog.bucket_rows.lines() if catalog.bucket_rows else ()),
        f"stored bytes a row: {summary_of(num_bytes, 'bytes')}",
        "short side in pixels (0: unreadable)",
        *histogram(short, SIDES),
    ]
    if catalog.manifest is not None:
        lines[-len(SIDES) - 1 :] = cache_lines(catalog.manifest, findings)
    readable = short > 0
    ratio = np.maximum(widths, heights)[readable] / short[readable]
    if len(ratio) and catalog.manifest is None:
        lines.append(f"long to short side: median {np.median(ratio):.2f}, largest {ratio.max():.2f}")
    lines.append(f"rows read and decoded: {findings.num_read}, bad: {len(findings.bad)}")
    lines += [f"    {name}" for name in findings.bad[:_BAD_NAMED]]
    lines += [f"    and {len(findings.bad) - _BAD_NAMED} more"] * (len(findings.bad) > _BAD_NAMED)
    if findings.caption_lengths:
        several = sum(count for number, count in findings.captions_per_row.items() if number > 1)
        lines.append(
            f"caption length: {summary_of(findings.caption_lengths, 'characters')}; {several} rows with several"
        )
        lines += histogram(findings.caption_lengths, CAPTION_LENGTHS)
    if len(findings.captions) > 1:
        lines += [f"captions by name ({findings.num_read - len(findings.bad)} rows)"]
        for source, texts in findings.captions.items():
            lengths = summary_of(list(map(len, texts)), "characters")
            lines.append(f"    {source}: {findings.rows_with[source]} rows, {len(texts)} captions, {lengths}")
    lines += catalog.filtering.lines() + column_lines(catalog)
    lines += [f"damaged: {reason}" for reason in list(catalog.damage.values())[:_BAD_NAMED]]
    lines += [f"    and {len(catalog.damage) - _BAD_NAMED} more"] * (len(catalog.damage) > _BAD_NAMED)
    return lines


def cache_lines(manifest: Manifest, findings: Findings) -> list[str]:
    """Lines about a cache of latents: its settings, and the distribution of the latents that training will see."""
    text = f"text states of {manifest.model_max_length} tokens" if manifest.has_text else "no text states"
    channels, height, width = manifest.latent_shape
    lines = [
        f"a cache of latents, {channels} x {height} x {width} of {manifest.resolution} px, {text}",
        f"a row holds {manifest.num_variants}: --crop {manifest.crop} --num_crops {manifest.num_crops}"
        + (" --flip" if manifest.flip else "")
        + (" --enlarge" if manifest.enlarge else "")
        + f", {manifest.interpolation}, seed {manifest.seed}",
        f"cache {manifest.id}, VAE {manifest.vae_hash[:12]}, scaling factor {manifest.scaling_factor:g}"
        + (f", pictures resized by {manifest.resizer}" if manifest.resizer else ""),
    ]
    if findings.latents:
        total, squares, variances, count = np.sum(findings.latents, axis=0)
        mean, scale = total / count, manifest.scaling_factor
        deviation = np.sqrt(squares / count - mean * mean + variances / count)
        lines.append(
            f"latents as trained on: mean {mean * scale:.3f}, deviation {deviation * scale:.3f} (1 is meant), of which "
            f"the posterior's own {np.sqrt(variances / count) * scale:.3f}"
        )
    return lines
