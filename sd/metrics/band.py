"""Makes the band of a recipe from sound runs of it with different seeds: `python -m sd.metrics.band RUN RUN ...`.

Each RUN is an --output_dir that eval.py --watch has scored, all with the same flags. At the checkpoints that all of
them have, a bound lies `--deviations` sample standard deviations from the mean over the runs.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from sd.errors import InputError, run_script
from sd.files import atomic_path
from sd.metrics.report import WATCHED
from sd.metrics.score_file import read_lines

LEAST_RUNS = 3


def make_band(runs: list[list[dict]], variant: str, guidance_scale: float, deviations: float) -> dict:
    """`images_seen` and `bands` of a golden file. runs: of each its lines of scores.jsonl, of one protocol.

    Raises InputError for fewer than three runs, runs of several protocols, or no checkpoint that all of them have.
    """
    if len(runs) < LEAST_RUNS:
        raise InputError(f"{len(runs)} runs; expected {LEAST_RUNS} or more, which differ in their --seed")
    protocols = {line["protocol"] for lines in runs for line in lines}
    if len(protocols) != 1:
        raise InputError(f"scores of {len(protocols)} protocols; score all runs by the same eval.py --watch command")
    wanted = variant, guidance_scale
    found = [
        {line["images_seen"]: line for line in lines if (line["variant"], line["guidance_scale"]) == wanted}
        for lines in runs
    ]
    images = sorted(set.intersection(*(set(lines) for lines in found)))
    if not images:
        raise InputError(f"no checkpoint of {variant}, guidance {guidance_scale:g} that all runs have scores of")
    bands = {}
    for measure in WATCHED:
        values = np.array([[lines[seen].get(measure) for seen in images] for lines in found], np.float64)
        if not np.isnan(values).any():  # None becomes NaN
            mean, deviation = values.mean(0), values.std(0, ddof=1)
            bands[measure] = {
                "low": [float(f"{value:.5g}") for value in mean - deviations * deviation],
                "high": [float(f"{value:.5g}") for value in mean + deviations * deviation],
            }
    return {"variant": variant, "guidance_scale": guidance_scale, "images_seen": images, "bands": bands}


def main() -> None:
    """Read the scores of the runs that the command line names, write the band."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="output folders that eval.py --watch has scored")
    add("--output", default="band.json", metavar="FILE", help="what eval.py --golden FILE reads (default: %(default)s)")
    add("--variant", default="ema", help="raw or ema (default: %(default)s)")
    add("--guidance_scale", type=float, required=True, help="of the scores that count")
    add("--deviations", type=float, default=4.0, help="standard deviations on either side (default: %(default)g)")
    flags = parser.parse_args()
    runs = [read_lines(Path(run) / "scores/scores.jsonl") for run in flags.runs]
    band = make_band(runs, flags.variant, flags.guidance_scale, flags.deviations)
    about = f"{len(runs)} runs, mean and {flags.deviations:g} standard deviations on either side"
    output = Path(flags.output)
    with atomic_path(output) as aside:
        aside.write_text(json.dumps({"name": output.stem, "about": about, **band}, indent=1) + "\n")
    print(f"{output}: {', '.join(band['bands'])} at {', '.join(f'{seen:,}' for seen in band['images_seen'])} images")


if __name__ == "__main__":
    run_script(main)
