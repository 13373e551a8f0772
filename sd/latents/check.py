"""`--check N`: rows of a finished cache, decoded by the VAE and held against the images they were made of.

The way from image to latents is written out here once more, apart from the one that made the cache: a mistake there
shall not hide itself.
"""

import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import paddle
from tqdm import tqdm

from sd.data.parts import storage
from sd.data.parts.moments import Manifest, decode_payload
from sd.data.parts.part import load_index
from sd.data.parts.record import RowError, clean_caption, decode_row
from sd.data.streaming.buckets import BucketTable
from sd.data.streaming.local_copies import LocalCopies
from sd.errors import RunError
from sd.latents.decode import crop_record, part_key
from sd.latents.models import Encoders
from sd.sampling.grid import labelled_table

# What rounding to float16 and another device's arithmetic leave is far below these; what a mistake makes is far above.
_MEAN_SHARE = 0.05  # of the latents' own deviation
_LOG_VARIANCE = 0.25
_TEXT_SHARE = 0.05
_PICTURE_SHARE, _PICTURE_LEVELS = 0.25, 1.0  # of the VAE's own error, and of 255


@dataclass
class Comparison:
    """A row's picture, that of its cached latents, and what is wrong with them, "" if nothing. uint8 [H,W,3]."""

    name: str
    caption: str
    image: np.ndarray
    decoded: np.ndarray
    vae_error: float  # root mean square, in levels of 255, of the VAE's own picture
    wrong: str

    @property
    def line(self) -> str:
        decoded, own = psnr(deviation(self.decoded, self.image)), psnr(self.vae_error)
        return f"{self.name}: PSNR {decoded:.1f} dB, the VAE's own {own:.1f} dB" + (": wrong" if self.wrong else "")


