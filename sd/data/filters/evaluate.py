"""A filter's tree over the columns of a part: which rows pass. NumPy for numbers, Arrow's functions for text.

Logic of three values, as in SQL: a comparison with a missing value is neither true nor false, so are `not` of it and
what follows from it alone; a row passes where the whole is true. So a missing value never lets a row in, unless
`is missing` asks for it.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sd.data.filters.tree import And, Compare, IsMissing, IsTrue, Literal, Name, Node, Not, OneOf
from sd.data.parts.columns import BOOL, FLOAT, INT, INT_MAX, INT_MIN, TEXT, Column

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


class TypeMismatchError(ValueError):
    """A comparison of a column with what is of another kind. at: the place in the text."""

    def __init__(self, at: int, reason: str):
        super().__init__(at, reason)
        self.at, self.reason = at, reason


def where(node: Node, columns: Mapping[str, Column], num_rows: int, truth: bool = True) -> np.ndarray:
    """Where a tree is true, or where it is false (not `wanted`): bool [rows]. It is neither where it is unknown.

    A name that is not in `columns` is missing in all rows. Raises TypeMismatchError.
    """
    if isinstance(node, Compare):
        return _compare(node, columns, num_rows, truth)
    if isinstance(node, Not):
        return where(node.child, columns, num_rows, not truth)
    if isinstance(node, OneOf):
        return _one_of(node, columns.get(node.name.name), num_rows, truth)
    if isinstance(node, IsMissing):
        present = _present(columns.get(node.name.name), num_rows)
        return present if node.negated == truth else ~present
    if isinstance(node, IsTrue):
        return _compare(Compare("==", node.name, Literal(True), node.name.at), columns, num_rows, truth)
    joined = operator.and_ if isinstance(node, And) == truth else operator.or_  # the second by De Morgan
    return functools.reduce(joined, (where(child, columns, num_rows, truth) for child in node.children))


def _present(column, num_rows):
    if column is None:
        return np.zeros(num_rows, bool)
    if column.type == TEXT:
        return column.values.is_valid().to_numpy(zero_copy_only=False)
    return np.ones(num_rows, bool) if column.present is None else column.present


def _where_present(result, truth, *columns):
    """Where a result is the wanted one and all the columns have a value."""
    if not truth:
        result = ~result
    for column in columns:
        if column.num_missing if column.type == TEXT else column.present is not None:
            result = result & _present(column, len(result))
    return result


def _compare(node, columns, num_rows, truth):
    op, left, right = node.op, node.left, node.right
    if isinstance(left, Literal):
        op, left, right = _TURNED.get(op, op), right, left
    column = columns.get(left.name)
    if isinstance(right, Name):
        other = columns.get(right.name)
        if column is None or other is None:
            return np.zeros(num_rows, bool)
        _check(
            node.at, op, left.name, _KIND[column.type], f"column {right.name!r}, {_kind_name(_KIND[other.type])}", other
        )
        compared = _TEXT_COLUMNS[op] if column.type == TEXT else _OPERATORS[op]
        return _where_present(compared(column.values, other.values), truth, column, other)
    if column is None:
        return np.zeros(num_rows, bool)
    _check(node.at, op, left.name, _KIND[column.type], f"{_kind_name(_kind(right.value))} {right}", right.value)
    if column.type == TEXT:
        return _where_present(_equal_text(column.values, right.value, op == "=="), truth, column)
    return _where_present(_compared(column, op, right.value), truth, column)


def _check(at, op, name, kind, other, value):
    """Raise TypeMismatchError unless a column of a kind can be compared so with a literal's value or a Column."""
    if kind != (_KIND[value.type] if isinstance(value, Column) else _kind(value)):
        raise TypeMismatchError(at, f"column {name!r} is {_kind_name(kind)}, compared with {other}")
    if kind != _NUMBER and op not in ("==", "!="):
        raise TypeMismatchError(
            at, f"column {name!r} is {_kind_name(kind)}, which {op!r} does not compare; use == or !="
        )


def _kind(value):
    return BOOL if isinstance(value, bool) else TEXT if isinstance(value, str) else _NUMBER


def _kind_name(kind):
    return {_NUMBER: "a number", TEXT: "text", BOOL: "true or false"}[kind]


def _compared(column: Column, op: str, value: Any) -> np.ndarray:
    """A column of numbers or bool with a literal; whole numbers are compared as such, not as float64."""
    if column.type == INT:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:  # of no int64 is the outcome in doubt
            return np.full(len(column.values), _OPERATORS[op](0, value))
    return _OPERATORS[op](column.values, float(value) if column.type == FLOAT else value)


def _one_of(node, column, num_rows, truth):
    if column is None:
        return np.zeros(num_rows, bool)
    kind = _KIND[column.type]
    for literal in node.values:
        _check(literal.at, "==", node.name.name, kind, f"{_kind_name(_kind(literal.value))} {literal}", literal.value)
    values = [literal.value for literal in node.values]
    if column.type == TEXT:
        import pyarrow as pa
        from pyarrow import compute

        is_in = compute.is_in(column.values, value_set=pa.array(values, pa.large_string()))
        result = is_in.to_numpy(zero_copy_only=False)
    else:
        result = np.zeros(num_rows, bool)
        for value in values:
            result |= _compared(column, "==", value)
    return _where_present(result, truth != node.negated, column)


def _equal_text(array, value, equal):
    from pyarrow import compute

    same = compute.fill_null(compute.equal(array, value), False).to_numpy(zero_copy_only=False)
    return same if equal else ~same


_TEXT_COLUMNS: dict[str, Callable] = {
    "==": lambda one, other: _equal_text(one, other, True),
    "!=": lambda one, other: _equal_text(one, other, False),
}
