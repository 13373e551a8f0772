"""One form for all results: bench/results/DATE_NAME.json with command, machine, revision and rows."""

import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"
_PACKAGES = ("paddlepaddle", "simplejpeg", "cykooz-resizer", "pillow", "numpy")


def processor() -> str:
    """Model, and the widest instruction set that the libraries here use."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    widest = next((name for name in ("avx512f", "avx2", "sse4_1") if name in fields.get("flags", "").split()), "")
    return f"{fields.get('model name', platform.machine())} {widest}".strip()


def write(name: str, rows: list[dict[str, Any]], counted: str) -> Path:
    """Keep rows of figures. counted: what the figures count, in words."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=FOLDER.parent, capture_output=True, text=True)
    result = {
        "command": " ".join(["python", os.path.relpath(sys.argv[0], FOLDER.parent.parent), *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "revision": commit.stdout.strip(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {package: metadata.version(package) for package in _PACKAGES},
        "counted": counted,
        "rows": rows,
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{result['date']}_{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
