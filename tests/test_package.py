"""`pip install .`: the package with its data and its commands, away from the clone."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from demo.shapes import write

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.ci]
SKIPPED = shutil.ignore_patterns(".*", "quickstart_out", "*_out", "build", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment with the wheel of this clone, and this environment's packages as its dependencies."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder / "clone", ignore=SKIPPED)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*wheel, str(folder / "clone")], check=True, capture_output=True)
    shutil.rmtree(folder / "clone")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "environment")], check=True)
    python = folder / "environment" / "bin" / "python"
    (site,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(str(Path(metadata.distribution("numpy").locate_file("")).resolve()))
    (made,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "-q", "--no-deps", str(made)], check=True)
    return folder / "environment"


def command(environment, name, *flags, folder):
    done = subprocess.run(
        [str(environment / "bin" / name), *flags],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", ["pack", "cache", "train", "sample", "export", "doctor", "inspect"])
def test_each_command_shows_its_help(name, environment, tmp_path):
    assert "--" in command(environment, f"sd-{name}", "--help", folder=tmp_path)


def test_packing_and_looking_at_it_work_away_from_the_clone(environment, tmp_path):
    rows = write(tmp_path / "shapes", count=20, seed=1, size=32)
    command(environment, "sd-pack", "--input_path", str(rows), "--output_path", "packed", folder=tmp_path)
    file_list = "packed/filelist/custom_dataset.filelist.list"
    shown = command(environment, "sd-inspect", file_list, "--resolution", "32", folder=tmp_path)
    assert "20" in shown and (tmp_path / "inspect.png").stat().st_size > 1000


def test_the_package_holds_the_unet_s_configuration_and_pins_what_requirements_txt_pins(environment, tmp_path):
    program = (
        "import sd; from pathlib import Path; from sd import versions as v; folder = Path(sd.__file__).parent; "
        "print((folder / 'unet_config.json').stat().st_size, folder, len(v.pinned_lines()), v.mismatches())"
    )
    size, folder, pins, wrong = command(environment, "python", "-c", program, folder=tmp_path).split()
    assert int(size) > 500 and str(environment) in folder and int(pins) > 25 and wrong == "[]"
    assert "--unified_checkpoint" in command(
        environment, "sd-train", "--help", folder=tmp_path
    )  # of the packaged table
