"""Filter expressions: SQLite's WHERE says which rows pass; messages point at the place that is wrong."""

import math
import pickle
import sqlite3

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd.data.filters.evaluate import TypeMismatchError, where
from sd.data.filters.parse import FilterError, parse
from sd.data.filters.tree import names_in
from sd.data.parts.columns import from_arrow

# name -> (Arrow's type, values, how a literal of that type is written here, and in SQL)
ODD_NAMES = ("and", "a b", "größe", "clip.score", "`x`", "1st")
TEXTS = ("", "a", "it's", 'say "hi"', "and", "ü", "a > 5", "NULL")
NUMBERS = st.sampled_from([-3, 0, 1, 5, 2**53 + 1, 2**63 - 1, -(2**63)])
FLOATS = st.sampled_from([-1.5, -0.0, 0.1, 5.0, 1e300, -1e-300, 0.30000000000000004])


def columns_of(draw, num_rows):
    kinds = draw(st.lists(st.sampled_from(["float", "int", "bool", "text"]), min_size=2, max_size=5))
    names = draw(st.permutations(["aesthetic", "width2", *ODD_NAMES]))
    values = {"float": FLOATS, "int": NUMBERS, "bool": st.booleans(), "text": st.sampled_from(TEXTS)}
    types = {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_(), "text": pa.large_string()}
    table = {}
    for name, kind in zip(names, kinds, strict=False):
        drawn = draw(st.lists(st.none() | values[kind], min_size=num_rows, max_size=num_rows))
        table[name] = (kind, pa.array(drawn, types[kind]))
    return table


def quoted(name, mark):
    return mark + name.replace(mark, 2 * mark) + mark


def literal(draw, kind):
    """(ours, SQL's)."""
    if kind == "text":
        text = draw(st.sampled_from(TEXTS))
        return quoted(text, draw(st.sampled_from("'\""))), quoted(text, "'")
    if kind == "bool":
        value = draw(st.booleans())
        return draw(st.sampled_from([str(value), str(value).lower()])), str(int(value))
    value = draw(NUMBERS if kind == "int" else FLOATS)
    return repr(value), repr(value)


def condition_of(draw, table):
    """One test as (ours, SQL's)."""
    name = draw(st.sampled_from(list(table)))
    kind, _ = table[name]
    plain = name in ("aesthetic", "width2", "größe", "clip.score")
    ours, sql = name if plain and draw(st.booleans()) else quoted(name, "`"), quoted(name, '"')
    form = draw(st.integers(0, 4))
    if form == 0:
        negated = draw(st.sampled_from(["", "not "]))
        return f"{ours} is {negated}missing", f"{sql} IS {negated}NULL"
    if form == 1:
        negated = draw(st.sampled_from(["", "not "]))
        values = [literal(draw, kind) for _ in range(draw(st.integers(1, 3)))]
        one, other = (", ".join(side) for side in zip(*values, strict=True))
        return f"{ours} {negated}in ({one})", f"{sql} {negated}IN ({other})"
    if form == 2 and kind == "bool":
        return ours, f"{sql} = 1"
    operators = ["==", "!="] + (["<", "<=", ">", ">="] if kind in ("int", "float") else [])
    operator = draw(st.sampled_from(operators))
    value, sql_value = literal(draw, kind)
    same = [other for other in table if table[other][0] == kind]
    if form == 3:
        other = draw(st.sampled_from(same))
        return f"{ours} {operator} {quoted(other, '`')}", f"{sql} {operator} {quoted(other, chr(34))}"
    if draw(st.booleans()):
        return f"{value} {operator} {ours}", f"{sql_value} {operator} {sql}"
    return f"{ours} {operator} {value}", f"{sql} {operator} {sql_value}"


