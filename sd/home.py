"""A home folder for libraries that make folders of their own there while they are imported."""

import os
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

# Where models that were fetched before lie, by the variable that each library looks into first.
_FETCHED = {"PPNLP_HOME": ".paddlenlp", "HF_HOME": ".cache/huggingface", "PPDIFFUSERS_HOME": ".ppdiffusers"}


def ensure_writable_home(environ: MutableMapping[str, str]) -> None:
    """Where HOME cannot be written, name a folder for temporary files as HOME, and say so on stderr (rank 0 alone).

    paddlenlp and VisualDL would end the import otherwise. Models that an earlier run fetched stay where they are.
    """
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises for a user without a home
    if os.access(home, os.W_OK | os.X_OK):
        return
    for variable, folder in _FETCHED.items():
        if (home / folder).is_dir():
            environ.setdefault(variable, str(home / folder))
    substitute = Path(tempfile.gettempdir(), f"sd-home-{os.getuid()}")
    substitute.mkdir(mode=0o700, exist_ok=True)
    environ["HOME"] = str(substitute)
    if environ.get("PADDLE_TRAINER_ID", "0") == "0":
        print(f"home: {home} cannot be written; caches go to {substitute}", file=sys.stderr, flush=True)
