"""Numeric tests on the code paths of other processors, without the toolkit's settings, and by two threads; the suite
itself runs them with the toolkit's settings and one.

Each environment is a pytest of its own, since libraries read these variables when they are loaded.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NUMERIC = [
    "cpu",
    "diffusion",
    "latents/test_precompute.py",
    "metrics/test_scores.py",
    "sampling/test_pipeline.py",
    "training/test_ema.py",
    "training/test_optimizer.py",
]
ENVIRONMENTS = [
    {"MKL_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"},
    {"SD_RUNTIME": "off"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
]
CHOSEN = {name for environment in ENVIRONMENTS for name in environment}


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    "environment", ENVIRONMENTS, ids=lambda chosen: " ".join(f"{k}={v}" for k, v in chosen.items())
)
def test_the_numeric_tests_pass(environment):
    clean = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in NUMERIC)]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
