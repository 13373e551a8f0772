"""Recipes for clusters and containers: their linters, the files they name, and Slurm's script on two processes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.training_harness import ROOT, Workshop

TOOLS = Path(sys.executable).parent
SCRIPTS = [
    path for folder in ("", "recipes/", "tests/", "demo/", "examples/*/") for path in sorted(ROOT.glob(f"{folder}*.sh"))
]
DOCKERFILES = [ROOT / "recipes/Dockerfile", ROOT / "recipes/Dockerfile.gpu"]


def test_shellcheck_finds_nothing():
    dialects = {path: "bash" if "bash" in path.read_text().splitlines()[0] else "sh" for path in SCRIPTS}
    for dialect in ("sh", "bash"):
        files = [str(path) for path, own in dialects.items() if own == dialect]
        command = [TOOLS / "shellcheck", "--severity=warning", f"--shell={dialect}", *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert files and done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    done = subprocess.run([TOOLS / "hadolint", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kubernetes_accepts_the_job():
    documents = list(yaml.safe_load_all((ROOT / "recipes/kubernetes.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["Service", "Job"]
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)
    service, job = documents
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    machines = job["spec"]["completions"]
    assert machines == job["spec"]["parallelism"] and environment["LAUNCH"].endswith(f"--nnodes {machines}")
    assert f"--master {job['metadata']['name']}-0.{service['metadata']['name']}:" in environment["LAUNCH"]
    assert pod["subdomain"] == service["metadata"]["name"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_a_dockerfile_copies_is_there_and_enough_for_its_set_up(path, tmp_path):
    text = path.read_text().partition("COPY . .")[0]
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            place = tmp_path / (source if target == "./" else target)
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    if "setup_env.sh" in text:
        command = [sys.executable, "-m", "sd.versions", "--requirements"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert (tmp_path / done.stdout.strip()).is_file()
    else:
        (requirements,) = re.findall(r"-r (\S+)", text)
        for word in re.findall(r"^(?:-c|--find-links) (\S+)", (tmp_path / requirements).read_text(), re.MULTILINE):
            assert (tmp_path / word).exists()


SRUN = """#!/bin/sh
# Two tasks on this machine; fails if one fails.
while [ "${1#--}" != "$1" ]; do shift; done
"$@" & first=$!
"$@" & second=$!
wait $first; a=$?
wait $second; b=$?
exit $((a > b ? a : b))
"""


@pytest.mark.slow
@pytest.mark.ci
def test_slurms_script_trains_on_two_machines(tmp_path):
    workshop = Workshop(tmp_path / "work")
    for name, text in {"srun": SRUN, "scontrol": "#!/bin/sh\necho 127.0.0.1\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "here,here"}
    slurm |= {"SLURM_SUBMIT_DIR": str(ROOT), "PATH": f"{tmp_path}:{TOOLS}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(ROOT / "recipes/slurm.sh"), *workshop.flags("output", "--logging_steps", 1)],
        env=os.environ | slurm | {"NPROC": "1", "RESTARTS": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 rank(s)" in done.stdout + done.stderr
    assert (workshop.folder / "output" / "checkpoint-4" / "manifest.json").is_file()
