"""The pinned files agree with each other, with what is installed, and a wrong version is named."""

import importlib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sd import versions
from sd.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


def requirements(name):
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


@pytest.mark.defect(1)
def test_defect_01_this_environment_is_the_pinned_one_and_imports():
    assert versions.mismatches() == []
    versions.check({})
    for name in ("ppdiffusers", "paddlenlp.trainer", "visualdl"):
        importlib.import_module(name)


def test_a_wrong_and_a_missing_version_are_named_with_the_remedy(tmp_path, monkeypatch):
    pinned = tmp_path / "requirements.txt"
    pinned.write_text("numpy==2.9.9\nno-such-package==1\npillow>=1\n# a comment\n-c constraints.txt\n")
    assert [name for name, _, _ in versions.mismatches(pinned)] == ["numpy", "no-such-package"]
    monkeypatch.setattr(versions, "mismatches", lambda: [("numpy", "2.1.0", "==1.26.4")])
    with pytest.raises(InputError, match=r"numpy is 2\.1\.0, needed ==1\.26\.4; mend it with `pip install -r"):
        versions.check({})
    versions.check({"SD_ANY_VERSION": "1"})


def test_gpu_requirements_differ_by_paddle_alone():
    def rest(name):
        return [str(line) for line in requirements(name) if not line.name.startswith("paddlepaddle")]

    assert rest("requirements.txt") == rest("requirements-gpu.txt")
    assert "paddlepaddle-gpu==3.3.1" in [str(line) for line in requirements("requirements-gpu.txt")]


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-test.txt"])
def test_every_direct_dependency_is_pinned_as_in_the_constraints(name):
    held = {(line.name.lower().replace("_", "-"), str(line.specifier)) for line in requirements("constraints.txt")}
    direct = [line for line in requirements(name) if line.name != "pip"]
    assert len(direct) >= 4
    for line in direct:
        assert (line.name.lower().replace("_", "-"), str(line.specifier)) in held
