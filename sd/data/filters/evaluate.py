"""A filter's tree over the columns of a part: which rows pass. NumPy for numbers, Arrow's functions for text.

Logic of three values, as in SQL: a comparison with a missing value is neither true nor false, so are `not` of it and
what follows from it alone; a row passes where the whole is true. So a missing value never lets a row in, unless
`is missing` asks for it.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sd.data.filters.tree import And, Compare, IsMissing, IsTrue, Literal, Name, Node, Not, OneOf
from sd.data.parts.columns import BOOL, FLOAT, INT, TEXT, Column

_OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_NUMBER = "number"
_KIND = {FLOAT: _NUMBER, INT: _NUMBER, BOOL: BOOL, TEXT: TEXT}
_LEAST, _MOST = -(2**63), 2**63 - 1

Truth = tuple[np.ndarray, np.ndarray]  # bool [rows]: where it is true, where it is false; neither where it is unknown


class TypeMismatchError(ValueError):
    """A comparison of a column with what is of another kind. at: the place in the text."""

    def __init__(self, at: int, reason: str):
        super().__init__(at, reason)
        self.at, self.reason = at, reason


def evaluate(node: Node, columns: Mapping[str, Column], num_rows: int) -> Truth:
    """Where a tree is true and where it is false. A name that is not in `columns` is missing in all rows.

    Raises TypeMismatchError.
    """
    if isinstance(node, Not):
        true, false = evaluate(node.child, columns, num_rows)
        return false, true
    if isinstance(node, Compare):
        return _compare(node, columns, num_rows)
    if isinstance(node, OneOf):
        return _one_of(node, columns.get(node.name.name), num_rows)
    if isinstance(node, IsMissing):
        missing = ~_present(columns.get(node.name.name), num_rows)
        return (~missing, missing) if node.negated else (missing, ~missing)
    if isinstance(node, IsTrue):
        return _compare(Compare("==", node.name, Literal(True), node.name.at), columns, num_rows)
    one, other = (operator.and_, operator.or_) if isinstance(node, And) else (operator.or_, operator.and_)
    true, false = evaluate(node.children[0], columns, num_rows)
    for child in node.children[1:]:
        next_true, next_false = evaluate(child, columns, num_rows)
        true, false = one(true, next_true), other(false, next_false)
    return true, false


def _present(column, num_rows):
    if column is None:
        return np.zeros(num_rows, bool)
    if column.type == TEXT:
        return column.values.is_valid().to_numpy(zero_copy_only=False)
    return np.ones(num_rows, bool) if column.present is None else column.present


def _split(result, *columns):
    """(true, false) of a result where all the columns have a value."""
    true, false = result, ~result
    for column in columns:
        if column.type == TEXT:
            present = column.values.is_valid().to_numpy(zero_copy_only=False) if column.values.null_count else None
        else:
            present = column.present
        if present is not None:
            true, false = true & present, false & present
    return true, false


def _unknown(num_rows):
    return np.zeros(num_rows, bool), np.zeros(num_rows, bool)


def _compare(node, columns, num_rows):
    op, left, right = node.op, node.left, node.right
    if isinstance(left, Literal):
        op, left, right = _TURNED.get(op, op), right, left
    column = columns.get(left.name)
    if isinstance(right, Name):
        other = columns.get(right.name)
        if column is None or other is None:
            return _unknown(num_rows)
        _check(node.at, op, left.name, _KIND[column.type], f"column {right.name!r}, {_said(_KIND[other.type])}", other)
        compared = _TEXT_COLUMNS[op] if column.type == TEXT else _OPERATORS[op]
        return _split(compared(column.values, other.values), column, other)
    if column is None:
        return _unknown(num_rows)
    _check(node.at, op, left.name, _KIND[column.type], f"{_said(_kind(right.value))} {right}", right.value)
    if column.type == TEXT:
        return _split(_equal_text(column.values, right.value, op == "=="), column)
    return _split(_compared(column, op, right.value), column)


def _check(at, op, name, kind, other, value):
    """Raise TypeMismatchError unless a column of a kind can be compared so with a literal's value or a Column."""
    if kind != (_KIND[value.type] if isinstance(value, Column) else _kind(value)):
        raise TypeMismatchError(at, f"column {name!r} is {_said(kind)}, compared with {other}")
    if kind != _NUMBER and op not in ("==", "!="):
        raise TypeMismatchError(at, f"column {name!r} is {_said(kind)}, which {op!r} does not compare; use == or !=")


def _kind(value):
    return BOOL if isinstance(value, bool) else TEXT if isinstance(value, str) else _NUMBER


def _said(kind):
    return {_NUMBER: "a number", TEXT: "text", BOOL: "true or false"}[kind]


def _compared(column: Column, op: str, value: Any) -> np.ndarray:
    """A column of numbers or bool with a literal; whole numbers are compared as such, not as float64."""
    if column.type == INT:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not _LEAST <= value <= _MOST:  # of no int64 is the outcome in doubt
            return np.full(len(column.values), _OPERATORS[op](0, value))
    return _OPERATORS[op](column.values, float(value) if column.type == FLOAT else value)


def _one_of(node, column, num_rows):
    if column is None:
        return _unknown(num_rows)
    kind = _KIND[column.type]
    for literal in node.values:
        _check(literal.at, "==", node.name.name, kind, f"{_said(_kind(literal.value))} {literal}", literal.value)
    values = [literal.value for literal in node.values]
    if column.type == TEXT:
        import pyarrow as pa
        from pyarrow import compute

        found = compute.is_in(column.values, value_set=pa.array(values, pa.large_string()))
        result = found.to_numpy(zero_copy_only=False)
    else:
        result = np.zeros(num_rows, bool)
        for value in values:
            result |= _compared(column, "==", value)
    true, false = _split(result, column)
    return (false, true) if node.negated else (true, false)


def _equal_text(array, value, equal):
    from pyarrow import compute

    same = compute.fill_null(compute.equal(array, value), False).to_numpy(zero_copy_only=False)
    return same if equal else ~same


_TEXT_COLUMNS: dict[str, Callable] = {
    "==": lambda one, other: _equal_text(one, other, True),
    "!=": lambda one, other: _equal_text(one, other, False),
}
