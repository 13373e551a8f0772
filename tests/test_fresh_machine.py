"""A machine that has only Python: a real one made by mmdebstrap, and this one with a library hidden."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sd import versions

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mmdebstrap"), reason="needs root and mmdebstrap")
def test_the_quickstart_passes_on_a_minimal_debian():
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    done = subprocess.run(
        ["sh", "tests/fresh_machine.sh"], cwd=ROOT, env=os.environ | {"STEPS": "4"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "== passed on minimal bookworm" in done.stdout


@pytest.mark.parametrize("library", sorted(versions.LIBRARIES))
def test_a_hidden_library_is_named_before_any_download(library, tmp_path):
    """An empty file over the library, in a mount namespace of its own: ctypes cannot open it there."""
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
    paths = [line.split("=> ")[1] for line in listed.splitlines() if line.split()[:1] == [library]]
    hidden = " && ".join(f"mount --bind /dev/null {path}" for path in paths)
    if not paths or subprocess.run(["unshare", "-m", "sh", "-c", hidden], capture_output=True).returncode:
        pytest.skip("needs the library, and the right to mount")
    for name in (
        "setup_env.sh",
        "pip_install.sh",
        "no_arguments.sh",
        "quickstart.sh",
        "requirements.txt",
        "sd",
        "stand_ins",
    ):
        (tmp_path / name).symlink_to(ROOT / name)
    # Its Python may itself need the library's neighbours; the one that runs this test is known to start.
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{hidden} && sh quickstart.sh"],
        cwd=tmp_path,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    apt, yum = versions.LIBRARIES[library]
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {library} is missing") and len(done.stderr.splitlines()) == 1
    assert f"`apt-get install {apt}`" in done.stderr and f"`yum install {yum}`" in done.stderr
    assert not (tmp_path / ".venv").exists()


_RETRY = "WARNING: Retrying (Retry(total={}, connect=None)) after connection broken by '{}': /simple/x/"


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (["WARNING: first"], "ERROR: No matching distribution"),
        ([_RETRY.format(1, "ProtocolError()")], "ERROR: No matching distribution"),  # a later try went through
        (
            [_RETRY.format(1, "SSLError(certificate)"), _RETRY.format(0, "SSLError(certificate)")],
            "connection broken by 'SSLError(certificate)': /simple/x/: ERROR: No matching distribution",
        ),
    ],
)
def test_pip_s_own_last_error_is_the_reason(before, reason, tmp_path):
    (tmp_path / "messages").write_text("\n".join([*before, "ERROR: No matching distribution", ""]))
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat '{tmp_path}/messages' >&2\nexit 1\n")
    python.chmod(0o755)
    program = f". '{ROOT}/pip_install.sh'; pip_install '{python}' -r x || exit 7"
    done = subprocess.run(["sh", "-eu", "-c", program], capture_output=True, text=True)
    assert done.returncode == 7
    assert done.stderr.splitlines()[-1] == f"error: packages could not be installed; pip says: {reason}"