def expression(draw, table, depth):
    form = draw(st.integers(0, 5)) if depth else 0
    if form < 2:
        return condition_of(draw, table)
    if form == 2:
        ours, sql = expression(draw, table, depth - 1)
        return f"not ({ours})", f"NOT ({sql})"
    one, other = expression(draw, table, depth - 1), expression(draw, table, depth - 1)
    if form == 3:  # without parentheses: precedence is SQL's
        return tuple(f"{a} and {b} or not {a}" for a, b in zip(one, other, strict=True))
    word = draw(st.sampled_from(["and", "or"]))
    return tuple(f"({a}) {word} ({b})" for a, b in zip(one, other, strict=True))


condition_of.__test__ = False


def sqlite_passes(table, num_rows, where):
    base = sqlite3.connect(":memory:")
    kinds = {"float": "REAL", "int": "INTEGER", "bool": "INTEGER", "text": "TEXT"}
    named = ", ".join(f"{quoted(name, chr(34))} {kinds[kind]}" for name, (kind, _) in table.items())
    base.execute(f"CREATE TABLE t (row INTEGER, {named})")
    columns = [array.to_pylist() for _, array in table.values()]
    marks = ", ".join("?" * (len(table) + 1))
    base.executemany(f"INSERT INTO t VALUES ({marks})", zip(range(num_rows), *columns, strict=True))
    return [row for (row,) in base.execute(f"SELECT row FROM t WHERE {where} ORDER BY row")]


def passes(text, table, num_rows):
    columns = {name: from_arrow(array) for name, (_, array) in table.items()}
    true, false = (where(parse(text), columns, num_rows, expected) for expected in (True, False))
    assert not (true & false).any()
    return np.flatnonzero(true).tolist()


@settings(max_examples=60)
@given(st.data())
def test_the_rows_that_pass_are_those_of_sql(data):
    num_rows = data.draw(st.integers(0, 8))
    table = columns_of(data.draw, num_rows)
    ours, sql = expression(data.draw, table, 3)
    expected = sqlite_passes(table, num_rows, sql)
    assert passes(ours, table, num_rows) == expected
    normal = str(parse(ours))
    assert passes(normal, table, num_rows) == expected
    assert str(parse(normal)) == normal


PIECES = ("a", ">", "5", "and", "or", "not", "(", ")", "in", "is", "missing", "'", '"', "`", ",", "==", "1e5")
SCORES = {"a": ("float", pa.array([6.0, 5.0, None, math.nan])), "url": ("text", pa.array(["x", None, "y", "x"]))}


@pytest.mark.parametrize(
    "text, rows",
    [
        ("a > 5", [0]),
        ("not (a > 5)", [1]),  # what is missing fails under `not` too
        ("not a > 5", [1]),
        ("a != 6", [1]),
        ("not (a > 5) or a is missing", [1, 2, 3]),
        ("a is missing", [2, 3]),
        ("a is not missing", [0, 1]),
        ("not (a is missing)", [0, 1]),
        ("a > 5 or url == 'y'", [0, 2]),
        ("a > 5 and b > 5", []),  # a column that this part lacks
        ("a > 5 or b > 5", [0]),
        ("b is missing", [0, 1, 2, 3]),
        ("url in ('x')", [0, 3]),
        ("url not in ('x')", [2]),
        ("A IS MISSING", [0, 1, 2, 3]),  # names are as they are, keywords in capitals too
        ("a\n>\t5", [0]),
        ("a=6", [0]),
        ("a<>6", [1]),
        ("5 < a", [0]),
        ("a >= +5.e0", [0, 1]),
        ("a > -.5e1", [0, 1]),
    ],
)
def test_what_is_missing_fails_its_comparison(text, rows):
    assert passes(text, SCORES, 4) == rows


def test_whole_numbers_are_compared_as_such():
    """float64 has 53 bits; 2**53 + 1 and 2**53 are one number there."""
    table = {"n": ("int", pa.array([2**53, 2**53 + 1, 2**63 - 1]))}
    assert passes(f"n == {2**53 + 1}", table, 3) == [1]
    assert passes(f"n > {2**53}.0", table, 3) == [1, 2]
    assert passes(f"n < {2**63}", table, 3) == [0, 1, 2]
    assert passes(f"n in ({2**63}, 1.5, {2**53}.0)", table, 3) == [0]
    assert passes("n > -1e300", table, 3) == [0, 1, 2]


