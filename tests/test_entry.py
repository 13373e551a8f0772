"""Every program, started with a Python that lacks the toolkit's packages, answers in one line and imports nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import BENCHMARKS
from sd import entry, versions

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
MODULES = ["sd.doctor", "sd.data.inspect", "sd.data.columns", "sd.data.duplicates", "sd.metrics.band"]
MODULES += ["sd.processes.launch"]
MODULES += ["sd.training.report", "sd.models.torch_file", "demo.shapes", "demo.classify", "demo.compare_formats"]
COMMANDS = [[name] for name in SCRIPTS] + [["-m", name] for name in MODULES]
COMMANDS += [["-m", "bench", name] for name in BENCHMARKS]


def bare_python(folder):
    """A Python without any package: this one's interpreter in an empty environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return bare_python(tmp_path_factory.mktemp("bare") / "environment")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The sources without an environment."""
    folder = tmp_path_factory.mktemp("clone")
    for name in [*SCRIPTS, "sd", "demo", "bench", "requirements.txt"]:
        (folder / name).symlink_to(ROOT / name)
    return folder


def answer(python, command, folder, **environ):
    clean = {name: value for name, value in os.environ.items() if name not in ("SD_ANY_VERSION", "PYTHONPATH")}
    done = subprocess.run(
        [str(python), *command], cwd=folder, env=clean | environ, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def test_the_programs_are_all_here():
    assert len(SCRIPTS) == 6
    assert {f"{name}.py" for name in BENCHMARKS} <= {path.name for path in ROOT.glob("bench/*.py")}


def test_an_unknown_benchmark_is_refused_with_the_names_of_all():
    done = subprocess.run([sys.executable, "-m", "bench", "latents"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: python -m bench latents; expected one of {', '.join(BENCHMARKS)}\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_wrong_python_beside_an_environment_is_asked_to_activate_it(command, bare):
    assert (ROOT / ".venv").exists() or pytest.skip("this checkout has no .venv")
    code, out, err = answer(bare, command, ROOT)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: \S+ is not the Python with the toolkit's packages; first run `\. \S+activate`\n", err)


@pytest.mark.parametrize("command", [["eval.py"], ["-m", "sd.data.inspect"]], ids=" ".join)
def test_without_an_environment_the_error_names_the_install_command(command, bare, clone, monkeypatch):
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    # The symlinked sd/ lies in ROOT: name a root without .venv by running a copy of the check there.
    program = (
        "import runpy, sys; from pathlib import Path; from sd import versions; "
        f"versions.ROOT = Path({str(clone)!r}); sys.argv = {command[-1:]!r}; "
        + (f"runpy.run_module({command[1]!r}, run_name='__main__')" if command[0] == "-m" else "")
        + (f"runpy.run_path({command[0]!r}, run_name='__main__')" if command[0] != "-m" else "")
    )
    code, out, err = answer(bare, ["-c", program], clone)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .* and \d+ more; install with `pip install -r requirements.txt`, or .*\n", err)


def test_the_remedy_never_installs_into_the_systems_python(monkeypatch):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert "python3 -m venv .venv && . .venv/bin/activate && pip install -r" in versions.remedy({})
    assert "venv" not in versions.remedy({"CONDA_PREFIX": "/opt/conda"})


def test_a_missing_shared_library_is_named_with_its_package(monkeypatch, capsys):
    def main():
        raise ImportError("libgomp.so.1: cannot open shared object file: No such file or directory")

    module = type(sys)("lacking")
    module.main = main
    monkeypatch.setitem(sys.modules, "lacking", module)
    with pytest.raises(SystemExit) as raised:
        entry.run("lacking")
    assert raised.value.code == 2
    err = capsys.readouterr().err
    assert "libgomp.so.1 is missing" in err and "`apt-get install libgomp1`" in err and "`yum install libgomp`" in err


@pytest.mark.parametrize("flag", ["--unet", "--output", "--prompts_file", "--compare"])
def test_a_name_that_the_system_refuses_is_one_line(monkeypatch, capsys, flag):
    monkeypatch.setattr(sys, "argv", ["eval.py", "--prompt", "a", flag, *["x" * 300] * (1 + (flag == "--compare"))])
    with pytest.raises(SystemExit) as raised:
        entry.sample()
    assert raised.value.code == 2
    assert re.fullmatch(r"error: .*x{300}.* File name too long.*\n", capsys.readouterr().err)


def test_the_commands_of_the_package_are_functions_of_the_entry():
    scripts = dict(re.findall(r'^(sd-\w+) = "sd\.entry:(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert set(scripts) == {
        f"sd-{name}" for name in ["pack", "cache", "train", "sample", "export", "doctor", "inspect"]
    }
    assert all(callable(getattr(entry, name)) and f"sd-{name}" == script for script, name in scripts.items())
