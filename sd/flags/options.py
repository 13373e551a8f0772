"""The command line of a dataclass: a flag for each field, and an object that has checked its values.

Training has paddlenlp's parser, which also makes dataclasses, but takes seconds to be imported.
"""

import argparse
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

from sd.flags.parser import Parser, truth

Options = TypeVar("Options")
REQUIRED: Any = MISSING


def option(
    default: Any,
    help_text: str = "",
    *,
    group: str = "",
    names: Sequence[str] = (),
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
    positional: bool = False,
    truth_value: bool = False,
) -> Any:
    """A field of a dataclass that `parse` fills. default: REQUIRED for none.

    group: title of the group of flags that begins with this one; names: further names of the flag. truth_value:
    a switch that also takes `True` or `False`, as those of training do.
    """
    metadata = {
        "help": help_text,
        "group": group,
        "names": names,
        "metavar": metavar,
        "choices": choices,
        "positional": positional,
        "truth_value": truth_value,
    }
    return field(default=default, metadata=metadata)


def parse(options: type[Options], arguments: Sequence[str] | None = None, **parser: Any) -> Options:
    """An object of the dataclass `options` from a command line, by default that of the process.

    parser: arguments of argparse.ArgumentParser. Raises InputError for a wrong command line, and what the dataclass
    raises for a wrong value.
    """
    reader = Parser(**parser)
    add_flags(reader, options)
    return options(**vars(reader.parse_args(arguments)))


def add_flags(parser: argparse.ArgumentParser, options: type, *, truth_values: bool = False) -> None:
    """Add a flag for each field of a dataclass, as its annotation, its default and `option` say.

    The fields of the class itself come first, then those of its bases. truth_values: of all its switches.
    """
    target: Any = parser
    kinds = typing.get_type_hints(options)
    for each in sorted(fields(options), key=lambda each: each.name not in options.__annotations__):
        if title := each.metadata.get("group"):
            target = parser.add_argument_group(title)
        names, how = _argument(each, kinds[each.name], truth_values)
        target.add_argument(*names, **how)


def _argument(one: Field, kind: Any, truth_values: bool) -> tuple[Sequence[str], dict[str, Any]]:
    """(names, keyword arguments) of `add_argument` for a field."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # X | None
        (kind,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
    how: dict[str, Any] = {name: one.metadata[name] for name in ("choices", "metavar") if one.metadata.get(name)}
    how["help"] = one.metadata.get("help") or None
    if one.metadata.get("positional"):
        return [one.name], how
    if one.default is MISSING:
        how["required"] = True
    else:
        how["default"] = one.default
    if one.metadata.get("truth_value") or (truth_values and kind is bool):
        how |= {"type": truth, "nargs": "?", "const": True, "metavar": "True"}
    elif kind is bool:
        how["action"] = "store_true"
    else:
        if typing.get_origin(kind) is list:
            how["nargs"] = "+"
            (kind,) = typing.get_args(kind)
        how["type"] = kind
        if how["help"] and one.default not in (MISSING, None) and "default" not in how["help"]:
            how["help"] += " (default: %(default)s)"
    return [f"--{one.name}", *one.metadata.get("names", ())], how
