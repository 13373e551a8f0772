"""Where a sample's time goes, from the file to the batch: `python -m sd.data.inspect FILE_LIST --time`."""

import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from sd.data.parts.moments import decode_payload
from sd.data.parts.part import load_index
from sd.data.parts.record import RowError, decode_row
from sd.data.streaming.catalog import Catalog
from sd.data.streaming.local_copies import LocalCopies
from sd.data.streaming.order import CROP, DRAW, rng
from sd.data.streaming.sample import Framing
from sd.data.streaming.stream import collate

STEPS = ("read", "gunzip", "base64", "decode", "resize", "tokenise", "draws", "collate", "transfer")
_BATCH = 32
_PIXELS_A_LATENT = 8
_BAR = 40


class Clock:
    """Wall-clock seconds by step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STEPS, 0.0)

    def __call__(self, step: str, work: Callable, *arguments, **options):
        """What `work` returns, its time added to the step's."""
        start = time.perf_counter()
        result = work(*arguments, **options)
        self.seconds[step] += time.perf_counter() - start
        return result


def time_samples(
    catalog: Catalog, num_samples: int, interpolation: str, tokenize: Callable | None
) -> tuple[dict[str, float], int]:
    """({step: seconds a sample}, number of samples) for usable rows spread over a list, one after another on one core.

    tokenize: caption -> ids; None leaves that step at 0. Rows that cannot be read are left out.
    """
    clock, count = Clock(), 0
    framing = Framing.of(catalog, interpolation) if catalog.manifest is None else None
    parts: dict = {}
    batches: dict = {}  # by the bucket of their samples, as all of a batch have one shape
    for usable in np.linspace(0, catalog.num_usable - 1, min(num_samples, catalog.num_usable)).astype(int).tolist():
        part, ordinal = catalog.position(usable)
        try:
            if part not in parts:
                index = load_index(catalog.paths[part])
                parts[part] = LocalCopies().open(catalog.paths[part], index), catalog.rows(part, index)
            reader, rows = parts[part]
            bucket = catalog.bucket_rows.bucket(part, ordinal) if catalog.bucket_rows else None
            arrays = _sample(clock, reader, int(rows[ordinal]), framing, bucket, tokenize, count)
        except RowError:
            continue
        count += 1
        batches.setdefault(bucket, []).append(arrays)
        if len(batches[bucket]) == _BATCH:
            _hand_over(clock, batches.pop(bucket))
    for batch in batches.values():
        _hand_over(clock, batch)
    for reader, _ in parts.values():
        reader.close()
    return {step: seconds / max(1, count) for step, seconds in clock.seconds.items()}, count


def _sample(clock, reader, row, framing, bucket, tokenize, number):
    """The arrays of a row. framing: of pictures, None for a cache; bucket: None without buckets."""
    record = clock("base64", decode_row, clock("gunzip", reader.unpack, row, clock("read", reader.stored, row)))
    arrays = {}
    if framing is None:
        moments = clock("decode", decode_payload, record.image)[0][0]
        arrays["moments"], shape = moments, (len(moments) // 2, *moments.shape[1:])
    else:
        picture = clock("decode", framing.decode, record.image, bucket)
        pixels = clock("resize", framing.cut, picture, bucket, rng(0, CROP, number))
        arrays["pixel_values"], shape = pixels, (4, *(side // _PIXELS_A_LATENT for side in pixels.shape[1:]))
    if tokenize is not None:
        arrays["input_ids"] = np.asarray(clock("tokenise", tokenize, record.captions[0]))
    for name in ("noise", "posterior_noise"):
        arrays[name] = clock("draws", rng(0, DRAW, number).standard_normal, shape, np.float32)
    return arrays


def _hand_over(clock, batch):
    """Stack a batch and copy it into shared memory, as a data worker does for the trainer."""
    arrays = clock("collate", collate, batch)
    for array in arrays.values():
        shared = SharedMemory(create=True, size=array.nbytes)
        target = np.ndarray(array.shape, array.dtype, buffer=shared.buf)
        clock("transfer", np.copyto, target, array)
        del target
        shared.close()
        shared.unlink()


def report(seconds: dict[str, float], count: int, has_tokenizer: bool) -> list[str]:
    """Lines for people: milliseconds and share of each step, samples a second of one data worker."""
    total = sum(seconds.values())
    if not total:
        return ["no sample could be timed"]
    lines = [f"where a sample's time goes, one core, mean of {count} samples, wall clock:"]
    for step, value in seconds.items():
        note = "  (give --tokenizer_name)" if step == "tokenise" and not has_tokenizer else ""
        bar = "#" * round(_BAR * value / total)
        lines.append(f"    {step:>10} {value * 1e3:8.3f} ms {value / total:7.1%}  {bar}{note}".rstrip())
    lines.append(f"    {'in all':>10} {total * 1e3:8.3f} ms: {1 / total:.0f} samples/s of a data worker")
    return lines