def deviation(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square difference."""
    return float(np.sqrt(np.mean(np.square(one.astype(np.float64) - other))))


def psnr(levels: float) -> float:
    """Peak signal-to-noise ratio in dB of an error in levels of 255; 99 at most."""
    return min(99.0, 20 * np.log10(255 / max(levels, 1e-9)))


def check_cache(tasks: Sequence, manifest: Manifest, encoders: Encoders) -> None:
    """Compare --check rows spread over the parts, print a line for each, write `check.png`.

    Raises RunError, after the picture is written, if a row differs by more than the VAE's own error explains, or the
    VAE cannot show these images at all.
    """
    options = encoders.options
    rows = _spread(tasks, manifest, options.check)
    comparisons = []
    for number, (task, row) in enumerate(tqdm(rows, desc="checking", unit=" rows", leave=False)):
        comparisons.append(_compare(task, row, number % manifest.num_variants, encoders, manifest.decodes_by))
    picture = storage.join(options.output_path, "check.png")
    storage.write_atomic(picture, _sheet(comparisons))
    for comparison in comparisons:
        print(comparison.line)
    print(f"cached latents beside their images: {picture}")
    wrong = [comparison for comparison in comparisons if comparison.wrong]
    if wrong:
        raise RunError(
            f"{len(wrong)} of {len(comparisons)} rows of the cache are not what the VAE makes of their images; the "
            f"first: {wrong[0].name}: {wrong[0].wrong}; see {picture}, and make the cache again"
        )
    errors = np.sqrt(np.mean([np.square(comparison.vae_error) for comparison in comparisons]))
    if errors >= (grey := np.std(np.concatenate([comparison.image.ravel() for comparison in comparisons]))):
        raise RunError(
            f"the VAE shows these images worse ({psnr(errors):.1f} dB) than a plain grey would ({psnr(grey):.1f} dB); "
            f"see {picture}: is it the VAE that its configuration describes?"
        )


def _spread(tasks, manifest, count):
    """(Task, row) of up to `count` good rows, evenly spread."""
    table = BucketTable(manifest.sizes)
    indexes = [load_index(task.path) for task in tasks]
    good = [np.flatnonzero(table.exact(index.widths, index.heights) >= 0) for index in indexes]
    ends = np.cumsum([len(rows) for rows in good])
    chosen = np.unique(np.linspace(0, ends[-1] - 1, min(count, ends[-1])).astype(int))
    parts = np.searchsorted(ends, chosen, side="right")
    return [(tasks[part], int(good[part][at - ends[part]])) for part, at in zip(parts, chosen, strict=True)]


def _read(path, row, options):
    """(Record of a row, its part's index)."""
    index = load_index(path)
    with closing(LocalCopies(options.data_cache_bytes).open(path, index)) as reader:
        return decode_row(reader.read(row)), index


def _bucket_size(task, row, options):
    if options.sizes is None:
        return None
    index = load_index(task.path)
    return int(index.widths[row]), int(index.heights[row])


@paddle.no_grad()
def _compare(task, row, variant, encoders, resizer):
    options, vae = encoders.options, encoders.vae
    crop, flipped = divmod(variant, 2) if options.flip else (variant, 0)
    try:
        source, index = _read(task.source, row, options)
        size = _bucket_size(task, row, options)
        pixels = crop_record(source, part_key(index), row, options, size, resizer)[crop]
    except RowError as error:
        raise RunError(f"{task.source} row {row + 1} can no longer be read ({error}); bring the images back") from error
    pixels = np.ascontiguousarray(pixels[:, :, ::-1] if flipped else pixels)
    posterior = vae.encode(paddle.to_tensor(pixels[None].astype(np.float32)) / 127.5 - 1).latent_dist
    mean, logvar = (half.numpy()[0] for half in (posterior.mean, posterior.logvar))
    image, direct = pixels.transpose(1, 2, 0), _decoded(vae, mean)
    name = f"{storage.base_name(task.path)} row {row + 1} crop {crop + 1}{' flipped' if flipped else ''}"
    vae_error = deviation(direct, image)
    try:
        cached, _ = _read(task.path, row, options)
        moments, states = decode_payload(cached.image)
        cached_mean, cached_logvar = np.split(moments[variant].astype(np.float32), 2)
    except (RowError, IndexError) as error:
        return Comparison(name, source.captions[0], image, np.full_like(image, 128), vae_error, str(error))
    decoded = _decoded(vae, cached_mean)
    wrong = [
        _describe_excess(
            "the picture", deviation(decoded, direct), _PICTURE_LEVELS + _PICTURE_SHARE * vae_error, "levels"
        ),
        _describe_excess(
            "the latents", deviation(cached_mean, mean) / (mean.std() + 1e-6), _MEAN_SHARE, "of their deviation"
        ),
        _describe_excess("the log-variance", deviation(cached_logvar, logvar), _LOG_VARIANCE, ""),
    ]
    if cached.captions != tuple(map(clean_caption, source.captions)):
        wrong.append(f"the caption is {cached.captions[0]!r}, the image's {source.captions[0]!r}")
    elif options.cache_text and states is None:
        wrong.append("the text states are missing")
    elif states is not None:
        direct_states = encoders.text_states(source.captions)
        share = deviation(states, direct_states) / (direct_states.std() + 1e-6)
        wrong.append(_describe_excess("the text states", share, _TEXT_SHARE, "of their deviation"))
    return Comparison(name, source.captions[0], image, decoded, vae_error, ", ".join(filter(None, wrong)))


def _describe_excess(quantity, difference, limit, unit):
    if difference <= limit:
        return ""
    return f"{quantity} differs by {difference:.3g} {unit}".strip() + f", at most {limit:.3g} is explained"


def _decoded(vae, mean):
    """The VAE's picture of a latent that is not scaled: float32 [C,h,w] -> uint8 [H,W,3]."""
    picture = vae.decode(paddle.to_tensor(mean[None])).sample[0].numpy()
    return np.clip((picture.transpose(1, 2, 0) + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)


def _sheet(comparisons):
    def difference(comparison):
        signed = comparison.decoded.astype(np.int32) - comparison.image
        return np.clip(128 + 4 * signed, 0, 255).astype(np.uint8)

    sheet = labelled_table(
        [[comparison.image, comparison.decoded, difference(comparison)] for comparison in comparisons],
        row_labels=[comparison.line for comparison in comparisons],
        column_labels=["image", "from the cache", "difference x 4"],
        captions=[[comparison.caption, "", ""] for comparison in comparisons],
    )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
