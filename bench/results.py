"""One form for all results: a table printed row by row, and bench/results/DATE_NAME.json with machine and revision."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "bench" / "results"
_PACKAGES = (
    "paddlepaddle",
    "paddlepaddle-gpu",
    "paddlenlp",
    "ppdiffusers",
    "torch",
    "diffusers",
    "simplejpeg",
    "cykooz-resizer",
    "pillow",
    "numpy",
)


def processor() -> str:
    """Model, and the widest instruction set that the libraries here use."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    widest = next((name for name in ("avx512f", "avx2", "sse4_1") if name in fields.get("flags", "").split()), "")
    return f"{fields.get('model name', platform.machine())} {widest}".strip()


def revision() -> str:
    """The short hash of the checked-out commit, `unknown` outside of a clone and on a machine without git."""
    if shutil.which("git") is None:
        return "unknown"
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return git.stdout.strip() or "unknown"


def installed_versions() -> dict[str, str]:
    """Package -> version, of those whose version may change a figure."""
    actual = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            actual[package] = metadata.version(package)
    return actual


class Results:
    """The rows of one benchmark: each is printed as a line of a Markdown table and written to the file at once.

    name: of the benchmark, part of the file's name. columns: in the table's order. counted: what the figures count, in
    words. facts: what else describes the run; `versions` in it replaces those of this environment.
    """

    def __init__(
        self,
        name: str,
        columns: Sequence[str],
        counted: str,
        facts: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        command = " ".join(sys.argv) if sys.argv[0].startswith("python") else " ".join(["python", *sys.argv])
        self._columns = columns
        self.content: dict[str, Any] = {
            "command": command,
            "date": time.strftime("%Y-%m-%d"),
            "revision": revision(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "versions": installed_versions(),
            **(facts or {}),
            "counted": counted,
            "rows": [],
        }
        self.path = (folder or FOLDER) / f"{self.content['date']}_{re.sub(r'[^0-9A-Za-z]+', '-', name)}.json"
        print(f"\n{counted}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)

    def add(self, **row: Any) -> None:
        """Print a row and write all rows so far. row: column -> figure; what is not in `columns` is only written."""
        self.content["rows"].append(row)
        print(f"| {' | '.join(_shown(row.get(column)) for column in self._columns)} |", flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
