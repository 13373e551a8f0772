"""Flags from files: a word `@FILE` on a command line stands for the flags in the file.

Two kinds of file: a recipe, one flag a line with `#` comments, and a run's `run.json`, which holds all its flags.
"""

import contextlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from sd.errors import InputError
from sd.text import TextError, decode_text

# Of a run.json: what would remove checkpoints, or is the launcher's business.
_NOT_REPEATED = {"resume_from_checkpoint", "overwrite_output_dir", "local_rank"}
_OUTPUT_NAMED = ("logging_dir", "run_name")  # derived from output_dir unless the user chose them


def expand(argv: Iterable[str], flags: Mapping[str, bool] = MappingProxyType({})) -> list[str]:
    """The words of a command line with every `@FILE` replaced by the flags in it, in its place; the last flag wins.

    flags: name -> whether it takes several values, of the flags that the command takes; of a run.json only these are
    used. Raises InputError for a file that cannot be read or holds no flags.
    """
    words = []
    for word in argv:
        words += _read(Path(word[1:]), flags) if len(word) > 1 and word.startswith("@") else [word]
    return words


def _read(path: Path, flags: Mapping[str, bool]) -> list[str]:
    try:
        text = decode_text(path.read_bytes())
    except (OSError, TextError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"@{path} cannot be read: {reason}; expected a file of flags, one a line, or a run.json"
        ) from None
    return _run_words(text, path, flags) if path.suffix == ".json" else _recipe_words(text, path)


def _recipe_words(text: str, path: Path) -> list[str]:
    """The words of a recipe file; quotes as in a shell, `#` starts a comment."""
    words = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            flag_words = shlex.split(_without_comment(line))
        except ValueError as error:  # a quote, or a backslash at the end, which in a shell leads on to the next line
            raise InputError(
                f"{path}, line {number}: {error}; close the quote, or take the backslash off the line's end"
            ) from None
        if flag_words and not flag_words[0].startswith("-"):
            raise InputError(f"{path}, line {number}: {flag_words[0]!r}; expected a flag, `--name value`, on each line")
        words += flag_words
    if not words:
        raise InputError(f"@{path} holds no flag; expected one a line")
    return words


def _without_comment(line: str) -> str:
    """The line up to a `#` that begins a word, as in a shell: `out#2` is one. (In shlex a comment begins anywhere.)"""
    for mark in re.finditer("#", line):
        before = line[: mark.start()]
        with contextlib.suppress(ValueError):  # within quotes
            if len(shlex.split(before + "x")) > len(shlex.split(before)):
                return before
    return line


def _run_words(text: str, path: Path, flags: Mapping[str, bool]) -> list[str]:
    """The flags of a run.json. Relative paths are looked up in the folder in which that run was started."""
    try:
        run = json.loads(text)
        arguments = {name: value for group in run["arguments"].values() for name, value in group.items()}
        folder = Path(run.get("folder", "."))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"@{path} is no run.json ({error!r}); expected the file of that name in an --output_dir"
        ) from None
    output_dir = str(arguments.get("output_dir"))
    words = []
    for name, value in arguments.items():
        derived = name in _OUTPUT_NAMED and str(value).startswith(output_dir)
        # A dict is what paddlenlp made of a flag of its own that training does not use.
        if value in (None, []) or isinstance(value, dict) or name not in flags or name in _NOT_REPEATED or derived:
            continue
        values = [str(each) for each in value] if isinstance(value, list) else [_resolve_path(folder, name, str(value))]
        words += [f"--{name}", *(values if flags[name] else [" ".join(values)])]
    return words


def _resolve_path(folder: Path, name: str, value: str) -> str:
    """A path that only exists seen from the run's folder, as a path that exists from here; anything else unchanged."""
    is_path = name == "output_dir" or name.endswith(("_name_or_path", "_list", "_prompts", "_name", "_dir"))
    if not is_path or Path(value).is_absolute() or Path(value).exists():
        return value
    resolved = folder / value
    return str(resolved) if resolved.exists() else value
