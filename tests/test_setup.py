"""What the scripts install, and into what: an environment whose pip writes down what it is asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = ["setup_env.sh", "pip_install.sh", "train.sh", "constraints.txt", "stand_ins", "sd"]
PIP = "import sys, pathlib; pathlib.Path('asked').open('a').write(' '.join(sys.argv[1:]) + chr(10))"


def environment(folder, *distributions):
    """An environment in which nothing is installed but a pip that records, and metadata of `name==version`."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "pip").mkdir()
    (site / "pip" / "__main__.py").write_text(PIP)
    for distribution in distributions:
        name, version = distribution.split("==")
        (site / f"{name}-{version}.dist-info").mkdir()
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    return folder / "bin" / "python"


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "clone of mine"
    folder.mkdir()
    for path in [*map(ROOT.joinpath, FILES), *ROOT.glob("requirements*.txt"), *ROOT.glob("*.py")]:
        (folder / path.name).symlink_to(path)
    return folder


def set_up(folder, more=""):
    """(exit code, installed requirements files, stderr) of sourcing setup_env.sh, as run_tests.sh does."""
    program = f"set -eu; more={more}; . ./setup_env.sh"
    done = subprocess.run(["sh", "-c", program], cwd=folder, capture_output=True, text=True)
    requested = (folder / "asked").read_text().split() if (folder / "asked").exists() else []
    (folder / "asked").unlink(missing_ok=True)
    return done.returncode, [word for word in requested if word.startswith("requirements")], done.stderr


@pytest.mark.parametrize(
    ("installed", "file"),
    [
        ([], "requirements.txt"),
        (["paddlepaddle==3.3.1"], "requirements.txt"),
        (["paddlepaddle_gpu==3.3.1"], "requirements-gpu.txt"),
        (["paddlepaddle_gpu==3.3.1", "paddlepaddle==3.3.1+gpu"], "requirements-gpu.txt"),
    ],
)
def test_paddle_for_gpus_is_neither_replaced_nor_mixed(installed, file, clone):
    environment(clone / ".venv", *installed)
    assert set_up(clone) == (0, [file], "")
    assert set_up(clone) == (0, [], "")
    assert set_up(clone, "requirements-test.txt") == (0, [file, "requirements-test.txt"], "")
    assert set_up(clone, "requirements-test.txt") == (0, [], "")
    assert set_up(clone) == (0, [], "")


def test_the_requirements_of_the_tests_bring_no_paddle():
    assert "paddle" not in (ROOT / "requirements-test.txt").read_text()
    assert "-r " not in (ROOT / "requirements-test.txt").read_text()


def test_both_paddles_are_refused_before_anything_is_installed(clone):
    environment(clone / ".venv", "paddlepaddle_gpu==3.3.1", "paddlepaddle==3.3.1")
    code, requested, err = set_up(clone)
    assert (code, requested) == (2, [])
    assert err.startswith("error: paddlepaddle and paddlepaddle-gpu are both installed") and "pip uninstall -y" in err


def test_changed_requirements_are_installed_again(clone):
    environment(clone / ".venv")
    assert set_up(clone)[1] == ["requirements.txt"]
    text = (clone / "constraints.txt").read_text()
    (clone / "constraints.txt").unlink()
    (clone / "constraints.txt").write_text(text + "# changed\n")
    assert set_up(clone)[1] == ["requirements.txt"]


def python_of_training(clone, path):
    """The environment whose interpreter train.sh starts; a program that prints it stands in for the training."""
    environ = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHON")}
    program = clone / "train_txt2img_laion400m_trainer.py"
    program.unlink()
    program.write_text("import sys; print(sys.prefix)")
    environ["PATH"] = f"{path}:{environ['PATH']}"
    done = subprocess.run(["sh", "train.sh"], cwd=clone, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.mark.parametrize(
    ("outside", "inside", "chosen"),
    [
        ([], [], ".venv"),
        (["paddlepaddle==3.3.1"], [], ".venv"),
        (["paddlepaddle_gpu==3.3.1"], ["paddlepaddle==3.3.1"], "conda"),
        (["paddlepaddle_gpu==3.3.1"], ["paddlepaddle_gpu==3.3.1"], ".venv"),
    ],
)
def test_training_takes_the_environment_with_paddle_for_gpus(outside, inside, chosen, clone, tmp_path):
    conda = environment(tmp_path / "conda", *outside).parent
    environment(clone / ".venv", *inside)
    assert python_of_training(clone, conda).name == chosen


@pytest.mark.parametrize(
    "script",
    ["quickstart.sh", "setup_app.sh", "recipes/long_captions.sh", "demo/buckets.sh", "examples/emoji/run.sh"],
)
@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("-h", 0), ("--steps", 2), ("out", 2)])
def test_scripts_without_arguments_start_nothing_for_one(script, word, code, tmp_path):
    """Each of them works for minutes: a question for help is no order to begin."""
    heading = (ROOT / script).read_text().splitlines()[1].removeprefix("# ")
    done = subprocess.run(["sh", str(ROOT / script), word], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and done.stdout.splitlines()[0] == heading
    assert "set -eu" not in done.stdout
    assert done.stderr == ("" if code == 0 else f"error: {word}: {Path(script).name} takes no arguments\n")


def test_the_recipe_of_own_pictures_names_the_folder_that_is_not_there(tmp_path):
    def run(*words):
        command = ["sh", str(ROOT / "recipes/own_pictures.sh"), *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert run("--help").returncode == 0 and "OUT=folder writes elsewhere" in run("--help").stdout
    done = run("pictures")
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "usage"] and "pictures" in done.stderr
    assert run().returncode == 2
