"""The installed versions against requirements.txt, told in one line at start instead of an import error later."""

import os
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from sd.errors import InputError

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"


def mismatches(requirements=REQUIREMENTS):
    """Packages whose installed version is not the pinned one, as [(name, installed version or None, pinned)]."""
    found = []
    for line in Path(requirements).read_text().splitlines():
        line = line.partition("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        installed = _version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            found.append((requirement.name, installed, str(requirement.specifier)))
    return found


def _version(name):
    """The installed version; Paddle for GPUs has a name of its own and serves as well."""
    for candidate in (name, "paddlepaddle-gpu") if name == "paddlepaddle" else (name,):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return None


def check(environ=os.environ):
    """Raise InputError naming each wrong version and the command that mends it; SD_ANY_VERSION=1 goes on instead."""
    if environ.get("SD_ANY_VERSION") == "1":
        return
    wrong = mismatches()
    if wrong:
        named = ", ".join(f"{name} is {installed or 'missing'}, needed {pinned}" for name, installed, pinned in wrong)
        raise InputError(
            f"{named}; mend it with `pip install -r requirements.txt` (GPU: requirements-gpu.txt), "
            "or go on at your own risk with SD_ANY_VERSION=1"
        )
