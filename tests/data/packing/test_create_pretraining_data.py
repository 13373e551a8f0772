"""The packing script as people run it: its command line, one line for each mistake, and being stopped at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sd.commands.pack import parse_arguments
from sd.data.packing.options import PackOptions
from tests.pack_input import contents, image_bytes, write_input

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "create_pretraining_data.py"


def script(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=120
    )


def last_line(result):
    assert "Traceback" not in result.stderr, result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_the_reference_command_and_its_defaults():
    words = (
        "--input_path coco_data/coco_data.jsonl --output_path ./processed_data --caption_key caption --image_key image "
        "--per_part_file_num 1000 --num_repeat 100 --save_gzip_file"
    )
    options = parse_arguments(words.split())
    assert (options.per_part_file_num, options.num_repeat, options.save_gzip_file) == (1000, 100, True)
    plain = parse_arguments(["--input_path", "a", "--output_path", "b"])
    assert plain == PackOptions("a", "b")
    assert (plain.output_name, plain.caption_key, plain.image_key) == ("custom_dataset", "caption", "image")
    assert (plain.per_part_file_num, plain.save_gzip_file, plain.num_repeat) == (1000, False, 1)


def test_help_is_there_without_paddle():
    code = "import sys, create_pretraining_data; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.defect(7)
def test_defect_07_it_runs_from_any_folder_into_any_folder(tmp_path):
    write_input(tmp_path / "data", 3)
    (tmp_path / "elsewhere").mkdir()
    result = script(tmp_path / "elsewhere", "--input_path", "../data/data.jsonl", "--output_path", tmp_path / "far/out")
    assert result.returncode == 0
    assert "3 rows into 1 parts: 3 packed" in result.stdout
    assert (tmp_path / "far/out/laion400m_format_data/part-000001").exists()


@pytest.mark.parametrize(
    ("content", "arguments", "code", "says"),
    [
        (None, [], 2, "data.jsonl: No such file"),
        ("folder", [], 2, "data.jsonl: not a file"),
        ("", [], 2, "data.jsonl: no rows"),
        ("\n \n", [], 2, "data.jsonl: no rows"),
        ("not json\n", [], 2, "none of 1 rows was packed; most often: not JSON (1 rows, first line 1"),
        ('{"caption": "a"}\n', [], 2, "most often: no key 'image' (1 rows, first line 1: keys: caption)"),
        ('{"caption": "a", "image": "no.png"}\n', [], 2, "most often: image missing (1 rows, first line 1: no.png)"),
        ('{"caption": "a", "image": "data.jsonl"}\n', [], 2, "most often: not an image of JPEG"),
        ('{"caption": "a", "image": "a.png"}\nx\n', [], 1, "1 of 2 rows are bad, more than --max_bad_fraction 0.05"),
        ('{"caption": "a", "image": "a.png"}\n', ["--per_part_file_num", "0"], 2, "--per_part_file_num 0"),
        ('{"caption": "a", "image": "a.png"}\n', ["--output_path", "a.png"], 2, "--output_path a.png: Not a directory"),
        ('{"caption": "a", "image": "a.png"}\n', ["--output_path", "/proc/out"], 2, "--output_path /proc/out: No such"),
        ('{"caption": "a", "image": "a.png"}\n', ["--input_format", "tar"], 2, "invalid choice: 'tar'"),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, content, arguments, code, says):
    path = write_input(tmp_path / "input", 1).parent.rename(tmp_path / "in") / "data.jsonl"
    (path.parent / "images/1.png").rename(path.parent / "a.png")
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    result = script(path.parent, "--input_path", "data.jsonl", "--output_path", "out", "--num_workers", "1", *arguments)
    assert result.returncode == code
    assert says in last_line(result)


# -- stopped at any moment ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow_input(tmp_path_factory):
    """Rows that take a few seconds to pack, so that there is a moment to stop at."""
    folder = tmp_path_factory.mktemp("slow")
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(image_bytes(900 + number, 900, number, "JPEG"))
    rows = [json.dumps({"caption": f"caption {n}", "image": f"{n % 8}.jpg"}) for n in range(160)]
    (folder / "data.jsonl").write_text("\n".join(rows))
    return folder / "data.jsonl"


def command(path, output):
    flags = ["--per_part_file_num", "8", "--save_gzip_file", "--num_workers", "2", "--resize", "250"]
    return [sys.executable, str(SCRIPT), "--input_path", str(path), "--output_path", str(output), *flags]


def stop_when(process, folder, num_parts, signal_number):
    """Signal the process as soon as there are so many parts. Returns its worker processes."""
    deadline = time.monotonic() + 60
    while len(list(folder.glob("laion400m_format_data/part-??????.gz"))) < num_parts:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    os.kill(process.pid, signal_number)
    return workers


def all_gone(processes):
    return not psutil.wait_procs(processes, timeout=10)[1]


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(slow_input, tmp_path):
    output, killed = tmp_path / "one/out", tmp_path / "two/out"
    subprocess.run(command(slow_input, output), check=True, capture_output=True)
    for num_parts in (1, 7):
        process = subprocess.Popen(command(slow_input, killed), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        workers = stop_when(process, killed, num_parts, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert all_gone(workers)
        assert not (killed / "filelist/custom_dataset.filelist").exists()
    subprocess.run(command(slow_input, killed), check=True, capture_output=True)

    def files(folder):
        return {name: digest for name, digest in contents(folder).items() if not name.startswith("filelist/")}

    assert files(killed) == files(output)
    assert (killed / "filelist/custom_dataset.filelist").read_text().count("\n") == 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_one_line_and_no_trace(slow_input, tmp_path, number):
    output = tmp_path / "out"
    process = subprocess.Popen(
        command(slow_input, output), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = stop_when(process, output, 2, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1] == "error: stopped; the same command goes on from the finished parts"
    assert all_gone(workers)
    assert [name for name in contents(output) if name.endswith(".tmp")] == []
    assert not (output / "filelist/custom_dataset.filelist").exists()


def test_a_killed_worker_ends_the_run_with_one_line(slow_input, tmp_path):
    process = subprocess.Popen(command(slow_input, tmp_path / "out"), stderr=subprocess.PIPE, text=True)
    children = stop_when(process, tmp_path / "out", 1, 0)
    worker = next(child for child in children if "spawn_main" in " ".join(child.cmdline()))
    worker.kill()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "a worker was killed" in errors.strip().splitlines()[-1]


def test_a_full_disk_ends_with_one_line_and_no_partial_part(slow_input, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        result = subprocess.run(command(slow_input, disk / "out"), capture_output=True, text=True, timeout=120)
        assert result.returncode == 1
        assert "No space left on device; mend that, and the same command goes on" in last_line(result)
        names = list(contents(disk / "out"))
        assert len([name for name in names if name.endswith(".gz")]) >= 1
        assert [name for name in names if name.endswith(".tmp")] == []
        subprocess.run(["mount", "-o", "remount,size=90m", disk], check=True)
        subprocess.run(command(slow_input, disk / "out"), check=True, capture_output=True)
        assert len(list((disk / "out/laion400m_format_data").glob("*.gz"))) == 20
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
