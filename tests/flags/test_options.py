"""A dataclass as a command line: what each kind of field reads, and what --help says of it."""

from dataclasses import dataclass

import pytest

from sd.errors import ArgumentError, InputError
from sd.flags.arguments import check_ranges
from sd.flags.options import REQUIRED, option, parse


@dataclass(frozen=True)
class Base:
    shared: str | None = option(None, "of the base", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    place: str = option(REQUIRED, "where", positional=True)
    size: int = option(REQUIRED, "how large")
    kind: str = option("a", "which", choices=("a", "b"))
    share: float | None = option(None, "how much", group="further ones", names=("--part",))
    words: list[str] | None = option(None, "several")
    numbers: list[int] | None = option(None, "several numbers (default: none)")
    on: bool = option(False, "a switch")

    def __post_init__(self):
        check_ranges(self, "size share", low=1)


def test_each_kind_of_field_is_read():
    assert parse(Options, ["here", "--size", "3"]) == Options(place="here", size=3)
    words = ["--kind", "b", "--part", "2.5", "--words", "x", "y", "--numbers", "4", "5", "--on", "--shared", "z"]
    expected = {"kind": "b", "share": 2.5, "words": ["x", "y"], "numbers": [4, 5], "on": True, "shared": "z"}
    assert parse(Options, ["here", "--size", "3", *words]) == Options(place="here", size=3, **expected)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["here"], "the following arguments are required: --size"),
        (["--size", "3"], "the following arguments are required: place"),
        (["here", "--size", "x"], "--size x; expected a whole number"),
        (["here", "--size", "3", "--kind", "c"], "--kind c; expected one of a, b"),
        (["here", "--size", "3", "--numbers", "1.5"], "--numbers 1.5; expected a whole number"),
    ],
)
def test_what_is_no_value_of_a_field_is_refused_in_one_line(words, says):
    with pytest.raises(InputError) as refused:
        parse(Options, words)
    assert str(refused.value).startswith(says) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("words", "name"), [(["--size", "0"], "size=0"), (["--size", "1", "--share", "0.5"], "share")])
def test_the_dataclass_checks_its_values(words, name):
    with pytest.raises(ArgumentError, match=f"{name}.*; expected at least 1"):
        parse(Options, ["here", *words])


def test_help_names_groups_defaults_and_the_bases_last(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(Options, ["--help"], description="what it does")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    text = " ".join(" ".join(lines).split())
    assert "what it does" in lines and "further ones:" in lines
    assert "--kind {a,b} which (default: a)" in text and "--on a switch" in text and "default: False" not in text
    assert "several numbers (default: none)" in text and "None" not in text
    assert text.index("--on a switch") < text.index("--shared NAME of the base")
