"""Bands in which the scores of a sound run lie, by the images seen: `--golden NAME`, a JSON file beside this module.

{"name", "about", "command", "images_seen": [x, ...], "bands": {measure: {"low": [y, ...], "high": [y, ...]}},
"variant", "guidance_scale"}; between two points a bound is the line through them, outside of them there is none.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sd.errors import ArgumentError, InputError
from sd.metrics.report import WATCHED

_FOLDER = Path(__file__).with_name("bands")


@dataclass(frozen=True)
class Golden:
    """A band. images_seen: int [N], rising; bands: measure -> (low [N], high [N]); variant and guidance_scale: of the
    scores that it is about, None for any."""

    name: str
    about: str
    images_seen: np.ndarray
    bands: dict[str, tuple[np.ndarray, np.ndarray]]
    variant: str | None = None
    guidance_scale: float | None = None

    def bounds(self, measure: str, images_seen: float) -> tuple[float, float] | None:
        """(low, high) of a measure, None outside of the band's points."""
        if measure not in self.bands or not self.images_seen[0] <= images_seen <= self.images_seen[-1]:
            return None
        low, high = self.bands[measure]
        low_now, high_now = (float(np.interp(images_seen, self.images_seen, bound)) for bound in (low, high))
        return low_now, high_now

    def classify(self, line: dict) -> dict[str, str]:
        """Measure -> `inside`, `below` or `above`, of a line of scores.jsonl; without what the band does not cover."""
        words = {}
        for measure in self.bands:
            bounds = self.bounds(measure, line["images_seen"])
            if bounds and line.get(measure) is not None:
                low, high = bounds
                words[measure] = "below" if line[measure] < low else "above" if line[measure] > high else "inside"
        return words

    def sentence(self, line: dict) -> str:
        """Where the scores of a line lie, in words."""
        at = f"golden {self.name} at {line['images_seen']:,} images"
        words = self.classify(line)
        if not words:
            first, last = self.images_seen[[0, -1]]
            return f"{at}: no verdict, the band covers {first:,.0f} to {last:,.0f} images"
        verdicts = []
        for measure, word in words.items():
            low, high = self.bounds(measure, line["images_seen"]) or (0.0, 0.0)
            verdicts.append(f"{WATCHED[measure][0]} {line[measure]:.4g} is {word} {low:.4g} to {high:.4g}")
        return f"{at}: {'; '.join(verdicts)}"


def newest_line(lines: list[dict], golden: Golden | None = None) -> dict:
    """Of lines of scores.jsonl by step the last one of the band's variant, else of the average, else of all."""
    of_variant = [line for line in lines if line["variant"] == ((golden and golden.variant) or "ema")]
    return (of_variant or lines)[-1]


def load_golden(name: str) -> Golden:
    """A band by its name, or by its file. Raises InputError."""
    names = sorted(path.stem for path in _FOLDER.glob("*.json"))
    path = _FOLDER / f"{name}.json" if name in names else Path(name)
    if path.suffix != ".json" or not path.is_file():
        raise ArgumentError("golden", name, f"; expected one of {', '.join(names)}, or a .json file of a band")
    try:
        band = json.loads(path.read_text())
        images = np.asarray(band["images_seen"], np.float64)
        bands = {
            measure: (np.asarray(bounds["low"], np.float64), np.asarray(bounds["high"], np.float64))
            for measure, bounds in band["bands"].items()
        }
        golden = Golden(band["name"], band["about"], images, bands, band.get("variant"), band.get("guidance_scale"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no band ({error!r}); see sd/metrics/golden.py for the form") from None
    fits = all(measure in WATCHED and len(low) == len(high) == len(images) for measure, (low, high) in bands.items())
    if not fits or not len(images) or (np.diff(images) <= 0).any():
        raise InputError(f"{path}: images_seen must rise, with a low and a high for each, of {', '.join(WATCHED)}")
    return golden
