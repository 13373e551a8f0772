"""report.png, a run on one page: losses, learning rate, scores, pictures, settings.

Drawn at the end of a run; `python -m sd.training.report OUTPUT_DIR` draws it again, when more scores are there.
"""

import sys

if __name__ == "__main__":  # before the imports, so that a wrong Python gets one line
    from sd.entry import run

    run("sd.training.report")
    sys.exit()

import contextlib
import json
import logging
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from sd.errors import InputError, RunError
from sd.metrics.curve import draw_measure
from sd.metrics.report import MEASURES
from sd.metrics.score_file import append_line, read_lines
from sd.sampling.files import read_pixels, written
from sd.sampling.grid import labelled_sheet

logger = logging.getLogger(__name__)

HISTORY, REPORT = "history.jsonl", "report.png"
_WIDTH, _LINE_CHARS, _SHOWN = 10.0, 118, 12
_SETTINGS = (
    "file_list", "resolution", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "max_steps", "prediction_type", "snr_gamma", "use_ema", "ema_decay", "fp16",
    "bf16", "caption_dropout", "train_text_encoder", "seed", "device",
)  # fmt: skip


def append_history(output_dir: str | Path, line: dict[str, Any]) -> None:
    """Append a line to history.jsonl: of a log (global_step, loss, ...) or a validation (eval_loss, ...). A full disk
    costs the line."""
    with contextlib.suppress(RunError):
        append_line(Path(output_dir) / HISTORY, line)


def read_history(output_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of the logs by step. Where a run went back, after a kill, a rollback or to an earlier checkpoint, what
    was logged of the steps from there on does not count."""
    return _by_step(output_dir, "loss")


def _by_step(output_dir, key):
    lines: list[dict[str, Any]] = []
    for line in read_lines(Path(output_dir) / HISTORY):
        if lines and line["global_step"] < lines[-1]["global_step"]:
            lines = [earlier for earlier in lines if earlier["global_step"] < line["global_step"]]
        lines.append(line)
    return list({line["global_step"]: line for line in lines if key in line}.values())


def draw_report(output_dir: str | Path, sheets: dict[str, Any] | None = None) -> Path:
    """Draw the page and return its path. sheets: name -> PIL image of what training drew last; without them the
    newest pictures of scores/ are shown. Raises InputError if the run has logged nothing."""
    from matplotlib.figure import Figure

    output_dir = Path(output_dir)
    history, validations = read_history(output_dir), _by_step(output_dir, "eval_loss")
    if not history:
        if not output_dir.is_dir():
            raise InputError(f"{output_dir}: no such folder; name the --output_dir of a run")
        raise InputError(f"{output_dir}: no {HISTORY} with a logged step; a run writes it unless --report_to none")
    scores = _latest_protocol(read_lines(output_dir / "scores/scores.jsonl"))
    measures = [name for name in MEASURES if any(line.get(name) is not None for line in scores)]
    picture = _picture(output_dir, sheets or {})
    settings = _settings(output_dir, history[-1])
    heights = [3.2, 2.8 if measures else 0, 0 if picture is None else _picture_height(picture), 0.2 * len(settings)]
    rows = [height for height in heights if height]
    figure = Figure(figsize=(_WIDTH, sum(rows) + 0.9), layout="constrained")
    figure.suptitle(f"{output_dir.name}, step {history[-1]['global_step']:,}")
    parts = iter(figure.subfigures(len(rows), 1, height_ratios=rows, squeeze=False)[:, 0])
    _draw_losses(next(parts).subplots(1, 2), history, validations)
    if measures:
        for axes, name in zip(next(parts).subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
            draw_measure(axes, scores, name)
    if picture is not None:
        axes = next(parts).subplots()
        axes.imshow(np.asarray(picture), aspect="equal")
        axes.axis("off")
    next(parts).text(0.02, 0.98, "\n".join(settings), va="top", family="monospace", fontsize=8)
    with written(output_dir / REPORT) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return output_dir / REPORT


def _draw_losses(axes, history, validations):
    left, right = axes
    steps = [line["global_step"] for line in history]
    left.plot(steps, [line["loss"] for line in history], color="#99bbdd", label="training loss")
    for name in sorted({name for line in validations for name in line if name == "eval_loss" or "_source_" in name}):
        points = [(line["global_step"], line[name]) for line in validations if name in line]
        label = "validation loss" + name.removeprefix("eval_loss").replace("_source_", ", ")
        left.plot(*zip(*points, strict=True), "o-", markersize=3, label=label)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    left.legend(fontsize=8)
    right.plot(steps, [line["learning_rate"] for line in history], color="#3366aa", label="learning rate")
    right.set(xlabel="step", ylabel="learning rate")
    norms = right.twinx()
    norms.plot(steps, [line["gradient_norm"] for line in history], color="#cc9966", linewidth=0.8)
    norms.set_ylabel("gradient norm", color="#cc9966")
    for each in axes:
        each.grid(alpha=0.3)


def _latest_protocol(lines):
    latest = {
        (line["step"], line["variant"], line["guidance_scale"]): line
        for line in lines
        if line["protocol"] == lines[-1]["protocol"]
    }
    return [latest[key] for key in sorted(latest)]


def _picture(output_dir, sheets):
    """The sheet to be shown, or None."""
    for name in ("validation", "ddim-samples-7.5", "ddim-samples-1.0"):
        if name in sheets:
            return sheets[name]
    folders = list((output_dir / "scores").glob("checkpoint-*/guidance-*"))
    if not folders:
        return None
    newest = max(folders, key=lambda folder: int(folder.parent.name.split("-")[1]))
    paths = sorted(newest.glob("*.png"))[:_SHOWN]
    title = f"{newest.parent.name}, {newest.name}"
    return labelled_sheet([read_pixels(path) for path in paths], [""] * len(paths), title, columns=6) if paths else None


def _picture_height(picture):
    return min(4.5, _WIDTH * picture.height / picture.width)


def _settings(output_dir, last):
    """Lines of text about the run."""
    run = json.loads((output_dir / "run.json").read_text())
    values = {name: value for group in run["arguments"].values() for name, value in group.items()}
    texts = [f"{name} {values[name]}" for name in _SETTINGS if values.get(name) not in (None, False, "")]
    texts.append(f"images seen {last['samples_seen']:,}")
    texts.append(f"{last['samples_per_second']:.4g} images/s at the end")
    texts += [f"{name} {version}" for name, version in run["versions"].items()]
    if run.get("skipped_samples"):
        texts.append(f"samples left out: {sum(e['stop_sample'] - e['first_sample'] for e in run['skipped_samples']):,}")
    return textwrap.wrap("; ".join(texts), _LINE_CHARS)


def main() -> None:
    """Draw the page of the run in the folder named on the command line."""
    if len(sys.argv) != 2:
        raise InputError("expected `python -m sd.training.report OUTPUT_DIR`")
    print(draw_report(sys.argv[1]))
