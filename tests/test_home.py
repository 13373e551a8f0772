"""A home that cannot be written costs a line, not the import of a library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sd import home

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A home with models that were fetched before, which the system says cannot be written; and where /tmp is."""
    folder, temporary = tmp_path / "home", tmp_path / "tmp"
    (folder / ".paddlenlp").mkdir(parents=True)
    temporary.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(temporary))
    monkeypatch.setenv("HOME", str(folder))
    return folder, temporary


def test_another_folder_stands_in_and_fetched_models_stay(read_only, capsys):
    folder, temporary = read_only
    environ = {"HF_HOME": "/models"}
    home.ensure_writable_home(environ)
    substitute = temporary / f"sd-home-{os.getuid()}"
    assert environ == {"HF_HOME": "/models", "PPNLP_HOME": str(folder / ".paddlenlp"), "HOME": str(substitute)}
    assert substitute.stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().err == f"home: {folder} cannot be written; caches go to {substitute}\n"


def test_a_home_that_can_be_written_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    environ = {}
    home.ensure_writable_home(environ)
    assert environ == {} and capsys.readouterr().err == ""


def test_the_libraries_are_imported_without_a_home(tmp_path):
    program = "from sd import logs, runtime; runtime.prepare(); logs.import_quietly(); import visualdl"
    environ = {name: value for name, value in os.environ.items() if name != "PPNLP_HOME"}
    environ |= {"HOME": "/proc/no/home", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    assert "home: /proc/no/home cannot be written" in done.stderr
