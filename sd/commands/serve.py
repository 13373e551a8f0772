"""Serve a web page that draws pictures from a checkpoint, on this machine alone unless --host says otherwise."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from sd import devices
from sd.errors import InputError
from sd.flags.options import parse
from sd.runs.locate import PUBLISHED, list_choices
from sd.sampling.files import make_folder
from sd.sampling.sources import find_sources
from sd.web.options import ServeOptions

ROOT = Path(__file__).resolve().parents[2]
PAGE_PYTHON = ROOT / ".venv-app" / "bin" / "python"


def parse_arguments(arguments: Sequence[str] | None = None) -> ServeOptions:
    """The flags."""
    return parse(ServeOptions, arguments, description=__doc__)


def main() -> None:
    """Check what can be checked at once, then become the page's process, which starts the drawing one."""
    flags = parse_arguments()
    devices.check_flags(flags.device, flags.dtype)
    list_choices(flags.checkpoint, flags.output_dir)
    # The checkpoints of a run may be damaged or still to come.
    find_sources(f"{PUBLISHED}/unet" if flags.output_dir else flags.checkpoint, **flags.models).check()
    if not PAGE_PYTHON.exists():
        raise InputError(
            f"the web page's packages are not installed ({PAGE_PYTHON.parent.parent}); install them with "
            f"`sh {os.path.relpath(ROOT / 'setup_app.sh')}`"
        )
    output = make_folder(flags.output).resolve()
    engine = replace(flags, output=str(output))
    page_config = {
        "engine": [sys.executable, "-m", "sd.web.engine", json.dumps(asdict(engine))],
        "title": f"{flags.output_dir or flags.checkpoint or 'published v1-4'}; pictures are kept in {flags.output}",
        "output": str(output),
        "host": flags.host,
        "port": flags.port,
    }
    if flags.host not in ("127.0.0.1", "::1", "localhost"):
        print(f"anyone who can reach {flags.host}:{flags.port} can draw here", file=sys.stderr, flush=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [str(PAGE_PYTHON), "-m", "sd.web.page", json.dumps(page_config)]
    os.execve(command[0], command, os.environ | {"PYTHONPATH": path})
