"""Flags without an effect in combination with the other flags of a command: refused or logged."""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from sd.errors import InputError

Rule = tuple[bool, str, str]


def idle_flags(flags: Any, rules: Iterable[Rule]) -> Iterator[str]:
    """A line for each flag that was given and has no effect: `--num_prompts 8 has no effect without --metrics`.

    flags: a dataclass with a field for each flag. rules: (whether the flags have an effect here, their names with
    blanks between them, what is missing or in the way). A flag with its default value counts as not given.
    """
    defaults = {field.name: field.default for field in fields(flags)}
    for has_effect, names, reason in rules:
        for name in () if has_effect else names.split():
            value = getattr(flags, name)
            if value != defaults[name]:
                value_text = (
                    "" if value is True else " " + " ".join(map(str, value if isinstance(value, list) else [value]))
                )
                yield f"--{name}{value_text} has no effect {reason}"


def refuse_idle(flags: Any, rules: Iterable[Rule]) -> None:
    """Raise InputError with the first of the lines of `idle_flags`."""
    for line in idle_flags(flags, rules):
        raise InputError(line)
