"""`python -m bench NAME [flags]`: one benchmark, after the check of the installed versions."""

import sys
from pathlib import Path

from sd.entry import run
from sd.errors import InputError, run_script

BENCHMARKS = (
    "export_diffusers",
    "filters",
    "operations",
    "order",
    "packing",
    "resizing",
    "sampling",
    "streaming",
    "train_step",
    "training",
)


def main() -> None:
    """Run the benchmark that the first word names, with the words behind it as its flags."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        raise InputError(f"python -m bench {name}; expected one of {', '.join(BENCHMARKS)}")
    sys.argv[:2] = [f"python -m bench {name}"]
    run(f"bench.{name}", "rows that were measured are in bench/results")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    run_script(main)
