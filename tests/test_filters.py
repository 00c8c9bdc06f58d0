"""The filter builder against a model and the embedded server; filters written by hand against recordings."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtpool
from rtpool.filters import Filter, check_filter, col
from rtpool.testing import RealtimeServer
from rtpool.testing.postgres import binding_matches, check_binding
from tests.support.recorder import Recorder
from tests.support.transcripts import load


class Color(str, enum.Enum):
    RED = "red"


CEST = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (col("status").eq("rented") & col("id").gt(5), "status=eq.rented,id=gt.5"),
        (col("a").neq(1) & col("a").lt(2) & col("a").lte(3) & col("a").gte(4), "a=neq.1,a=lt.2,a=lte.3,a=gte.4"),
        (col("a").in_([1, 2.5, True]), "a=in.(1,2.5,true)"),
        (col("a").in_(["x", "a,b", "", "NULL", "{}", " y", 'q"']), r'a=in.(x,"a,b","","NULL","{}"," y","q\"")'),
        (col("a").in_([r"a\b"]) & col("b").eq(r"a\b"), r'a=in.("a\\b"),b=eq."a\\b"'),
        (col("a").like("x%") & col("a").ilike("_y"), "a=like.x%,a=ilike._y"),
        (col("a").match("^(a|b)$") & col("a").imatch(r"\d"), r'a=match."^(a|b)$",a=imatch."\\d"'),
        (col("a").is_(None) & col("b").is_(True) & col("c").is_("unknown"), "a=is.null,b=is.true,c=is.unknown"),
        (col("a").is_distinct("null"), "a=isdistinct.null"),
        (~col("a").eq(1) & ~col("b").in_([1]) & ~~col("c").eq(2), "a=not.eq.1,b=not.in.(1),c=eq.2"),
        (col("a").eq(None) & col("b").neq(None) & col("c").is_distinct(None), "a=is.null,b=not.is.null,c=not.is.null"),
        (col("a").eq("") & col("b").eq("a b") & col("c").eq("x=y.z&w"), "a=eq.,b=eq.a b,c=eq.x=y.z&w"),
        (col("a").eq(r'say "hi", \o/ (now)'), r'a=eq."say \"hi\", \\o/ (now)"'),
        (col("a").eq(" outer") & col("b").eq("outer\u3000"), 'a=eq." outer",b=eq."outer\u3000"'),
        (
            col("a").eq(Color.RED) & col("b").eq(10**30) & col("c").eq(Decimal("1.10")),
            f"a=eq.red,b=eq.{10**30},c=eq.1.10",
        ),
        (col("a").eq(1e-7) & col("b").eq(-0.5), "a=eq.1e-07,b=eq.-0.5"),
        (col("a").gt(date(2026, 3, 1)), "a=gt.2026-03-01"),
        (col("a").gt(datetime(2026, 3, 1, 10, tzinfo=CEST)), "a=gt.2026-03-01T10:00:00+02:00"),
        (col("a").eq(UUID(int=1)), "a=eq.00000000-0000-0000-0000-000000000001"),
        (col("Price (EUR)").eq(5) & col("v1.2").eq(6), "Price (EUR)=eq.5,v1.2=eq.6"),
    ],
)
def test_a_filter_is_the_servers_text(made: Filter, text: str) -> None:
    assert str(made) == check_filter(made) == check_filter(text) == text
    assert repr(made) == f"<rtpool.filters.Filter {text}>"


def test_filters_are_equal_and_hash_by_their_text() -> None:
    one, same = col("a").eq(1) & col("b").is_(None), col("a").eq("1") & col("b").eq(None)
    assert one == same
    assert {one: "x"}[same] == "x"
    assert one != col("b").eq(None) & col("a").eq(1)
    with pytest.raises(AttributeError):
        one.conditions = ()  # type: ignore[misc]


A = col("a").eq(1)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: A | col("b").eq(2), rtpool.InvalidValue, "no OR.*in_.*twice"),
        (lambda: "a=eq.1" | A, rtpool.InvalidValue, "no OR"),
        (lambda: A & "b=eq.2", rtpool.InvalidType, "two filters, not a filter and str"),
        (lambda: "b=eq.2" & A, rtpool.InvalidType, "two filters"),
        (lambda: ~(A & A), rtpool.InvalidValue, "one condition, not 2.*an OR"),
        (lambda: A and A, rtpool.InvalidType, "join with &, negate with ~"),
        (lambda: not A, rtpool.InvalidType, "neither true nor false"),
        (lambda: col("a").in_([]), rtpool.InvalidValue, "1 to 100 values, not 0"),
        (lambda: col("a").in_(range(101)), rtpool.InvalidValue, "1 to 100 values, not 101"),
        (lambda: col("a").in_("abc"), rtpool.InvalidType, "list of values, not str"),
        (lambda: col("a").in_(5), rtpool.InvalidType, "list of values, not int"),
        (lambda: col("a").in_([None]), rtpool.InvalidType, "not NoneType"),
        (lambda: col("a").lt(None), rtpool.InvalidType, "not NoneType"),
        (lambda: col("a").eq(b"x"), rtpool.InvalidType, "not bytes"),
        (lambda: col("a").like(5), rtpool.InvalidType, "pattern must be str, not int"),
        (lambda: col("a").is_("maybe"), rtpool.InvalidValue, "None, True, False or 'unknown', not 'maybe'"),
        (lambda: col("a").eq(math.nan), rtpool.InvalidValue, "finite, not nan"),
        (lambda: col("a").eq(-math.inf), rtpool.InvalidValue, "finite, not -inf"),
        (lambda: col("a").eq(Decimal("sNaN")), rtpool.InvalidValue, "finite"),
        (lambda: col("a").eq("\0"), rtpool.InvalidValue, "NUL"),
        (lambda: col("a").eq("\ud800"), rtpool.InvalidValue, "UTF-8"),
        (lambda: col(3), rtpool.InvalidType, "name must be str, not int"),
        *[
            (lambda n=n: col(n), rtpool.InvalidValue, "cannot be a column")
            for n in ("", " a", "a=b", "a,b", "a(b", 'a."b')
        ],
    ],
)
def test_what_the_builder_cannot_say_is_refused(make: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plate", "position 0: 'plate' names no column; write column=operator.value, e.g. status=eq.rented"),
        ("=eq.1", "position 0: '=eq.1' names no column"),
        ("id=5", "position 0: 'id=5' has no operator; write column=operator.value"),
        ("id=not.eq", "has no operator"),
        ("id=eq.1,plate=xx.A", "position 14: unknown operator 'xx'; .* with one of eq, neq, .* isdistinct"),
        ("id=EQ.1", "position 3: unknown operator 'EQ'"),
        ("id=not.like_.1", "position 7: unknown operator 'like_'"),
        ("id=eq.1,,id=eq.2", "position 8: a condition is empty; remove the extra comma"),
        ("id=eq.1, ", "position 9: a condition is empty"),
        (",id=eq.1", "position 0: a condition is empty"),
        ("id=in.5", r"position 6: the values of 'in' stand in parentheses, not '5'; e.g. id=in.\(1,2\)"),
        ("id=in.(1,2", "position 6: .* parentheses"),
        ("id=in.(", "position 6: .* parentheses"),
        ("id=in.(1,,2)", "position 9: no value of 'in' is ',2'; quote it"),
        ("id=in.(1,)", "position 9: no value of 'in' is ''"),
        ('id=in.("a"b)', "position 10: no value of 'in' is 'b'"),
        (f"id=in.({','.join('5' * 101)})", "position 6: 'in' has 101 values; at most 100"),
        ("gone=is.nil", "position 8: 'is' takes null, true, false, unknown in lower case, not 'nil'"),
        ("gone=is.NULL", "position 8: .* not 'NULL'"),
        ('a=eq."x,b=eq.1', "position 5: nothing closes the quote of '\"x,b=eq.1'; write .* for a quote itself"),
        ('a=eq."x\\"', "position 5: nothing closes the quote"),
        ('a=in.("x)', "position 6: nothing closes the quote"),
        ("a=eq.\0", "NUL"),
        ("a=eq.\ud800", "UTF-8"),
    ],
)
def test_a_filter_the_server_would_refuse_is_refused_at_the_call(text: str, words: str) -> None:
    with pytest.raises(rtpool.InvalidValue, match=words):
        check_filter(text)


def test_a_filter_of_another_type_is_refused() -> None:
    for value in (5, False, b"a=eq.1", ["a=eq.1"], {"a": 1}):
        with pytest.raises(rtpool.InvalidType, match="Filter, str or None, not"):
            check_filter(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("blank", [None, "", "  \n"])
def test_a_blank_filter_is_none(blank: str | None) -> None:
    assert check_filter(blank) is None


@pytest.mark.parametrize(
    "text",
    [
        "plate=eq.",
        'size=eq.5"',
        'plate=eq."a"b',
        "status=eq.new&plate=eq.A",
        "a=eq.(x,b=eq.1",
        "a=eq.x),b=eq.1",
        " a=eq.1 , b=eq.2 ",
        "my column=eq.1",
        "id=in.()",
        'id=in.( 1 , "2" , a b )',
        r"id=in.(a\,b)",
        "id=in.({1},{2})",
        f"id=in.({','.join('5' * 100)})",
        'gone=is."null"',
        "a=not.isdistinct.not.eq.1",
    ],
)
def test_nothing_the_server_takes_is_refused(text: str) -> None:
    assert check_filter(text) == text


@pytest.mark.parametrize("name", ["05_postgres_changes.v1", "05_postgres_changes.v2"])
def test_filters_are_judged_as_the_recorded_server_did(name: str) -> None:
    filters: dict[str, str] = {}
    verdicts = {}
    for line in load(name):
        if line["dir"] not in "<>":
            continue
        raw = line["raw"]
        message = re.search(r'"message":"((?:[^"\\]|\\.)*)"', raw)
        topic = re.search(r"realtime:\w+", raw)
        asked = re.search(r'"filter":"((?:[^"\\]|\\.)*)"[^]]*\],"private"', raw)
        if line["dir"] == ">" and asked and topic:
            filters[topic[0]] = asked[1].replace('\\"', '"')
        elif message and topic and topic[0] in filters:
            verdicts[filters[topic[0]]] = not message[1].startswith("Error parsing")
    assert len(verdicts) >= 20
    assert not all(verdicts.values())
    for text, taken in verdicts.items():
        if taken:
            assert check_filter(text) == text
        else:
            with pytest.raises(rtpool.InvalidValue):
                check_filter(text)


TOKENS = st.sampled_from(
    [*("a=eq.1", "a", "=", ".", ",", "not.", "in.(", "is.null", "(", ")", '"', "\\", "{", " ", "x")]
)


@settings(max_examples=1_000)
@given(text=st.lists(TOKENS, max_size=8).map("".join) | st.text())
def test_any_text_is_taken_as_it_is_or_refused_with_its_position(text: str) -> None:
    try:
        assert check_filter(text) == (text if text.strip() else None)
    except rtpool.InvalidValue as error:
        position = re.search("at position ([0-9]+): ", str(error))
        assert position is None or int(position[1]) <= len(text)
        return
    if "{" not in text:  # within 'in', PostgreSQL judges nested arrays
        check_binding({"schema": "public", "table": "t", "filter": text})


# A model of the server's conditions, written from SQL's rules and not from the grammar.


def like(text: str, pattern: str) -> bool:
    if not pattern:
        return not text
    head, rest = pattern[0], pattern[1:]
    if head == "%":
        return any(like(text[n:], rest) for n in range(len(text) + 1))
    if head == "\\" and rest:
        return text[:1] == rest[0] and like(text[1:], rest[1:])
    return bool(text) and head in ("_", text[0]) and like(text[1:], rest)


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda cell, value: cell == value,
    "neq": lambda cell, value: cell != value,
    "lt": lambda cell, value: cell < value,
    "lte": lambda cell, value: cell <= value,
    "gt": lambda cell, value: cell > value,
    "gte": lambda cell, value: cell >= value,
    "in_": lambda cell, values: cell in values,
    "like": like,
    "ilike": lambda cell, pattern: like(cell.lower(), pattern.lower()),
    "match": lambda cell, pattern: re.search(pattern, cell) is not None,
    "imatch": lambda cell, pattern: re.search(pattern, cell, re.IGNORECASE) is not None,
}


def met(row: dict[str, Any], column: str, operator: str, value: Any, negated: bool) -> bool:
    if column not in row:
        return False
    cell = row[column]
    if operator == "is_":
        return (cell is value) is not negated
    if operator == "is_distinct" or value is None:  # eq(None) and neq(None) ask for NULL, too
        return (cell == value) is (negated is not (operator == "eq"))
    return cell is not None and COMPARE[operator](cell, value) is not negated


COLUMNS = {"t": "text", "T (b).c d": "text", "n": "number", "on": "bool"}
TEXT = st.text(st.sampled_from("abA ,()\"\\.=%_{}&'\nüÜ😀"), max_size=5) | st.sampled_from(
    ["null", "NULL", "", " a", "a ", "not.eq.1"]
)
NUMBER = st.integers(-(10**20), 10**20) | st.decimals(allow_nan=False, allow_infinity=False, places=3)
REGEXES = st.sampled_from(["^a", "b$", "a.b", "[ab,]+", "a|B", r"\(", r'",', r"\\", "a{1,2}", " $", "", "(a)(b)?"])


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[tuple[str, str, Any, bool]], dict[str, Any]]:
    """Conditions and a row, of few values, so that they meet."""
    values: dict[str, st.SearchStrategy[Any]] = {
        "text": st.sampled_from(draw(st.lists(TEXT, min_size=2, max_size=2))),
        "number": st.sampled_from(draw(st.lists(NUMBER, min_size=2, max_size=2))),
        "bool": st.booleans(),
    }
    conditions = []
    for _ in range(draw(st.integers(1, 3))):
        column = draw(st.sampled_from([*COLUMNS, "absent"]))
        kind = COLUMNS.get(column, "text")
        choices = {
            **dict.fromkeys(("lt", "lte", "gt", "gte"), values[kind]),
            **dict.fromkeys(("eq", "neq", "is_distinct"), st.none() | values[kind]),
            "in_": st.lists(values[kind], min_size=1, max_size=4),
            "is_": st.none() | st.booleans() if kind == "bool" else st.none(),
        }
        if kind == "text":
            choices |= {"like": TEXT | values[kind], "ilike": values[kind], "match": REGEXES, "imatch": REGEXES}
        operator = draw(st.sampled_from(sorted(choices)))
        conditions.append((column, operator, draw(choices[operator]), draw(st.booleans())))
    cells = {name: st.none() | values[kind] for name, kind in COLUMNS.items()}
    return conditions, draw(st.fixed_dictionaries({}, optional=cells))


@settings(max_examples=1_000)
@given(case=cases())
def test_the_server_reads_a_built_filter_as_it_was_meant(
    case: tuple[list[tuple[str, str, Any, bool]], dict[str, Any]],
) -> None:
    conditions, row = case
    made = [getattr(col(column), operator)(value) for column, operator, value, _ in conditions]
    made = [~one if negated else one for one, (*_, negated) in zip(made, conditions, strict=True)]
    whole = made[0]
    for one in made[1:]:
        whole = whole & one
    binding = {"schema": "public", "table": "t", "filter": str(whole)}
    check_binding(binding)
    assert check_filter(whole) == str(whole)
    expected = all(met(row, *condition) for condition in conditions)
    assert binding_matches(binding, "public", "t", "INSERT", row) is expected


def test_a_built_filter_decides_what_a_channel_hears(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    heard = Recorder()
    wanted = col("status").in_(["rented", "a,b"]) & ~col("id").lt(2)
    pool.channel("cars").on_postgres_changes("*", heard, table="cars", filter=wanted).subscribe()
    for number, status in enumerate(["rented", "free", "rented", "a,b", "a"]):
        server.change("public", "cars", "INSERT", {"id": number, "status": status})
    server.change("public", "cars", "INSERT", {"id": 9, "status": "rented"})
    assert [change.record["id"] for change in heard.wait(3)] == [2, 3, 9]


def test_equal_wishes_share_one_join_however_they_are_written(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    heard = Recorder()
    pool.on_changes("cars", heard, event="insert", filter=col("id").gt(5), select=["id", "id"])
    pool.on_changes("cars", heard, event="INSERT", filter="id=gt.5", select=("id",))
    assert len(server.joins()) == 1
    pool.on_changes("cars", heard, filter="  ")
    pool.on_changes("cars", heard, filter=None)
    assert len(server.joins()) == 2
    server.change("public", "cars", "INSERT", {"id": 6})
    assert len(heard.wait(4)) == 4


def test_a_numeric_cell_arrives_as_decimal(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    heard = Recorder()
    pool.on_changes("prices", heard, select=["id", "price"])
    columns = [{"name": "id", "type": "int8"}, {"name": "price", "type": "numeric"}]
    row = {"id": 2**53 + 1, "price": 0.1}
    server.change("public", "prices", "UPDATE", row, row, columns=columns)
    [change] = heard.wait(1)
    assert change.record == change.old_record == {"id": 2**53 + 1, "price": Decimal("0.1")}
    assert isinstance(change.record["price"], Decimal)
    assert change.columns == tuple(columns)
