"""Scores over the images seen: a picture with one panel a measure, and VisualDL's scalars."""

import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

from sd.metrics.golden import Golden, newest_line
from sd.metrics.report import WATCHED
from sd.sampling.files import written

_COLOURS = {"raw": "#999999", "ema": "#3366aa"}
_BETTER = {
    "fid": "lower is better",
    "cmmd": "lower is better",
    "clip_score": "higher is better",
    "ema_distance": "0 averages nothing",
}
_STYLES = ("-", "--", ":", "-.")
_LOG_FILE = "vdlrecords.scores.log"


def draw_curves(lines: list[dict], path: Path, golden: Golden | None = None) -> None:
    """Write the picture. lines: of scores.jsonl, by step; golden: the band behind them."""
    from matplotlib.figure import Figure

    measures = [name for name in WATCHED if any(line.get(name) is not None for line in lines)]
    rows = 1 if len(measures) < 4 else 2
    columns = -(-len(measures) // rows)
    figure = Figure(figsize=(5.5 * columns, 4.2 * rows), layout="constrained")
    for number, name in enumerate(measures, start=1):
        draw_measure(figure.add_subplot(rows, columns, number), lines, name, golden)
    if golden:
        sentence = golden.sentence(newest_line(lines, golden))
        figure.suptitle(textwrap.fill(sentence, 72 * columns), fontsize=9)
    with written(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def draw_measure(axes: Any, lines: list[dict], measure: str, golden: Golden | None = None) -> None:
    """One measure over the images seen, a line for each variant and guidance scale, into Matplotlib's axes."""
    series = defaultdict(list)
    for line in lines:
        if line.get(measure) is not None:
            series[line["variant"], line["guidance_scale"]].append((line["images_seen"], line[measure]))
    scales = sorted({scale for _, scale in series})
    if golden and measure in golden.bands:
        label = f"golden {golden.name}"
        axes.fill_between(golden.images_seen, *golden.bands[measure], color="#66aa66", alpha=0.25, label=label)
    for (variant, scale), points in series.items():
        style = _STYLES[scales.index(scale) % len(_STYLES)] + "o"
        label = f"{variant}, guidance {scale:g}"
        axes.plot(*zip(*points, strict=True), style, color=_COLOURS[variant], markersize=3, label=label)
    axes.set(xlabel="images seen", ylabel=f"{WATCHED[measure][0]} ({_BETTER[measure]})")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def log_scalars(lines: list[dict], folder: Path) -> None:
    """Write all lines as VisualDL's scalars, in place of what was there."""
    from visualdl import LogWriter

    (folder / _LOG_FILE).unlink(missing_ok=True)
    with LogWriter(logdir=str(folder), file_name=_LOG_FILE) as log:
        for line in lines:
            for name in WATCHED:
                if line.get(name) is not None:
                    tag = f"{name}/{line['variant']}-guidance-{line['guidance_scale']:g}"
                    log.add_scalar(tag, line[name], line["step"])
