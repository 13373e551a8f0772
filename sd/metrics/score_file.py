"""scores.jsonl: a line for each scored checkpoint, appended whole or not at all, read without what a kill has cut."""

import json
import os
from pathlib import Path

from sd.errors import RunError


def append_line(path: str | Path, line: dict) -> None:
    """Append a JSON object as one line by one write, and make it durable. Raises RunError where it does not fit; the
    file then ends as before."""
    path = Path(path)
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(file).st_size
            cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # a kill came in the middle of a line
            data = (b"\n" if cut else b"") + json.dumps(line, ensure_ascii=False).encode() + b"\n"
            if os.write(file, data) != len(data):
                os.ftruncate(file, size)
                raise RunError(f"{path}: the disk is full; free some space, the same command resumes")
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}; the same command resumes") from None


def read_lines(path: str | Path) -> list[dict]:
    """The objects of a file, none if it is not there. A line that is no JSON object, as a kill leaves it, is passed
    over."""
    path = Path(path)
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
