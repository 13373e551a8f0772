"""The pinned files agree with each other, with pyproject.toml and with what is installed; a wrong version is named."""

import importlib
import importlib.util
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sd import versions
from sd.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
BUILD = importlib.util.spec_from_file_location("build_stand_ins", ROOT / "stand_ins" / "build.py")
stand_ins = importlib.util.module_from_spec(BUILD)
BUILD.loader.exec_module(stand_ins)


def requirements(name):
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def project():
    """The lists of pyproject.toml: the dependencies, and those of each extra (CPython 3.10 has no tomllib)."""
    text = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[0]
    lists = dict(re.findall(r"^([\w-]+) = \[\n((?:    .*\n)*)\]$", text, re.MULTILINE))
    quoted = {name: re.findall(r"^    (['\"])(.*)\1,$", lines, re.MULTILINE) for name, lines in lists.items()}
    return {name: [Requirement(line) for _, line in lines] for name, lines in quoted.items()}


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Packages -> versions that importlib.metadata reports in the place of this environment's; None is not there."""
    real, given = metadata.version, {}

    def version(name):
        actual = given[name] if name in given else real(name)
        if actual is None:
            raise metadata.PackageNotFoundError(name)
        return actual

    monkeypatch.setattr(versions.metadata, "version", version)
    monkeypatch.setattr(versions, "ROOT", tmp_path)  # no .venv there that this test's Python is not
    return given


@pytest.mark.defect(1)
def test_defect_01_this_environment_is_the_pinned_one_and_imports():
    assert versions.mismatches() == []
    versions.check({})
    for name in ("ppdiffusers", "paddlenlp.trainer", "visualdl"):
        importlib.import_module(name)


def test_a_wrong_and_a_missing_version_are_named_with_the_remedy(installed):
    lines = ["numpy==2.9.9", "no-such-package==1", "pillow>=1", "# a comment", "-c constraints.txt"]
    assert [name for name, _, _ in versions.mismatches(lines)] == ["numpy", "no-such-package"]
    installed.update({"numpy": "2.1.0", "tqdm": None})
    message = r"^numpy 2\.1\.0 \(needed ==1\.26\.4\), tqdm missing \(needed ==[\d.]+\); install with `.*pip install -r"
    with pytest.raises(InputError, match=message):
        versions.check({})
    versions.check({"SD_ANY_VERSION": "1"})


def test_the_message_stays_short_however_many_packages_are_wrong(installed):
    installed.update({requirement.name: None for requirement in requirements("requirements.txt")})
    with pytest.raises(InputError, match=r"and \d+ more") as raised:
        versions.check({})
    assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-gpu.txt"])
def test_markers_and_versions_are_read_as_packaging_reads_them(name, installed):
    lines = (ROOT / name).read_text().splitlines()
    expected = []
    for requirement in requirements(name):
        if requirement.marker is None or requirement.marker.evaluate():
            at = None if requirement.name.startswith("paddlepaddle") else metadata.version(requirement.name)
            if at is None or not requirement.specifier.contains(at):
                expected.append(requirement.name)
    installed.update({"paddlepaddle": None, "paddlepaddle-gpu": None})
    assert [name for name, _, _ in versions.mismatches(lines)] == expected


def test_a_line_of_another_form_is_not_passed_over():
    with pytest.raises(ValueError, match=r"'numpy~=1\.26'; expected name==version"):
        versions.mismatches(["numpy~=1.26"])


def test_paddle_for_gpus_serves_alone_and_is_refused_beside_paddle_for_cpus(installed):
    installed.update({"paddlepaddle": None, "paddlepaddle-gpu": "3.3.1"})
    versions.check({})
    assert versions.requirements_file() == "requirements-gpu.txt"
    installed["paddlepaddle"] = "3.3.1+gpu"  # the stand-in
    versions.check({})
    installed["paddlepaddle"] = "3.3.1"
    with pytest.raises(InputError, match=r"both installed .* `pip uninstall -y paddlepaddle paddlepaddle-gpu`, then"):
        versions.check({})
    installed.update({"paddlepaddle": None, "paddlepaddle-gpu": "3.2.0"})
    with pytest.raises(InputError, match=r"paddlepaddle 3\.2\.0 .*pip install -r requirements-gpu\.txt"):
        versions.check({})


