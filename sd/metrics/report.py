"""Scores -> a JSON file, a table on the terminal, a curve of FID against CLIP score, and VisualDL scalars."""

import json
import re
from pathlib import Path

from sd.sampling.files import written

# Name in a report -> heading, digits behind the point.
MEASURES = {"fid": ("FID", 3), "cmmd": ("CMMD", 4), "clip_score": ("CLIP score", 4)}
# With what `eval.py --watch` adds of a moving average: the distance of its weights from the trained ones.
WATCHED = MEASURES | {"ema_distance": ("EMA distance", 6)}


def table(report: dict) -> str:
    """The scores as lines of text, one guidance scale each."""
    measures = {name: form for name, form in MEASURES.items() if name != "cmmd" or report.get("cmmd_reference")}
    rows = [("guidance scale", *(heading for heading, _ in measures.values()))]
    for result in report["results"]:
        figures = (_figure(result[name], digits) for name, (_, digits) in measures.items())
        rows.append((f"{result['guidance_scale']:g}", *figures))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def verdict(report: dict) -> str | None:
    """Whether the protocol's targets are met by some guidance scale, as a line, or None if it sets none."""
    targets = report["targets"]
    if not targets:
        return None
    target = f"FID at most {targets['fid']:g} and CLIP score at least {targets['clip_score']:g}"
    for result in report["results"]:
        if result["fid"] is None or result["clip_score"] is None:
            return f"target ({target}): not decided, it takes both measures"
        if result["fid"] <= targets["fid"] and result["clip_score"] >= targets["clip_score"]:
            return f"target ({target}): met at guidance scale {result['guidance_scale']:g}"
    return f"target ({target}): not met"


def write_report(report: dict, output: Path) -> None:
    """Print the table and write metrics.json, curve.png and VisualDL's log into the folder `output`."""
    print(f"{report['model']}, {report['pictures']} pictures for each guidance scale")
    print(table(report))  # first of all: a full disk does not take it away
    if line := verdict(report):
        print(line)
    with written(output / "metrics.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if all(result["fid"] is not None and result["clip_score"] is not None for result in report["results"]):
        with written(output / "curve.png") as temporary:
            _curve(report, temporary)
    _log(report, output / "visualdl")
    print(f"scores: {output / 'metrics.json'}")


def _figure(value, digits):
    return "-" if value is None else f"{value:.{digits}f}"


def _log(report, folder):
    from visualdl import LogWriter

    step = re.search(r"checkpoint-(\d+)", report["model"])
    with LogWriter(logdir=str(folder)) as log:
        for result in report["results"]:
            for name in MEASURES:
                if result.get(name) is not None:
                    tag = f"{name}/guidance-{result['guidance_scale']:g}"
                    log.add_scalar(tag, result[name], int(step[1]) if step else 0)


def _curve(report, path):
    from matplotlib.figure import Figure

    results = report["results"]
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["clip_score"] for r in results], [r["fid"] for r in results], "o-", color="#3366aa")
    for result in results:
        point = (result["clip_score"], result["fid"])
        axes.annotate(f"{result['guidance_scale']:g}", point, textcoords="offset points", xytext=(6, 6))
    axes.set(xlabel="CLIP score (higher is better)", ylabel="FID (lower is better)")
    axes.set_title(f"{report['model']}, {report['pictures']} pictures, by guidance scale")
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)
