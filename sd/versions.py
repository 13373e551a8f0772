"""The installed packages against the pinned ones, before anything but the standard library is imported.

`python -m sd.versions --libraries` looks for the system's shared libraries that no wheel brings, and `--requirements`
prints the file that fits the Paddle of this environment.
"""

from __future__ import annotations  # a Python too old for the toolkit gets as far as the message that says so

import ctypes
import operator
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from sd.errors import InputError, run_script

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTION = "stable-diffusion-paddle"
# Shared libraries that the wheels expect on the system -> package of Debian and Ubuntu, package of RHEL and Fedora.
LIBRARIES = {"libgomp.so.1": ("libgomp1", "libgomp"), "libstdc++.so.6": ("libstdc++6", "libstdc++")}
PYTHONS = ((3, 10), (3, 12))
SHOWN = 3
_PIN = re.compile(r"([\w.-]+)\s*(==|>=)\s*([\w.+]+)\s*(?:;\s*python_version\s*(<|>=|==)\s*[\"']([\d.]+)[\"'])?")
_COMPARE = {"==": operator.eq, "<": operator.lt, ">=": operator.ge}


def pinned_lines(root: Path = ROOT) -> list[str]:
    """requirements.txt of a clone; of an installed package the requirements in its metadata."""
    if (root / "requirements.txt").exists():
        return (root / "requirements.txt").read_text().splitlines()
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []


def mismatches(lines: Iterable[str] | None = None) -> list[tuple[str, str | None, str]]:
    """Packages whose installed version is not the pinned one, as [(name, installed version or None, pin)].

    lines: `name==version` or `name>=version`, with a marker on python_version at most; lines with options, comments
    and extras are passed over. Packages of stand_ins/ have no line: empty or real, each serves.
    """
    wrong = []
    for line in pinned_lines() if lines is None else lines:
        line = line.partition("#")[0].strip()
        if not line or line.startswith("-") or "extra ==" in line:
            continue
        match = _PIN.fullmatch(line)
        if match is None:
            raise ValueError(f"{line!r}; expected name==version ; python_version < 'X.Y'")
        name, sign, version, comparison, python = match.groups()
        if python and not _COMPARE[comparison](sys.version_info[:2], _numbers(python)):
            continue
        installed = _version(name)
        public = (installed or "").partition("+")[0]  # 3.3.1+cu126 serves as 3.3.1
        serves = public == version if sign == "==" else _numbers(public) >= _numbers(version)
        if not serves:
            wrong.append((name, installed, sign + version))
    return wrong


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _version(name: str) -> str | None:
    """The installed version; Paddle for GPUs has a name of its own and serves as well."""
    if name == "paddlepaddle":
        return _installed("paddlepaddle-gpu") or _installed(name)
    return _installed(name)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def has_gpu_paddle() -> bool:
    """Whether Paddle's GPU wheel is installed."""
    return _installed("paddlepaddle-gpu") is not None


def requirements_file() -> str:
    """The file with the toolkit's packages for this environment."""
    return "requirements-gpu.txt" if has_gpu_paddle() else "requirements.txt"


def check_paddle() -> None:
    """Raise InputError if the CPU and the GPU wheel of Paddle are both installed: they share the folder paddle/."""
    cpu = _installed("paddlepaddle")
    if has_gpu_paddle() and cpu and not cpu.endswith("+gpu"):  # the stand-in of stand_ins/gpu has no files
        raise InputError(
            "paddlepaddle and paddlepaddle-gpu are both installed and have overwritten each other's files; mend it "
            "with `pip uninstall -y paddlepaddle paddlepaddle-gpu`, then `pip install -r requirements-gpu.txt` "
            "(without a GPU: requirements.txt)"
        )


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Raise InputError for wrong versions, with the command that mends them; SD_ANY_VERSION=1 goes on instead."""
    if environ.get("SD_ANY_VERSION") == "1":
        return
    oldest, newest = PYTHONS
    supported = oldest <= sys.version_info[:2] <= newest
    wrong = mismatches()
    activate = ROOT / ".venv" / "bin" / "activate"
    inside = Path(sys.prefix).resolve() == activate.parent.parent.resolve()
    if (wrong or not supported) and activate.exists() and not inside and not has_gpu_paddle():
        path = ".venv/bin/activate" if Path.cwd() == ROOT else shlex.quote(str(activate))
        raise InputError(f"{sys.executable} is not the Python with the toolkit's packages; first run `. {path}`")
    if not supported:
        raise InputError(f"{sys.executable} is Python {sys.version.split()[0]}; expected 3.10, 3.11 or 3.12")
    check_paddle()
    if wrong:
        named = ", ".join(f"{name} {installed or 'missing'} (needed {pin})" for name, installed, pin in wrong[:SHOWN])
        if len(wrong) > SHOWN:
            named += f" and {len(wrong) - SHOWN} more"
        raise InputError(f"{named}; {remedy(environ)}")


def remedy(environ: Mapping[str, str]) -> str:
    """The command that installs the pinned packages: never into the system's Python."""
    install = f"pip install -r {requirements_file()}"
    if sys.prefix == sys.base_prefix and not environ.get("CONDA_PREFIX"):
        install = f"python3 -m venv .venv && . .venv/bin/activate && {install}"
    return f"install with `{install}`, or go on at your own risk with SD_ANY_VERSION=1"


def library_advice(library: str) -> str:
    """One line about a shared library that cannot be opened: what is missing, and what installs it."""
    apt, yum = LIBRARIES.get(library, ("the package that holds it", "the package that holds it"))
    return (
        f"{library} is missing on this system and comes with no Python package; install it: `apt-get install {apt}` "
        f"(Debian, Ubuntu) or `yum install {yum}` (RHEL, Fedora, openEuler)"
    )


def check_libraries() -> None:
    """Raise InputError for the first shared library that the installed packages would not find."""
    for library in LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError:
            raise InputError(library_advice(library)) from None


def main() -> None:
    """What setup_env.sh asks before it installs anything, and the check of the versions."""
    if "--libraries" in sys.argv[1:]:
        check_libraries()
    elif "--requirements" in sys.argv[1:]:
        check_paddle()
        print(requirements_file())
    else:
        check()


if __name__ == "__main__":
    run_script(main)
