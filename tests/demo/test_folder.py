"""demo.folder: pictures with their captions beside them become JSONL, and every picture is a row or named."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent


def make(folder, captions):
    for name, caption in captions.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_bytes(caption)


def run(folder, output):
    command = [sys.executable, "-m", "demo.folder", str(folder), "--output", str(output)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_captioned_picture_is_a_row_and_one_without_a_caption_is_named(tmp_path):
    captions = {"b.PNG": "红色的圆\n".encode("gb18030"), "sub/a b.jpg": b"\xef\xbb\xbfa cat,\r\nasleep", "c.webp": None}
    make(tmp_path / "pictures", captions)
    (tmp_path / "pictures/notes.txt").write_text("no picture")
    done = run(tmp_path / "pictures", tmp_path / "out/captions.jsonl")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out/captions.jsonl").read_text().splitlines()]
    found = {Path(row["image"]).relative_to(tmp_path / "pictures").as_posix(): row["caption"] for row in rows}
    assert found == {"b.PNG": "红色的圆", "sub/a b.jpg": "a cat, asleep"}
    assert "1 pictures have no .txt" in done.stdout and "c.webp" in done.stdout


def test_what_cannot_be_used_is_said_in_one_line(tmp_path):
    make(tmp_path / "pictures", {"a.jpg": None})
    for folder, message in (("pictures", "expected pairs as cat.jpg, cat.txt"), ("none", "no such folder")):
        done = run(tmp_path / folder, tmp_path / "captions.jsonl")
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    make(tmp_path / "other", {"a.jpg": b"\xc3\x28\xff"})
    message = run(tmp_path / "other", tmp_path / "captions.jsonl").stderr
    assert "a.txt: " in message and "; save it as UTF-8" in message
