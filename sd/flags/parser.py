"""The parser of the scripts' flags: a mistake in a command line is one line that says what is expected."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from sd.errors import InputError

_KINDS = {"int": "a whole number", "float": "a number", "truth": "True or False"}
_TRUE, _FALSE = ("1", "true", "yes", "on", "t", "y"), ("0", "false", "no", "off", "f", "n", "")


class Parser(argparse.ArgumentParser):
    """As argparse's, but a wrong command line raises InputError, and names are written out: what is short for one flag
    today is short for two tomorrow."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self._words: list[str] = []
        self._unknown: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Keeps the words for the message."""
        self._words = list(sys.argv[1:] if args is None else args)
        found, self._unknown = super().parse_known_args(self._words, namespace)
        return found, self._unknown

    def error(self, message: str) -> NoReturn:
        """Raise InputError for what argparse says."""
        if message.startswith("unrecognized arguments"):
            message = describe_unknown(self._unknown[0], self._words, _actions(self))
        raise InputError(explain(message))


def truth(text: str) -> bool:
    """The truth value that a word stands for. Raises ValueError."""
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(f"{text!r} is no truth value")
    return text.lower() in _TRUE


def _actions(parser):
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def describe_unknown(word: str, words: Sequence[str], actions: Iterable[argparse.Action]) -> str:
    """What to say of a word that no action takes: the flag that it may be meant for."""
    names = {name: action for action in actions for name in action.option_strings}
    before = words[words.index(word) - 1] if word in words[1:] else ""
    if not word.startswith("-") and before in names and names[before].nargs == 0:
        return f"{before} {word}; it is a switch and takes no value, leave {word!r} out"
    near = difflib.get_close_matches(word.partition("=")[0], names, 1)
    return f"unknown argument {word!r}; {f'did you mean {near[0]}?' if near else 'see --help'}"


def explain(message: str) -> str:
    """argparse's message about one flag as `--flag value; expected ...`; another one as it is."""
    if found := re.fullmatch(r"argument ([^\s/]+)\S*: invalid (\w+) value: (['\"])(.*)\3", message, re.DOTALL):
        return f"{found[1]} {found[4]}; expected {_KINDS.get(found[2], found[2])}"
    if found := re.fullmatch(
        r"argument ([^\s/]+)\S*: invalid choice: (['\"])(.*)\2 \(choose from (.*)\)", message, re.DOTALL
    ):
        return f"{found[1]} {found[3]}; expected one of {found[4].replace(chr(39), '')}"
    if found := re.fullmatch(r"argument ([^\s/]+)\S*: expected (.*)", message):
        return f"{found[1]} without a value; expected {found[2]}"
    return message if "; " in message else f"{message}; see --help"
