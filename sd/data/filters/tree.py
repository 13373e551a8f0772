"""The tree of a filter expression. `str` of a node is the expression in its one normal form."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

KEYWORDS = ("and", "or", "not", "in", "is", "missing", "true", "false")
PLAIN_NAME = re.compile(r"[^\W\d][\w.]*")


@dataclass(frozen=True)
class Name:
    """A column. `at`, here and below, is the place in the text, from 0."""

    name: str
    at: int = field(default=0, compare=False)

    def __str__(self):
        if PLAIN_NAME.fullmatch(self.name) and self.name.lower() not in KEYWORDS:
            return self.name
        return "`" + self.name.replace("`", "``") + "`"


@dataclass(frozen=True)
class Literal:
    """A number, a text, true or false."""

    value: int | float | str | bool
    at: int = field(default=0, compare=False)

    def __str__(self):
        if isinstance(self.value, str):
            return '"' + self.value.replace('"', '""') + '"'
        return repr(self.value).lower()


@dataclass(frozen=True)
class Compare:
    """`left op right`, op one of == != < <= > >=; one of the sides at least is a Name."""

    op: str
    left: Name | Literal
    right: Name | Literal
    at: int = field(default=0, compare=False)

    def __str__(self):
        return f"{self.left} {self.op} {self.right}"


@dataclass(frozen=True)
class OneOf:
    """`name in (value, ...)`, or `not in`."""

    name: Name
    values: tuple[Literal, ...]
    negated: bool = False

    def __str__(self):
        return f"{self.name} {'not ' * self.negated}in ({', '.join(map(str, self.values))})"


@dataclass(frozen=True)
class IsMissing:
    """`name is missing`, or `is not missing`."""

    name: Name
    negated: bool = False

    def __str__(self):
        return f"{self.name} is {'not ' * self.negated}missing"


@dataclass(frozen=True)
class IsTrue:
    """A column of bool by its name alone."""

    name: Name

    def __str__(self):
        return str(self.name)


@dataclass(frozen=True)
class Not:
    child: "Node"

    def __str__(self):
        return f"not {_in_parentheses(self.child, (And, Or))}"


@dataclass(frozen=True)
class And:
    children: tuple["Node", ...]

    def __str__(self):
        return " and ".join(_in_parentheses(child, (Or,)) for child in self.children)


@dataclass(frozen=True)
class Or:
    children: tuple["Node", ...]

    def __str__(self):
        return " or ".join(map(str, self.children))


Node = Compare | OneOf | IsMissing | IsTrue | Not | And | Or


def names_in(node: Node) -> Iterator[Name]:
    """Every Name of a tree, from left to right."""
    if isinstance(node, And | Or):
        for child in node.children:
            yield from names_in(child)
    elif isinstance(node, Not):
        yield from names_in(node.child)
    elif isinstance(node, Compare):
        yield from (side for side in (node.left, node.right) if isinstance(side, Name))
    else:
        yield node.name


def _in_parentheses(node, kinds):
    return f"({node})" if isinstance(node, kinds) else str(node)
