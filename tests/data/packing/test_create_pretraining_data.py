"""The packing script as people run it: its command line, one line for each mistake, and being stopped at any moment."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sd.commands.pack import parse_arguments
from sd.data.packing.options import PackOptions
from tests.holding import Hold, wait_until_ended
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


def test_help_does_not_import_paddle():
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
    ("content", "arguments", "code", "message"),
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
        (
            '{"caption": "a", "image": "a.png"}\n',
            ["--input_format", "tar"],
            2,
            "--input_format tar; expected one of jsonl, web",
        ),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, content, arguments, code, message):
    path = write_input(tmp_path / "input", 1).parent.rename(tmp_path / "in") / "data.jsonl"
    (path.parent / "images/1.png").rename(path.parent / "a.png")
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    result = script(path.parent, "--input_path", "data.jsonl", "--output_path", "out", "--num_workers", "1", *arguments)
    assert result.returncode == code
    assert message in last_line(result)


# -- stopped at any moment ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_parts(tmp_path_factory):
    """Rows of 20 parts, among which there is a moment to stop at."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(image_bytes(300 + number, 300, number, "JPEG"))
    rows = [json.dumps({"caption": f"caption {n}", "image": f"{n % 8}.jpg"}) for n in range(160)]
    (folder / "data.jsonl").write_text("\n".join(rows))
    return folder / "data.jsonl"


def command(path, output):
    flags = ["--per_part_file_num", "8", "--save_gzip_file", "--num_workers", "2", "--resize", "250"]
    return [sys.executable, str(SCRIPT), "--input_path", str(path), "--output_path", str(output), *flags]


def start(path, output, hold, **options):
    """Start packing. Returns the process and the ids of its two workers, both held after their share of the parts."""
    process = subprocess.Popen(
        command(path, output), env=os.environ | hold.variables(), stderr=subprocess.PIPE, **options
    )
    return process, hold.wait(process, process.stderr.read, processes=2)


def test_a_packer_killed_at_any_moment_resumes_to_the_same_bytes(many_parts, tmp_path):
    output, killed = tmp_path / "one/out", tmp_path / "two/out"
    subprocess.run(command(many_parts, output), check=True, capture_output=True)
    for num_parts in (1, 3):
        process, workers = start(many_parts, killed, Hold(tmp_path / f"hold-{num_parts}", "parts", num_parts))
        process.kill()
        process.communicate()
        wait_until_ended(workers)
        assert not (killed / "filelist/custom_dataset.filelist").exists()
    subprocess.run(command(many_parts, killed), check=True, capture_output=True)

    def files(folder):
        return {name: digest for name, digest in contents(folder).items() if not name.startswith("filelist/")}

    assert files(killed) == files(output)
    assert (killed / "filelist/custom_dataset.filelist").read_text().count("\n") == 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_one_line_and_no_trace(many_parts, tmp_path, number):
    output = tmp_path / "out"
    process, workers = start(many_parts, output, Hold(tmp_path / "hold", "parts", 1), text=True, start_new_session=True)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    name = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[number]
    assert errors.strip().splitlines()[-1] == f"stopped by {name}; the same command resumes from the finished parts"
    wait_until_ended(workers)
    assert [name for name in contents(output) if name.endswith(".tmp")] == []
    assert not (output / "filelist/custom_dataset.filelist").exists()


def test_a_killed_worker_ends_the_run_with_one_line(many_parts, tmp_path):
    process, workers = start(many_parts, tmp_path / "out", Hold(tmp_path / "hold", "parts", 1), text=True)
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "a worker was killed" in errors.strip().splitlines()[-1]


def test_a_full_disk_ends_with_one_line_and_no_partial_part(many_parts, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        result = subprocess.run(command(many_parts, disk / "out"), capture_output=True, text=True)
        assert result.returncode == 1
        assert "No space left on device; mend that, and the same command resumes" in last_line(result)
        names = list(contents(disk / "out"))
        assert len([name for name in names if name.endswith(".gz")]) >= 1
        assert [name for name in names if name.endswith(".tmp")] == []
        subprocess.run(["mount", "-o", "remount,size=90m", disk], check=True)
        subprocess.run(command(many_parts, disk / "out"), check=True, capture_output=True)
        assert len(list((disk / "out/laion400m_format_data").glob("*.gz"))) == 20
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