def caret_of(error):
    """The text below the first line with the place that the caret points at."""
    _, shown, pointer, *_ = str(error).split("\n")
    return shown[len(pointer) - 1 :], shown


@pytest.mark.parametrize(
    "text, reason, at",
    [
        ("", "empty; expected an expression", ""),
        ("  ", "empty", ""),
        ("a >", "expected a value, found the end", ""),
        ("a > > 5", "expected a value, found '>'", "> 5"),
        ("a b > 5", "expected a comparison, 'in' or 'is', found 'b'", "b > 5"),
        ("a > 5 b", "expected 'and', 'or' or the end, found 'b'", "b"),
        ("(a > 5", "expected ')', found the end", ""),
        ("a > 5)", "expected 'and', 'or' or the end, found ')'", ")"),
        ("a > 5 & b < 2", "'&' is not known; write 'and'", "& b < 2"),
        ("!a", "'!' is not known; write 'not'", "!a"),
        ("a is null", "expected 'missing', found 'null'; write 'is missing'", "null"),
        ("a == 'x", "no closing '", "'x"),
        ("a == “x”", "'“' is not known; write '\"'", "“x”"),
        ("0.2 < a < 5", "a second comparison; write a twice", "< 5"),
        ("5 > 3", "compares two values and no column", "> 3"),
        ("5", "expected a comparison, found the end", ""),
        ("a > 512px", "'512px' is no number", "512px"),
        ("a > 1e999", "larger than any number of 64 bits", "1e999"),
        ("a in ()", "expected a value, found ')'", ")"),
        ("a in 5", "expected '(' and values", "5"),
        ("a in (b)", "b is a column; a text stands in quotes", "b)"),
        ("a in (1 2)", "expected ',' or ')'", "2)"),
        ("and > 5", "expected a column, '(' or 'not', found 'and'", "and > 5"),
        ("a > and", "expected a value, found 'and'", "and"),
        ("clip-score > 1", "'-' is not known; a name with such a character stands in backquotes", "-score > 1"),
        ("not " * 100 + "a > 5", "nested more than 100 deep", "a > 5"),
        ("(" * 5000 + "a", "nested more than 100 deep", "(" * 50),
        ("größe 漢 > 5", "found '漢'", None),
        ("__import__('os')", "expected a comparison, 'in' or 'is', found '('", "('os')"),
    ],
)
def test_a_mistake_is_pointed_at(text, reason, at):
    with pytest.raises(FilterError) as caught:
        parse(text, "--data_filter")
    assert str(caught.value).startswith("--data_filter: ") and reason in str(caught.value)
    if at is not None:
        assert caret_of(caught.value)[0] == at
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_caret_stands_below_wide_letters():
    with pytest.raises(FilterError) as caught:
        parse("漢 漢")
    assert str(caught.value).split("\n")[2] == "    " + "   " + "^"


@settings(max_examples=100)
@given(st.text(max_size=30) | st.lists(st.sampled_from(PIECES)).map(" ".join))
def test_any_text_is_read_or_refused(text):
    try:
        tree = parse(text)
    except FilterError:
        return
    assert parse(str(tree)) == tree and list(names_in(tree))


@pytest.mark.parametrize(
    "text, reason",
    [
        ("url > 5", "column 'url' is text, compared with a number 5"),
        ("a == 'x'", "column 'a' is a number, compared with text \"x\""),
        ("a", "column 'a' is a number, compared with true or false true"),
        ("url < 'x'", "column 'url' is text, which '<' does not compare"),
        ("url in ('x', 5)", "compared with a number 5"),
        ("a == url", "column 'a' is a number, compared with column 'url', text"),
    ],
)
def test_unlike_types_are_refused(text, reason):
    with pytest.raises(TypeMismatchError, match=r".") as caught:
        passes(text, SCORES, 4)
    assert reason in caught.value.reason
