"""`--help` of training in a tenth of a second: paddlenlp's flags are read off its source instead of importing it."""

import ast
import dataclasses
import importlib.util
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from sd.flags.arguments import SDDataArguments, SDModelArguments
from sd.flags.command_line import environment_values


def training_help(command: str, argv: Sequence[str] = (), environ: Mapping[str, str] = MappingProxyType({})) -> str:
    """The whole text: the flags of this toolkit first, then those of paddlenlp's TrainingArguments.

    argv, environ: what else the command line and the environment give; such a value stands before the default.
    """
    given = given_values(argv, environ)
    own = read_fields(Path(__file__).with_name("training.py"), "SDTrainingArguments")
    spec = importlib.util.find_spec("paddlenlp")
    assert spec and spec.origin  # sd.versions has seen it
    package = Path(spec.origin).parent
    inherited = read_fields(package / "trainer" / "training_args.py", "TrainingArguments")
    sections = [
        ("Models and objective", dataclass_fields(SDModelArguments)),
        ("Data", dataclass_fields(SDDataArguments)),
        ("Training, logs and checkpoints", own),
        ("From paddlenlp's TrainingArguments", inherited),
    ]
    width = min(shutil.get_terminal_size().columns, 120)
    lines = [f"usage: {command} --do_train --output_dir FOLDER --file_list LIST [--flag value ...] [@FILE]"]
    lines += [
        "       @FILE: flags from a recipe, one a line, or from a run's run.json; --doctor: examine, do not train"
    ]
    lines += ["       sh train.sh passes these flags on with values of its own, shown by sh train.sh --help", ""]
    for title, fields in sections:
        lines += [f"{title}:"]
        for name, default, text in fields:
            value = f"{given[name]}; default {default}" if given.get(name, default) != default else default
            lines.append(f"  --{name} ({value})")
            lines += textwrap.wrap(text, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
        lines.append("")
    return "\n".join(lines)


def given_values(argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Flag -> its value as Python writes it, of the environment's switches and of a command line; the last one wins."""
    given = {name: repr(value) for name, value in environment_values(environ).items()}
    name = None
    for word in argv:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            given[name] = _as_python(value or "True")
        elif name is not None:
            given[name] = _as_python(word)
    return given


def _as_python(text: str) -> str:
    """`256`, `0.0001`, `True` as they are, with numbers in one form; other text in quotes."""
    try:
        return repr(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return repr(text)


def dataclass_fields(group):
    """(name, default as text, help) of each field."""
    return [(field.name, repr(field.default), field.metadata["help"]) for field in dataclasses.fields(group)]


def read_fields(path, class_name):
    """The same, read off a source file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    return [_read_field(node) for node in body if isinstance(node, ast.AnnAssign)]


def _read_field(node):
    keywords = {keyword.arg: keyword.value for keyword in getattr(node.value, "keywords", [])}
    positional = getattr(node.value, "args", [])
    default = keywords.get("default", positional[0] if positional else keywords.get("default_factory"))
    text = positional[1] if len(positional) > 1 else None
    if isinstance(keywords.get("metadata"), ast.Dict):
        metadata = keywords["metadata"]
        text = dict(zip(map(ast.literal_eval, metadata.keys), metadata.values, strict=True)).get("help")
    told = "required" if default is None else ast.unparse(default).removeprefix("lambda: ")
    return node.target.id, told, _text(text)


def _text(node):
    if node is None:
        return ""
    try:
        return " ".join(str(ast.literal_eval(node)).split())
    except ValueError:  # an f-string
        return " ".join(ast.unparse(node).removeprefix("f").strip("'\"").split())
