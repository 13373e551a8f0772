"""Makes the band of a recipe from sound runs of it with different seeds: `python -m sd.metrics.band RUN RUN ...`.

Each RUN is an --output_dir that eval.py --watch has scored, all with the same flags. At the checkpoints that all of
them have, a bound lies `--deviations` sample standard deviations from the mean over the runs.
"""

import sys

if __name__ == "__main__":  # before the imports, so that a wrong Python gets one line
    from sd.entry import run

    run("sd.metrics.band")
    sys.exit()

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sd.errors import ArgumentError, InputError
from sd.files import atomic_path
from sd.flags.arguments import check_choice, check_range
from sd.flags.parser import Parser
from sd.metrics.report import WATCHED
from sd.metrics.score_file import read_lines

MIN_RUNS = 3


def make_band(runs: list[list[dict]], variant: str, guidance_scale: float, deviations: float) -> dict:
    """`images_seen` and `bands` of a golden file. runs: of each its lines of scores.jsonl, of one protocol.

    Raises InputError for fewer than three runs, runs of several protocols, or no checkpoint that all of them have.
    """
    if len(runs) < MIN_RUNS:
        raise InputError(f"{len(runs)} runs; expected {MIN_RUNS} or more, which differ in their --seed")
    protocols = {line["protocol"] for lines in runs for line in lines}
    if len(protocols) != 1:
        raise InputError(f"scores of {len(protocols)} protocols; score all runs by the same eval.py --watch command")
    key = variant, guidance_scale
    by_images = [
        {line["images_seen"]: line for line in lines if (line["variant"], line["guidance_scale"]) == key}
        for lines in runs
    ]
    images = sorted(set.intersection(*(set(lines) for lines in by_images)))
    if not images:
        have = sorted({(line["variant"], line["guidance_scale"]) for lines in runs for line in lines})
        there = ", ".join(f"{name} at {scale:g}" for name, scale in have)
        raise InputError(
            f"no checkpoint of which all runs have scores of {variant} at --guidance_scale {guidance_scale:g}; scored "
            f"are {there}"
        )
    bands = {}
    for measure in WATCHED:
        values = np.array([[lines[count].get(measure) for count in images] for lines in by_images], np.float64)
        if not np.isnan(values).any():  # None becomes NaN
            mean, deviation = values.mean(0), values.std(0, ddof=1)
            bands[measure] = {
                "low": [float(f"{value:.5g}") for value in mean - deviations * deviation],
                "high": [float(f"{value:.5g}") for value in mean + deviations * deviation],
            }
    return {"variant": variant, "guidance_scale": guidance_scale, "images_seen": images, "bands": bands}


def read_scores(run: str) -> list[dict]:
    """The lines of a run's scores.jsonl. Raises InputError where there are none."""
    path = Path(run) / "scores/scores.jsonl"
    lines = read_lines(path)
    if not lines:
        raise InputError(f"{run}: no scores in {path}; score the run first: python eval.py --watch {run} ...")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the scores of the runs that the command line names, write the band."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="output folders that eval.py --watch has scored")
    add("--output", default="band.json", metavar="FILE", help="what eval.py --golden FILE reads (default: %(default)s)")
    add("--variant", default="ema", help="raw or ema (default: %(default)s)")
    add("--guidance_scale", type=float, required=True, help="of the scores that count")
    add("--deviations", type=float, default=4.0, help="standard deviations on either side (default: %(default)g)")
    flags = parser.parse_args(arguments)
    check_choice("variant", flags.variant, ("raw", "ema"))
    check_range("deviations", flags.deviations, above=0)
    runs = [read_scores(run) for run in flags.runs]
    band = make_band(runs, flags.variant, flags.guidance_scale, flags.deviations)
    about = f"{len(runs)} runs, mean and {flags.deviations:g} standard deviations on either side"
    output = Path(flags.output)
    try:
        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps({"name": output.stem, "about": about, **band}, indent=1) + "\n")
    except OSError as error:
        raise ArgumentError("output", flags.output, f" cannot be written: {error.strerror}; name another") from None
    print(f"{output}: {', '.join(band['bands'])} at {', '.join(f'{n:,}' for n in band['images_seen'])} images")
