"""The acceptance suite's report: the machine, and of each test its outcome, seconds and figures."""

import json
import time
from pathlib import Path


class Report:
    """Collects results; `write` keeps them as one JSON file."""

    def __init__(self) -> None:
        self.figures: dict[str, dict] = {}
        self.results: list[dict] = []

    def add(self, test: str, outcome: str, seconds: float, reason: str = "") -> None:
        """Take in one test's outcome (passed, failed, skipped)."""
        result = {"test": test, "outcome": outcome, "seconds": round(seconds, 2), **self.figures.get(test, {})}
        self.results.append(result | ({"reason": reason[-2000:]} if reason else {}))

    def write(self, path: Path, machine: dict) -> Path:
        """Write the report."""
        count = {
            name: sum(each["outcome"] == name for each in self.results) for name in ("passed", "failed", "skipped")
        }
        body = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **machine, **count, "results": self.results}
        path.write_text(json.dumps(body, indent=2) + "\n")
        return path
