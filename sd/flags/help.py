"""`--help` of training without importing paddlenlp, which takes seconds: its flags come from a generated table.

`python docs/make_flags.py` writes the table, training_help.json, and a test compares.
"""

import ast
import dataclasses
import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from sd.flags.arguments import SDDataArguments, SDModelArguments
from sd.flags.command_line import TABLE, environment_values
from sd.flags.files import expand


def training_help(command: str, argv: Sequence[str] = (), environ: Mapping[str, str] = MappingProxyType({})) -> str:
    """The whole text: the flags of this toolkit first, then those of paddlenlp's TrainingArguments.

    argv, environ: what else the command line, its @FILEs and the environment give; such a value stands before the
    default. Raises InputError for an @FILE that cannot be read.
    """
    generated = json.loads(TABLE.read_text(encoding="utf-8"))
    sections = [
        ("Models and objective", help_rows(SDModelArguments)),
        ("Data", help_rows(SDDataArguments)),
        ("Training, logs and checkpoints", generated["own"]),
        ("From paddlenlp's TrainingArguments", generated["inherited"]),
    ]
    names = {name: False for _, fields in sections for name, _, _ in fields}  # the last value of several is shown
    values = flag_values(expand(argv, names), environ)
    width = min(shutil.get_terminal_size().columns, 120)
    lines = [f"usage: {command} --do_train --output_dir FOLDER --file_list LIST [--flag value ...] [@FILE]"]
    lines += [
        "       @FILE: flags from a recipe, one a line, or from a run's run.json; --doctor: examine, do not train"
    ]
    lines += ["       sh train.sh passes these flags on with values of its own, shown by sh train.sh --help", ""]
    for title, fields in sections:
        lines += [f"{title}:"]
        for name, default, text in fields:
            value = f"{values[name]}; default {default}" if values.get(name, default) != default else default
            lines.append(f"  --{name} ({value})")
            lines += textwrap.wrap(text, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
        lines.append("")
    return "\n".join(lines)


def flag_values(argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Flag -> its value as Python writes it, of the environment's switches and of a command line; the last one wins."""
    values = {name: repr(value) for name, value in environment_values(environ).items()}
    name = None
    for word in argv:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            values[name] = _as_python(value or "True")
        elif name is not None:
            values[name] = _as_python(word)
    return values


def _as_python(text: str) -> str:
    """`256`, `0.0001`, `True` as they are, with numbers in one form; other text in quotes."""
    try:
        return repr(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return repr(text)


def help_rows(group: type, names: Iterable[str] | None = None) -> list[tuple[str, str, str]]:
    """(name, default as Python writes it or `required`, help) of the fields of a dataclass, or of some of them."""
    chosen = [field for field in dataclasses.fields(group) if names is None or field.name in names]
    return [(field.name, _default(field), " ".join(str(field.metadata.get("help", "")).split())) for field in chosen]


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else repr(field.default)
