"""Filters as the embedded server reads them, and values by the types of their columns."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rtpool.testing import RealtimeServer
from rtpool.testing.literals import BadLiteral, read, read_array
from rtpool.testing.postgres import binding_matches
from tests.support.hand import Hand

CARS = {"schema": "public", "table": "cars"}
EMPTY = "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: "
UNABLE = (
    "Unable to subscribe to changes with given parameters. "
    "An exception happened so please check your connect parameters: "
)
OK = "Subscribed to PostgreSQL"


def told(server: RealtimeServer, binding: dict[str, Any]) -> str:
    """What a join with one binding is told of it."""
    with Hand(server) as hand:
        assert hand.join(postgres_changes=[binding])["status"] == "ok", "the join itself is never refused"
        return str(hand.receive()[4]["message"])


def failed(name: str, value: str, words: str, column: str = "id") -> str:
    shown = (
        f'[event: *, schema: public, table: cars, filters: [{{"{column}", "{name}", "{value}", false}}], select: nil]'
    )
    return f"{UNABLE}{shown}. Exception: ERROR {words}"


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        ({"table": "cars", "filter": "id=eq.1"}, EMPTY + '%{"filter" => "id=eq.1", "table" => "cars"}'),
        ({"schema": "public", "filter": "id=eq.1"}, EMPTY + '%{"filter" => "id=eq.1", "schema" => "public"}'),
        ({"event": "*", "filter": "id=eq.1"}, EMPTY + '%{"event" => "*", "filter" => "id=eq.1"}'),
        ({"schema": None, "table": "cars"}, EMPTY + '%{"schema" => nil, "table" => "cars"}'),
        ({**CARS, "filter": 5}, EMPTY + '%{"filter" => 5, "schema" => "public", "table" => "cars"}'),
        ({"table": "cars"}, OK),
        ({**CARS, "filter": "  "}, OK),
        ({**CARS, "filter": "id=eq"}, 'Error parsing `filter` params: ["eq"]'),
        ({**CARS, "filter": "id=not.xx.1"}, 'Error parsing `filter` params: ["xx", "1"]'),
        (
            {**CARS, "filter": "id=in.1"},
            "Error parsing `filter` params: `in` filter value must be wrapped by parentheses",
        ),
        (
            {**CARS, "filter": "id=eq.1,"},
            "Error parsing `filter` params: filter must not contain empty segments (check for extra commas)",
        ),
        ({**CARS, "select": [5, None]}, OK),
        (
            {**CARS, "filter": "id=is.TRUE"},
            failed(
                "is",
                "TRUE",
                "P0001 (raise_exception) invalid value for is filter: must be null, true, false, or unknown",
            ),
        ),
        (
            {**CARS, "filter": "id=in.(1,,2)"},
            failed("in", "{1,,2}", '22P02 (invalid_text_representation) malformed array literal: "{1,,2}"'),
        ),
        (
            {**CARS, "filter": "id=match.(a"},
            failed(
                "match",
                "(a",
                "P0001 (raise_exception) invalid regular expression for match filter: "
                "invalid regular expression: parentheses () not balanced",
            ),
        ),
    ],
)
def test_a_binding_is_judged_without_any_table(server: RealtimeServer, binding: dict[str, Any], words: str) -> None:
    assert told(server, binding) == words


@pytest.mark.parametrize("count", [99, 100, 101])
def test_an_in_takes_a_hundred_values(server: RealtimeServer, count: int) -> None:
    values = ",".join(map(str, range(count)))
    words = "P0001 (raise_exception) too many values for `in` filter. Maximum 100"
    wanted = failed("in", f"{{{values}}}", words) if count > 100 else OK
    assert told(server, {**CARS, "filter": f"id=in.({values})"}) == wanted


TYPES = {
    "i": "int4",
    "b": "bool",
    "f": "float4",
    "n": "numeric",
    "t": "text",
    "v": "varchar",
    "u": "uuid",
    "d": "date",
    "ts": "timestamp",
    "tz": "timestamptz",
    "c": "time",
    "ctz": "timetz",
    "j": "jsonb",
    "a": "_int4",
    "x": "bpchar",
}
SYNTAX = "22P02 (invalid_text_representation) invalid input syntax for type "
RAISED = "P0001 (raise_exception) "


@pytest.mark.parametrize(
    ("column", "name", "value", "words"),
    [
        (
            "i",
            "eq",
            "2147483648",
            '22003 (numeric_value_out_of_range) value "2147483648" is out of range for type integer',
        ),
        ("i", "eq", "2147483647", None),
        ("i", "in", "(1,NULL,x)", SYNTAX + 'integer: "x"'),
        ("f", "lt", "1e39", '22003 (numeric_value_out_of_range) "1e39" is out of range for type real'),
        ("n", "gt", "1e39", None),
        ("n", "gt", "-1e131071", None),
        ("n", "gt", "1e131072", "22003 (numeric_value_out_of_range) value overflows numeric format"),
        ("n", "gt", "1e99999999999999999999", "22003 (numeric_value_out_of_range) value overflows numeric format"),
        ("n", "gt", "ten", SYNTAX + 'numeric: "ten"'),
        ("u", "eq", "12", SYNTAX + 'uuid: "12"'),
        ("u", "eq", "{A0EEBC99-9C0B4EF8-BB6D6BB9BD380A11}", None),
        ("b", "eq", "maybe", SYNTAX + 'boolean: "maybe"'),
        ("b", "is", "unknown", None),
        ("i", "is", "null", None),
        ("i", "is", "true", RAISED + "is true filter requires a boolean column, got integer"),
        ("i", "like", "1%", RAISED + "operator like requires a text-compatible column type, got integer"),
        ("v", "imatch", "x", RAISED + "operator imatch requires a text-compatible column type, got character varying"),
        ("t", "ilike", "1%", None),
        (
            "tz",
            "gt",
            "soon",
            '22007 (invalid_datetime_format) invalid input syntax for type timestamp with time zone: "soon"',
        ),
        ("ts", "gt", "soon", '22007 (invalid_datetime_format) invalid input syntax for type timestamp: "soon"'),
        ("d", "eq", "2026-02-30", '22008 (datetime_field_overflow) date/time field value out of range: "2026-02-30"'),
        ("c", "lt", "25:00", '22008 (datetime_field_overflow) date/time field value out of range: "25:00"'),
        ("ts", "lt", "infinity", None),
        ("a", "eq", "{1}", None),
        ("a", "eq", "{b}", SYNTAX + 'integer: "b"'),
        ("j", "eq", "{", "22P02 (invalid_text_representation) invalid input syntax for type json"),
    ],
)
def test_a_declared_type_judges_the_value(
    server: RealtimeServer, column: str, name: str, value: str, words: str | None
) -> None:
    server.table("cars", TYPES, primary_key=["i"])
    shown = f"{{{value[1:-1]}}}" if name == "in" else value
    wanted = OK if words is None else failed(name, shown, words, column)
    assert told(server, {**CARS, "filter": f"{column}={name}.{value}"}) == wanted


@pytest.mark.parametrize(
    ("text", "cell", "matches"),
    [
        ("tz=eq.2026-01-01 12:00+02", "2026-01-01T10:00:00+00:00", True),
        ("tz=lt.2026-01-01T10:00:00.5Z", "2026-01-01T10:00:00.25+00:00", True),
        ("tz=gte.2026-01-01", "2025-12-31T23:59:60+00:00", True),
        ("tz=gt.2026-01-01T09:00:00-02:00", "2026-01-01T10:00:00+00:00", False),
        ("tz=lt.infinity", "9999-12-31T23:59:59+00:00", True),
        ("tz=gt.-infinity", "infinity", True),
        ("ts=eq.2026-01-01 10:00+05", "2026-01-01T10:00:00", True),
        ("ts=gt.2026-1-9", "2026-01-10T00:00:00", True),
        ("d=lt.2026-10-1", "2026-09-30", True),
        ("d=in.(2026-09-30 10:00,2026-10-01)", "2026-09-30", True),
        ("c=gt.9:30", "10:00:00", True),
        ("c=lte.24:00", "23:59:59.999999", True),
        ("ctz=eq.10:00+02", "08:00:00+00", False),
        ("ctz=lt.10:00+02", "08:00:00+01", True),
        ("u=eq.A0EEBC999C0B4EF8BB6D6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", True),
        ("u=gt.00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b", True),
        ("i=gt.9", "10", True),
        ("f=eq.0.1", 0.1, True),
        ("n=eq.NaN", "NaN", True),
        ("n=gt.Infinity", "NaN", True),
        ("n=eq.1.50", 1.5, True),
        ("b=eq.yes", True, True),
        ("x=eq.ab", "ab  ", True),
        ('a=eq."{1, 2}"', [1, 2], True),
        ("a=lt.{2}", [1, 9], True),
        ('j=eq.{"k": null}', {"k": None}, True),
        ("ts=isdistinct.2026-01-01", None, True),
        ("i=lt.5", "not a number", False),
    ],
)
def test_values_are_compared_by_the_type_of_their_column(
    server: RealtimeServer, text: str, cell: Any, matches: bool
) -> None:
    server.table("cars", TYPES, primary_key=["i"])
    column = text.partition("=")[0]
    with Hand(server) as hand:
        hand.join(postgres_changes=[{**CARS, "filter": text}])
        assert hand.receive()[4]["message"] == OK
        assert server.change("public", "cars", "INSERT", {column: cell}) == matches


@pytest.mark.parametrize(
    ("text", "row", "matches"),
    [
        ('t=eq."a"b"', {"t": '"a"b"'}, True),
        ('t=eq."a', {"t": '"a'}, True),
        ('t=eq."a\\"', {"t": '"a\\"'}, True),
        ('t=eq."a\\\\"', {"t": "a\\"}, True),
        ('t=eq.a"b,i=eq.1', {"t": 'a"b', "i": 1}, True),
        ('"t=eq.1', {'"t': "1"}, True),
        ("t=in.(null)", {"t": "null"}, False),
        ("t=in.(null)", {"t": None}, False),
        ("t=not.in.(a,NULL)", {"t": "b"}, False),
        ("t=in.(a,NULL)", {"t": "a"}, True),
        ('t=in.("null","")', {"t": ""}, True),
        (r"t=in.(n\ull)", {"t": "null"}, True),
        (r"t=in.(a\,b)", {"t": "a,b"}, True),
        ("t=in.( a b , c )", {"t": "a b"}, True),
        (r"t=in.(a\ )", {"t": "a "}, True),
        ("t=in.({a,b},{c,d})", {"t": "c"}, True),
        ("t=not.in.()", {"t": None}, True),
        ("t=in.( )", {"t": " "}, False),
    ],
)
def test_quotes_and_in_lists_are_read_as_the_database_does(text: str, row: dict[str, Any], matches: bool) -> None:
    assert binding_matches({**CARS, "filter": text}, "public", "cars", "INSERT", row) is matches


@pytest.mark.parametrize(
    "text", ["", "1", "{", "{1", "{1}}", "{1} x", "{,}", "{1,}", '{"a"b}', '{a"b"}', "{{1},2}", "{\\"]
)
def test_what_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(BadLiteral, match="malformed array literal"):
        read_array(text)


def test_arrays_of_arrays_keep_their_shape() -> None:
    assert read_array(' {{1, "2"} ,{NULL,"NULL"}} ') == [["1", "2"], [None, "NULL"]]
    assert read("_bool", "{t,f,NULL}") == [True, False, None]


def literal(element: Any) -> str:
    """An array's text, every element in quotes."""
    if isinstance(element, list):
        return "{" + ",".join(map(literal, element)) + "}"
    return "NULL" if element is None else '"' + element.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(st.lists(st.none() | st.text()) | st.lists(st.lists(st.none() | st.text(), min_size=1)))
def test_any_array_is_read_back(elements: list[Any]) -> None:
    assert read_array(literal(elements)) == elements


@given(st.datetimes(timezones=st.sampled_from([timezone(timedelta(hours=h, minutes=30)) for h in range(-11, 12)])))
def test_any_moment_is_read_back_in_utc(moment: datetime) -> None:
    assume(1 < moment.year < 9999)
    there = moment.astimezone(timezone.utc).replace(tzinfo=None)
    for text in (moment.isoformat(), str(moment)):
        assert read("timestamptz", text) == (0, there)
    assert read("timestamp", moment.isoformat()) == (0, moment.replace(tzinfo=None)), "the zone is not looked at"
    assert read("date", moment.isoformat())[1].date() == moment.date()


@given(st.text())
def test_no_text_breaks_a_reader(text: str) -> None:
    for kind in [*TYPES.values(), "float8", "_timestamptz", "_text"]:
        with contextlib.suppress(BadLiteral):
            read(kind, text)
