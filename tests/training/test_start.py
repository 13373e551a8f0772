"""What the training script imports before its first step; paddlenlp alone brings four seconds of it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Installed with the toolkit or often beside it, and of no use to training.
NOT_FOR_TRAINING = ("torch", "tensorflow", "transformers", "diffusers", "ray", "gradio", "matplotlib", "s3fs", "boto3")


def test_training_imports_nothing_that_it_does_not_use():
    program = (
        "import sys; from sd.logs import import_quietly; import_quietly(); "
        "import sd.flags.command_line, sd.training.run, sd.flags.training; "
        f"print(*sorted(set({NOT_FOR_TRAINING}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
