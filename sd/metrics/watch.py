"""`eval.py --watch OUTPUT_DIR`: scores each new checkpoint of a run beside the training, same prompts, same noise.

Nothing but scores/ in the run's folder is written, and nothing of the run is held open but for the time of loading.
"""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from sd.metrics.curve import draw_curves, log_scalars
from sd.metrics.golden import Golden, load_golden, newest_line
from sd.metrics.inputs import check_inputs
from sd.metrics.measure import measure
from sd.metrics.report import MEASURES, WATCHED
from sd.metrics.score_file import append_line, read_lines
from sd.models.weight_file import WeightFile, read_safetensors
from sd.processes.locks import locked_folder
from sd.runs.checkpoint import MANIFEST, checkpoint_step, find_problem, list_checkpoints, read_json
from sd.sampling.files import make_folder
from sd.sampling.options import SampleOptions

logger = logging.getLogger(__name__)

# An average of zero decay is a copy, up to one rounding of a difference and one of a sum: 2^-24 each of about a weight.
_COPY = 2.0**-22
SCORES = "scores.jsonl"
FOLDER = "scores"
_WEIGHTS = "unet/diffusion_paddle_model{}.safetensors"
_VARIANTS = {"raw": (None, ""), "ema": ("ema", ".ema")}  # name -> (variant of load_models, part of the file's name)
_PROTOCOL = (
    "guidance_scales", "height", "width", "num_inference_steps", "scheduler", "seed", "negative_prompt", "dtype",
    "fid_model", "fid_reference", "clip_model", "cmmd_reference", "data_filter",
)  # fmt: skip


def watch(options: SampleOptions) -> None:
    """Score the checkpoints of options.watch as they appear, until the run's last one is scored.

    The same command resumes after a stop or kill: what stands in scores.jsonl is not scored again, and pictures that
    are there are not drawn again.
    """
    assert options.watch is not None
    run = Path(options.watch)
    check_inputs(options)
    options = replace(options.with_preset(), preset=None)
    golden = load_golden(options.golden) if options.golden else None
    output = make_folder(options.output or run / FOLDER)
    protocol = _protocol(options)
    waiting_behind: str | None = None
    with locked_folder(str(output)):
        while True:
            for folder, variant, weights in _due(run, options.every, output, protocol):
                _score(options, output, protocol, folder, variant, weights)
                report_scores(output, protocol, golden)
            if _finished(run):
                print(report_scores(output, protocol, golden))
                return
            newest = ([folder.name for folder in list_checkpoints(run)] or ["no checkpoint yet"])[-1]
            if newest != waiting_behind:
                waiting_behind = newest
                logger.info("%s: %s; waiting for the next checkpoint, Ctrl-C ends it", run, newest)
            time.sleep(options.poll_seconds)


def _protocol(options):
    """Digits that stand for what makes two scores comparable."""
    settings = {name: getattr(options, name) for name in _PROTOCOL} | {"guidance_scales": options.scales}
    return sha256(json.dumps([options.read_prompts(), settings]).encode()).hexdigest()[:12]


def _last_step(run):
    """The max_steps of a run, None where it is not known yet."""
    try:
        steps = json.loads((run / "run.json").read_text())["arguments"]["SDTrainingArguments"]["max_steps"]
    except (OSError, ValueError, KeyError):
        return None
    return steps if steps > 0 else None


def _is_intact(folder):
    return find_problem(folder, thorough=False) is None


def _finished(run):
    last = _last_step(run)
    return last is not None and any(checkpoint_step(f) >= last and _is_intact(f) for f in list_checkpoints(run))


def _due(run: Path, every: int, output: Path, protocol: str) -> Iterator[tuple[Path, str, str]]:
    """(checkpoint, `raw` or `ema`, checksum of its weights) of what is not scored yet, the oldest first."""
    done = {(line["step"], line["variant"], line["weights"]) for line in protocol_lines(output, protocol)}
    last = _last_step(run)
    for folder in list_checkpoints(run):
        step = checkpoint_step(folder)
        if step is None or (step % every and step != last) or not _is_intact(folder):
            continue
        try:
            files = read_json(folder, MANIFEST)["files"]
        except OSError:  # removed in between
            continue
        for variant, (_, suffix) in _VARIANTS.items():
            weights = files.get(_WEIGHTS.format(suffix), {}).get("xxh3_128")
            if weights and (step, variant, weights) not in done:
                yield folder, variant, weights


def _score(options, output, protocol, folder, variant, weights):
    """Score one variant of a checkpoint and append its lines."""
    step = checkpoint_step(folder)
    options = replace(options, output=str(output / f"{folder.name}-{variant}"))
    try:
        images_seen = read_json(folder, "data_state.json")["samples_seen"]
        distance = {"ema_distance": ema_distance(folder)} if variant == "ema" else {}
        report = measure(options, str(folder), _VARIANTS[variant][0], keep=output)
    except (OSError, ValueError, RuntimeError) as error:
        if folder.exists():
            raise
        logger.warning("%s was removed before it was loaded; left out (%s)", folder, error)
        return
    for result in report["results"]:
        scores = {name: result[name] for name in MEASURES if result[name] is not None}
        line = {"step": step, "images_seen": images_seen, "variant": variant, **result, **scores}
        line |= distance | {"pictures": report["pictures"], "weights": weights, "protocol": protocol}
        append_line(output / SCORES, line)


def protocol_lines(output: Path, protocol: str) -> list[dict]:
    """The lines of scores.jsonl that one protocol made; of the same point the latest. By step."""
    latest = {}
    for line in read_lines(output / SCORES):
        if line.get("protocol") == protocol:
            latest[line["step"], line["variant"], line["guidance_scale"]] = line
    return [latest[key] for key in sorted(latest)]


def report_scores(output: Path, protocol: str, golden: Golden | None = None) -> str:
    """Draw the curves, write VisualDL's scalars, and return the sentence about the newest line."""
    lines = protocol_lines(output, protocol)
    if not lines:
        return f"{output}: nothing scored; no intact checkpoint has the step of --every"
    draw_curves(lines, output / "curves.png", golden)
    log_scalars(lines, output / "visualdl")
    newest = newest_line(lines, golden)
    scores = ", ".join(f"{WATCHED[name][0]} {newest[name]:.4g}" for name in WATCHED if newest.get(name) is not None)
    head = f"step {newest['step']}, {newest['variant']}: {scores}"
    sentences = [head, golden.sentence(newest) if golden else "", average_note(lines) or ""]
    return "\n".join(filter(None, sentences))


def average_note(lines: list[dict]) -> str | None:
    """A sentence if the moving average of the last step is a copy of the weights."""
    distance = next((line["ema_distance"] for line in reversed(lines) if line["variant"] == "ema"), None)
    if distance is None or distance > _COPY:
        return None
    why = "it averages nothing (--ema_decay 0, or --ema_start_step ahead)"
    return f"step {lines[-1]['step']}: ema is a copy of raw; {why}"


def ema_distance(checkpoint: Path) -> float:
    """|ema - raw| / |raw| of a checkpoint's UNet: all weights as one vector, Euclidean norms in float64."""
    raw = WeightFile(checkpoint / _WEIGHTS.format(""))
    moved = whole = 0.0
    for name, average in read_safetensors(str(checkpoint / _WEIGHTS.format(".ema"))):
        weights = raw.array(name).astype(np.float64)
        moved += float(np.square(average - weights).sum())
        whole += float(np.square(weights).sum())
    return (moved / whole) ** 0.5
