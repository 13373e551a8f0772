"""Serve a web page that draws pictures from a checkpoint, on this machine alone unless --host says otherwise."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sd import devices
from sd.errors import InputError
from sd.flags.models import add_model_flags
from sd.flags.parser import Parser

ROOT = Path(__file__).resolve().parents[2]
PAGE_PYTHON = ROOT / ".venv-app" / "bin" / "python"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--output_dir", metavar="DIR", help="a run's folder: its checkpoints can be chosen on the page")
    add(
        "--checkpoint",
        metavar="NAME",
        help="instead: one checkpoint-N, pipeline folder or published name (default: CompVis/stable-diffusion-v1-4)",
    )
    add("--output", default="app_output", metavar="DIR", help="folder for the pictures (default: %(default)s)")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets others in (default: %(default)s)")
    add("--port", type=int, default=7860, help="port to listen at (default: %(default)s)")
    add_model_flags(add)
    add("--dtype", default="fp32", help="fp32 or, on a GPU, fp16 or bf16 (default: %(default)s)")
    add("--device", help="cpu, gpu or gpu:N (default: a GPU if there is one)")
    return parser.parse_args(arguments)


def main() -> None:
    """Check what can be checked at once, then become the page's process, which starts the drawing one."""
    flags = parse_arguments()
    if flags.device:
        devices.parse(flags.device)
    from sd.runs.locate import list_choices
    from sd.sampling.files import make_folder

    if flags.output_dir and flags.checkpoint:
        raise InputError("--output_dir with --checkpoint; give one of them")
    list_choices(flags.checkpoint, flags.output_dir)
    if not PAGE_PYTHON.exists():
        raise InputError(
            f"the web page's packages are not installed ({PAGE_PYTHON.parent.parent}); install them with "
            f"`sh {os.path.relpath(ROOT / 'setup_app.sh')}`"
        )
    output = make_folder(flags.output).resolve()
    engine = vars(flags) | {"output": str(output)}
    page_config = {
        "engine": [sys.executable, "-m", "sd.web.engine", json.dumps(engine)],
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
