"""Files of prompts: plain text, one a line; JSONL; TSV and CSV with a header, as COCO-30k's with `caption_en`."""

import csv
import json
from pathlib import Path

from sd.errors import ArgumentError, InputError
from sd.text import TextError, check_characters, text_lines, unquoted

COLUMNS = ("prompt", "caption_en", "caption", "text")


def read_prompts(
    path: str | Path, column: str | None = None, limit: int | None = None, flag: str = "prompts_file"
) -> list[str]:
    """The prompts of a file, in its order, as a list of strings; blank lines are left out.

    column: the column or key that holds the prompt; by default the first of COLUMNS that is there. flag: its flag.
    Raises InputError if there is no such file or column, a line that cannot be read, or nothing in it.
    """
    path = Path(path)
    try:
        # Not splitlines(): a caption may hold other line separators of Unicode.
        lines = [(number, line) for number, line in enumerate(text_lines(path.read_bytes()), start=1) if line.strip()]
    except OSError as error:
        raise ArgumentError(flag, str(path), f" cannot be read: {error.strerror}") from None
    except TextError as error:
        raise InputError(f"{path}: {error}") from None
    read_rows = {".jsonl": _jsonl_rows, ".json": _jsonl_rows, ".tsv": _tsv_rows, ".csv": _csv_rows}
    rows = read_rows.get(path.suffix.lower(), _text_rows)(path, lines)
    prompts = []
    for number, row in rows:
        if len(prompts) == limit:
            break
        column = column or next((name for name in COLUMNS if name in row), None)
        if not isinstance(row.get(column), str):
            expected = f"column {column!r}" if column else f"column named {' or '.join(COLUMNS)}"
            remedy = "name the right one with --prompts_column" if flag == "prompts_file" else "rename the right one"
            raise InputError(
                f"{path}, line {number}: no {expected} with text, it has {', '.join(map(str, row)) or 'none'}; {remedy}"
            )
        try:
            check_characters(row[column])
        except TextError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        prompts.append(row[column].strip())
    if not prompts:
        raise InputError(f"{path} holds no prompt; expected one a line")
    return prompts


def _text_rows(path, lines):
    return ((number, {"text": line}) for number, line in lines)


def _jsonl_rows(path, lines):
    for number, line in lines:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: {type(row).__name__} where an object was expected")
        yield number, row


def _tsv_rows(path, lines):
    """Rows of a TSV. A field wholly in quotation marks loses them; a bare one, common in captions, stays."""
    header = None
    for number, line in lines:
        fields = [unquoted(field) for field in line.split("\t")]
        if header is None:
            header = fields
        else:
            if len(fields) > len(header):
                raise _too_many(path, number, len(fields), len(header), "take tabs out of its fields")
            yield number, dict(zip(header, fields, strict=False))


def _csv_rows(path, lines):
    reader = csv.DictReader((line + "\n" for _, line in lines), strict=True)

    def line_number():
        return lines[min(max(reader.reader.line_num, 1), len(lines)) - 1][0]

    try:
        for row in reader:
            if rest := row.get(None):
                width = len(reader.fieldnames or ())
                raise _too_many(path, line_number(), width + len(rest), width, "quote fields that hold a comma")
            yield line_number(), row
    except csv.Error as error:
        raise InputError(f"{path}, line {line_number()}: {error}; is a quotation mark left open?") from None


def _too_many(path, number, count, width, remedy):
    return InputError(f"{path}, line {number}: {count} fields where the header has {width}; {remedy}")