def test_an_installed_package_reads_its_pins_from_its_metadata(tmp_path, monkeypatch):
    lines = [f"{line}" for line in project()["dependencies"]] + ["s3fs==2024.9.0; extra == 's3'"]
    monkeypatch.setattr(versions.metadata, "requires", lambda name: lines)
    assert versions.pinned_lines(tmp_path) == lines
    assert versions.mismatches(versions.pinned_lines(tmp_path)) == []


def test_gpu_requirements_differ_by_paddle_alone():
    def rest(name):
        return [str(line) for line in requirements(name) if not line.name.startswith("paddlepaddle")]

    assert rest("requirements.txt") == rest("requirements-gpu.txt")
    assert "paddlepaddle-gpu==3.3.1" in [str(line) for line in requirements("requirements-gpu.txt")]


def test_the_requirements_files_are_pyproject_s_lists():
    lists = project()
    files = {"dependencies": "requirements.txt"} | {name: f"requirements-{name}.txt" for name in ("s3", "ray", "test")}
    assert {*files, "gpu"} == set(lists)
    for name, file in files.items():
        assert [str(line) for line in lists[name]] == [str(line) for line in requirements(file)], file
    assert [str(line) for line in lists["gpu"]] == ["paddlepaddle-gpu==3.3.1"]


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements-test.txt", "requirements-s3.txt", "requirements-ray.txt"]
)
def test_every_direct_dependency_is_pinned_as_in_the_constraints(name):
    held = {(line.name.lower().replace("_", "-"), str(line.specifier)) for line in requirements("constraints.txt")}
    direct = [line for line in requirements(name) if line.name != "pip"]
    assert direct
    for line in direct:
        assert (line.name.lower().replace("_", "-"), str(line.specifier)) in held


def test_every_package_that_the_installed_ones_need_is_pinned_or_stood_in_for():
    held = {line.name.lower().replace("_", "-") for line in requirements("constraints.txt")}
    seen, todo = set(), [line.name for file in ("", "-test") for line in requirements(f"requirements{file}.txt")]
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in seen or name in stand_ins.LEFT_OUT:
            continue
        seen.add(name)
        needs = [Requirement(line) for line in metadata.requires(name) or []]
        todo += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    assert len(seen) > 100
    assert seen - held <= {"pip"}


def test_the_stand_ins_are_what_their_script_builds_and_hold_no_module(tmp_path):
    built = {path.relative_to(tmp_path): path.read_bytes() for path in stand_ins.build_all(tmp_path)}
    there = {path.relative_to(ROOT / "stand_ins"): path.read_bytes() for path in ROOT.glob("stand_ins/**/*.whl")}
    assert built == there
    for path in ROOT.glob("stand_ins/**/*.whl"):
        with zipfile.ZipFile(path) as archive:
            assert all(".dist-info/" in name for name in archive.namelist())


def test_what_is_stood_in_for_is_imported_by_nothing_that_the_toolkit_runs():
    modules = {module for module, _ in stand_ins.LEFT_OUT.values()}
    program = (
        f"import sys\nfor name in {sorted(modules)}: sys.modules[name] = None\n"  # `import name` raises ImportError
        "import importlib, pkgutil\n"
        "from sd.logs import import_quietly; import_quietly()\n"
        "import paddle, ppdiffusers, paddlenlp.trainer, paddlenlp.transformers, visualdl.server.app, sd\n"
        "found = [at.name for at in pkgutil.walk_packages(sd.__path__, 'sd.') if not at.name.startswith('sd.web.')]\n"
        "for name in found: importlib.import_module(name)\n"
        "print(len(found))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 50
