"""Cells of changed rows by column type, native and as old servers wrote them."""

from __future__ import annotations

import copy
import json
import math
import pickle
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtpool.protocol.cells import convert_rows
from rtpool.protocol.json_engine import NumberText


def convert(cell: Any, column_type: str, **others: Any) -> Any:
    columns = [{"name": "c", "type": column_type}, {"name": "at", "type": "timestamptz"}]
    [row] = convert_rows([{"c": cell, **others}], columns)
    return row["c"]


def same(one: Any, other: Any) -> bool:
    """Equal and of one type all the way down, since True == 1 == 1.0 == Decimal(1)."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    ("column_type", "text", "value"),
    [
        ("bool", "t", True),
        ("bool", "f", False),
        ("bool", "yes", "yes"),
        ("int2", "-5", -5),
        ("int4", "5", 5),
        ("int8", "9007199254740993", 9007199254740993),
        ("int8", "5.0", "5.0"),
        ("int8", "1_000", "1_000"),
        ("int8", "", ""),
        ("int8", "9" * 5_000, "9" * 5_000),
        ("oid", "4294967295", 4294967295),
        ("float4", "1.5", 1.5),
        ("float8", "1e-07", 1e-07),
        ("float8", "-Infinity", -math.inf),
        ("float8", "much", "much"),
        ("numeric", "12345678901234567890.123456789", Decimal("12345678901234567890.123456789")),
        ("numeric", "1.10", Decimal("1.10")),
        ("numeric", "x", "x"),
        ("numeric", "1e99999999999999999999", "1e99999999999999999999"),
        ("json", '{"k": [1, null, 0.5]}', {"k": [1, None, 0.5]}),
        ("jsonb", "12", 12),
        ("jsonb", "{not json", "{not json"),
        ("jsonb", "\ud800", "\ud800"),
        ("timestamp", "2026-03-01 10:20:31.5", "2026-03-01T10:20:31.5"),
        ("timestamptz", "2026-03-01 10:20:31+00", "2026-03-01 10:20:31+00"),
        ("text", "t", "t"),
        ("uuid", "5", "5"),
        ("mood", "{1}", "{1}"),
        ("_int4", "{1,2,NULL}", [1, 2, None]),
        ("_int4", "{}", []),
        ("_bool", "{t,f,null}", [True, False, None]),
        ("_numeric", "{1.10,-2}", [Decimal("1.10"), Decimal(-2)]),
        (
            "_text",
            r'{a,"b c","d,e","q\"","back\\slash","NULL",NULL,""}',
            ["a", "b c", "d,e", 'q"', "back\\slash", "NULL", None, ""],
        ),
        ("_text", "{plain text, }", ["plain text", " "]),
        ("_jsonb", r'{"{\"k\": 1}",2}', [{"k": 1}, 2]),
        ("_timestamp", '{"2026-03-01 10:20:31"}', ["2026-03-01T10:20:31"]),
        ("_mood", "{sad,happy}", ["sad", "happy"]),
        ("_int4", "{{1,2},{3,4}}", "{{1,2},{3,4}}"),
        ("_int4", "[0:1]={1,2}", "[0:1]={1,2}"),
        ("_int4", "{1,,2}", "{1,,2}"),
        ("_int4", "{1,2,}", "{1,2,}"),
        ("_int4", "1,2", "1,2"),
        ("_int4", "{", "{"),
        ("_text", '{"a}', '{"a}'),
        ("_text", '{"a"b}', '{"a"b}'),
        ("_box", "{(1,1),(0,0);(2,2),(1,1)}", "{(1,1),(0,0);(2,2),(1,1)}"),
    ],
)
def test_text_of_an_old_server_is_read_by_the_columns_type(column_type: str, text: str, value: Any) -> None:
    assert same(convert(text, column_type), value)
    assert convert(None, column_type) is None


def test_not_a_number_is_read_too() -> None:
    assert math.isnan(convert("NaN", "float8"))
    assert convert("NaN", "numeric").is_nan()


@pytest.mark.parametrize(
    ("column_type", "cell", "value"),
    [
        ("int8", 9007199254740993, 9007199254740993),
        ("bool", True, True),
        ("float8", 1.5, 1.5),
        ("jsonb", {"k": [1, 0.5]}, {"k": [1, 0.5]}),
        ("timestamp", "2024-01-02T03:04:05.678", "2024-01-02T03:04:05.678"),
        ("_text", ["a", "b c", None], ["a", "b c", None]),
        ("numeric", 5, Decimal(5)),
        ("numeric", 10**400, Decimal(10**400)),
        ("numeric", 0.1, Decimal("0.1")),
        ("numeric", NumberText("1.10"), Decimal("1.10")),
        ("numeric", NumberText("1e400"), Decimal("1e400")),
        ("numeric", True, True),
        ("_numeric", [1, NumberText("0.10"), None], [Decimal(1), Decimal("0.10"), None]),
        ("_numeric", [[1, 2], [0.5, None]], [[Decimal(1), Decimal(2)], [Decimal("0.5"), None]]),
        ("numeric", {"k": 1}, {"k": 1}),
    ],
)
def test_a_native_cell_stays_but_for_numeric_which_is_decimal(column_type: str, cell: Any, value: Any) -> None:
    assert same(convert(cell, column_type), value)


def test_a_json_string_of_a_server_that_writes_natively_is_no_json_text() -> None:
    assert convert("12", "jsonb", id=1) == "12"
    assert convert("12", "jsonb", at="2026-03-01T10:20:31+00:00") == "12"
    assert convert("12", "jsonb", id="1", at="2026-03-01 10:20:31+00") == 12
    [old] = convert_rows([{"id": "1", "j": "[1]"}], [{"name": "id", "type": "int8"}, {"name": "j", "type": "json"}])
    assert old == {"id": 1, "j": [1]}
    old_row, row = convert_rows([{"j": "[1]"}, {"j": "[1]", "on": False}], [{"name": "j", "type": "json"}])
    assert (old_row, row) == ({"j": "[1]"}, {"j": "[1]", "on": False})


def test_rows_are_not_changed_and_rubbish_counts_as_empty() -> None:
    row = {"c": "t", "extra": "t"}
    assert convert_rows([row, None, [1]], [{"name": "c", "type": "bool"}, {"name": "gone", "type": "int4"}]) == [
        {"c": True, "extra": "t"},
        {},
        {},
    ]
    assert row == {"c": "t", "extra": "t"}


def test_a_number_with_its_text_is_a_float_for_everybody_else() -> None:
    number = NumberText("1.10")
    for copied in (number, copy.deepcopy(number), pickle.loads(pickle.dumps(number))):
        assert (copied, copied.text, json.dumps(copied)) == (1.1, "1.10", "1.1")


def test_a_value_nested_too_deep_is_left_as_it_is() -> None:
    cell: Any = 0.5
    for _ in range(5_000):
        cell = [cell]
    assert convert(cell, "_numeric")[0][0][0][0][0][0] is cell[0][0][0][0][0][0]


RUBBISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text('{}",\\NUL1. t'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
TYPES = st.sampled_from(
    ["bool", "int8", "float8", "numeric", "json", "timestamp", "text", "_", "", *("_int4", "_numeric")]
)


@given(rows=st.lists(st.dictionaries(st.sampled_from("abc"), RUBBISH)), types=st.lists(TYPES | RUBBISH, max_size=3))
def test_nothing_in_a_row_or_its_columns_raises(rows: list[Any], types: list[Any]) -> None:
    converted = convert_rows(rows, [{"name": name, "type": kind} for name, kind in zip("abc", types, strict=False)])
    assert [set(row) for row in converted] == [set(row) for row in rows]
