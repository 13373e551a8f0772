"""Text -> the tree of a filter expression: a tokenizer and a recursive-descent parser.

    filter      alternative ("or" alternative)*
    alternative condition ("and" condition)*
    condition   "not" condition | "(" filter ")" | test
    test        value op value | name ["not"] "in" "(" literal ("," literal)* ")" | name "is" ["not"] "missing" | name
    op          == != < <= > >=        (= and <> are read as == and !=)
    value       name | literal
    literal     number | "text" | 'text' | true | false        (a quote within a text is doubled)
    name        letters, digits, _ and . | `anything in backquotes`

Keywords may be in capitals.
"""

import math
import re
from dataclasses import dataclass
from unicodedata import east_asian_width

from sd.data.filters.tree import And, Compare, IsMissing, IsTrue, Literal, Name, Node, Not, OneOf, Or
from sd.errors import InputError

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<text>"(?:[^"]|"")*"|'(?:[^']|'')*')
    | (?P<quoted>`(?:[^`]|``)+`)
    | (?P<word>[^\W\d][\w.]*)
    | (?P<sign>==|!=|<=|>=|<>|[=<>(),])
    | (?P<end>$)
    )""",
    re.VERBOSE,
)
_OPERATORS = {"==": "==", "=": "==", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_DEEPEST, _LONGEST = 100, 100_000
_SHOWN = 100  # characters of a long text that an error shows around the place
_FOREIGN_SYNTAX = {  # of other languages -> what it is here
    "&": "and",
    "|": "or",
    "!": "not",
    "~": "not",
    "null": "is missing",
    "none": "is missing",
    "nan": "is missing",
    "\u201c": '"',  # curly quotes
    "\u201d": '"',
    "\u2018": "'",
    "\u2019": "'",
}


class FilterError(InputError):
    """A filter that cannot be read or used: what is wrong, and below it the text with a caret at the place."""

    def __init__(self, label: str, text: str, at: int, reason: str, more: str = ""):
        first = max(0, min(at - _SHOWN // 2, len(text) - _SHOWN))
        excerpt = "".join(character if character.isprintable() else " " for character in text[first : first + _SHOWN])
        width = sum(2 if east_asian_width(character) in "WF" else 1 for character in excerpt[: at - first])
        pointed = f"\n    {excerpt}\n    {' ' * width}^"
        super().__init__(f"{label}: {reason}{pointed}" + (f"\n{more}" if more else ""))
        self._parts = label, text, at, reason, more

    def __reduce__(self):
        return FilterError, self._parts


@dataclass(frozen=True)
class _Token:
    kind: str
    value: str
    at: int

    def __str__(self):
        return "the end" if self.kind == "end" else repr(self.value)


def parse(text: str, label: str = "--data_filter") -> Node:
    """The tree of an expression. label: where the text comes from, for messages. Raises FilterError."""
    if len(text) > _LONGEST:
        raise FilterError(label, text[:60] + "...", 0, f"{len(text)} characters; expected at most {_LONGEST}")
    return _Parser(text, label).parse_whole()


class _Parser:
    def __init__(self, text, label):
        self._text, self._label = text, label
        self._tokens, self._next, self._depth = list(self._tokenize()), 0, 0

    def parse_whole(self):
        if self._token.kind == "end":
            raise self._error(self._token, 'empty; expected an expression, as "aesthetic > 5", or no filter at all')
        tree = self._filter()
        if self._token.kind != "end":
            raise self._unexpected("'and', 'or' or the end")
        return tree

    # -- tokens ------------------------------------------------------------------------------------------------------

    def _tokenize(self):
        at = 0
        while True:
            match = _TOKEN.match(self._text, at)
            if match is None:
                raise self._bad_character(at + len(self._text[at:]) - len(self._text[at:].lstrip()))
            kind = match.lastgroup or ""
            yield _Token(kind, match[kind], match.start(kind))
            if kind == "end":
                return
            at = match.end()

    def _bad_character(self, at):
        character, rest = self._text[at], self._text[at:]
        if character in "\"'`":
            reason = f"no closing {character}"
        elif other := _FOREIGN_SYNTAX.get(character):
            reason = f"{character!r} is not known; write {other!r}"
        elif match := re.match(r"[+-]?[\d.]+\w*", rest):
            reason = f"{match[0]!r} is no number; a name like this stands in backquotes"
        else:
            reason = f"{character!r} is not known; a name with such a character stands in backquotes"
        return FilterError(self._label, self._text, at, reason)

    @property
    def _token(self):
        return self._tokens[self._next]

    def _advance(self):
        self._next += 1
        return self._tokens[self._next - 1]

    def _accept(self, *values):
        """Whether the next tokens are these keywords or signs; takes them if so."""
        ahead = self._tokens[self._next : self._next + len(values)]
        if [token.value.lower() for token in ahead if token.kind in ("word", "sign")] != list(values):
            return False
        self._next += len(values)
        return True

    def _error(self, token, reason):
        return FilterError(self._label, self._text, token.at, reason)

    def _unexpected(self, expected):
        token = self._token
        other = _FOREIGN_SYNTAX.get(token.value.lower()) if token.kind == "word" else None
        hint = f"; write {other!r}" if other else ""
        return self._error(token, f"expected {expected}, found {token}{hint}")

    # -- the grammar -------------------------------------------------------------------------------------------------

    def _filter(self):
        children = [self._alternative()]
        while self._accept("or"):
            children.append(self._alternative())
        return _joined(Or, children)

    def _alternative(self):
        children = [self._condition()]
        while self._accept("and"):
            children.append(self._condition())
        return _joined(And, children)

    def _condition(self):
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error(self._token, f"nested more than {_DEEPEST} deep")
        try:
            if self._accept("not"):
                return Not(self._condition())
            if not self._accept("("):
                return self._test()
            inner = self._filter()
            if not self._accept(")"):
                raise self._unexpected("')'")
            return inner
        finally:
            self._depth -= 1

    def _test(self):
        left = self._value("a column, '(' or 'not'")
        if isinstance(left, Name):
            if self._accept("not", "in"):
                return OneOf(left, self._list(), negated=True)
            if self._accept("in"):
                return OneOf(left, self._list())
            if self._accept("is"):
                negated = self._accept("not")
                if not self._accept("missing"):
                    raise self._unexpected("'missing'")
                return IsMissing(left, negated)
        if self._token.value not in _OPERATORS or self._token.kind != "sign":
            if isinstance(left, Name) and (self._token.kind == "end" or self._is_next("and", "or", ")")):
                return IsTrue(left)
            raise self._unexpected("a comparison, 'in' or 'is'" if isinstance(left, Name) else "a comparison")
        operator = self._advance()
        right = self._value("a value")
        if isinstance(left, Literal) and isinstance(right, Literal):
            raise self._error(operator, "compares two values and no column; a name with blanks stands in backquotes")
        if self._token.value in _OPERATORS and self._token.kind == "sign":
            raise self._error(self._token, f"a second comparison; write {_names(left, right)} twice, joined by 'and'")
        return Compare(_OPERATORS[operator.value], left, right, operator.at)

    def _is_next(self, *values):
        return self._token.kind in ("word", "sign") and self._token.value.lower() in values

    def _list(self):
        if not self._accept("("):
            raise self._unexpected("'(' and values")
        values = [self._literal()]
        while self._accept(","):
            values.append(self._literal())
        if not self._accept(")"):
            raise self._unexpected("',' or ')'")
        return tuple(values)

    def _literal(self):
        value = self._value("a value")
        if isinstance(value, Name):
            raise FilterError(self._label, self._text, value.at, f"{value} is a column; a text stands in quotes")
        return value

    def _value(self, expected):
        token = self._token
        at = token.at
        if token.kind == "number":
            return Literal(self._number(self._advance()), at)
        if token.kind == "text":
            quote = token.value[0]
            return Literal(self._advance().value[1:-1].replace(quote * 2, quote), at)
        if token.kind == "quoted":
            return Name(self._advance().value[1:-1].replace("``", "`"), at)
        if self._accept("true") or self._accept("false"):
            return Literal(token.value.lower() == "true", at)
        if token.kind != "word" or self._is_next("and", "or", "not", "in", "is", "missing"):
            raise self._unexpected(expected)
        return Name(self._advance().value, at)

    def _number(self, token):
        value = float(token.value)
        if math.isfinite(value):
            return int(token.value) if token.value.lstrip("+-").isdigit() else value
        raise self._error(token, f"{token.value} is larger than any number of 64 bits")


def _joined(kind, children):
    """One node for `a and b and c`, also where some stand in parentheses of their own."""
    flat = [part for child in children for part in (child.children if isinstance(child, kind) else (child,))]
    return kind(tuple(flat)) if len(flat) > 1 else flat[0]


def _names(*sides):
    return " and ".join(str(side) for side in sides if isinstance(side, Name))
