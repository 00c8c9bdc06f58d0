"""
Values as PostgreSQL reads them from text: numbers, times, uuids, arrays; and its words for what it cannot read.

Of dates and times the ISO 8601 forms are read, and ``infinity``; texts are ordered by code points. Source: the chapter
on data types of PostgreSQL's manual.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

__all__ = ["BadLiteral", "guess", "of_cell", "read", "read_array", "type_name"]

#: What a value is compared by; equal when the values are.
Comparable = Any

#: Digits of a numeric before its point.
MAX_DIGITS = 131_072

#: A NULL, a text, or an array of these.
Element = Any


class BadLiteral(Exception):
    """A text that is no value of a type; the words are ``CODE (name) message``, as the server prints them."""


def type_name(kind: str) -> str:
    """The long name of a type: ``bigint`` for ``int8``."""
    return f"{type_name(kind[1:])}[]" if kind.startswith("_") else _NAMES.get(kind, kind)


def read(kind: str, text: str) -> Comparable:
    """A text as a value of a type, by its short name as in ``columns``. Raises `BadLiteral`."""
    if kind.startswith("_"):
        return _array(read_array(text), kind[1:])
    reader = _READERS.get(kind)
    return text if reader is None else reader(kind, text)


def of_cell(kind: str, cell: Any) -> Comparable:
    """A cell of a row, which is not None, as a value of its column's type. Raises `BadLiteral`."""
    if isinstance(cell, list) and kind.startswith("_"):
        return [None if item is None else of_cell(kind[1:], item) for item in cell]
    return cell if kind in ("json", "jsonb") else read(kind, str(cell))


def guess(cell: Any) -> str:
    """The type of a column nobody declared, by a value in it."""
    kinds = {bool: "bool", int: "numeric", float: "numeric", Decimal: "numeric", dict: "jsonb", list: "jsonb"}
    return kinds.get(type(cell), "text")


def _array(element: Element, kind: str) -> Comparable:
    if isinstance(element, list):
        return [_array(item, kind) for item in element]
    return None if element is None else read(kind, element)


_ELEMENT = re.compile(
    r'\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"\s*|(?P<bare>(?:[^\s",{}\\]|\\.)(?:[^",{}\\]|\\.)*))', re.DOTALL
)
_BLANK = re.compile(r"\s*")


def read_array(text: str) -> list[Element]:
    """The elements of an array's text, ``{1,NULL,"a,b"}``. Raises `BadLiteral`."""
    try:
        elements, end = _level(text, _blank(text, 0))
    except (IndexError, ValueError):
        end = -1
    if end < 0 or _blank(text, end) != len(text):
        raise BadLiteral(f'22P02 (invalid_text_representation) malformed array literal: "{text}"')
    return elements


def _blank(text: str, at: int) -> int:
    return _BLANK.match(text, at).end()  # type: ignore[union-attr]


def _level(text: str, at: int) -> tuple[list[Element], int]:
    """What stands between the brace at `at` and its counterpart, and where that ends."""
    if text[at] != "{":
        raise ValueError
    found: list[Element] = []
    element: Element
    at = _blank(text, at + 1)
    if text[at] == "}":
        return found, at + 1
    while True:
        at = _blank(text, at)
        if text[at] == "{":
            element, at = _level(text, at)
            at = _blank(text, at)
        else:
            element, at = _scalar(text, at)
        if found and isinstance(found[0], list) is not isinstance(element, list):
            raise ValueError
        found.append(element)
        if text[at] == "}":
            return found, at + 1
        if text[at] != ",":
            raise ValueError
        at += 1


def _scalar(text: str, at: int) -> tuple[str | None, int]:
    match = _ELEMENT.match(text, at)
    if match is None:
        raise ValueError
    bare = match["bare"]
    if bare is None:
        return re.sub(r"\\(.)", r"\1", match["quoted"], flags=re.DOTALL), match.end()
    # an escaped blank at the end belongs to the value, a bare one does not
    bare = re.sub(r"((?:[^\\]|\\.)*?)\s*\Z", r"\1", bare, flags=re.DOTALL)
    return None if bare.upper() == "NULL" else re.sub(r"\\(.)", r"\1", bare, flags=re.DOTALL), match.end()


_NAMES = {
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float4": "real",
    "float8": "double precision",
    "bool": "boolean",
    "varchar": "character varying",
    "bpchar": "character",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
    "time": "time without time zone",
    "timetz": "time with time zone",
}


def _invalid(kind: str, text: str, code: str = "22P02 (invalid_text_representation)") -> BadLiteral:
    name = type_name(kind).replace(" without time zone", "")  # as its messages have it
    return BadLiteral(f'{code} invalid input syntax for type {name}: "{text}"')


_BITS = {"int2": 15, "int4": 31, "int8": 63}


def _integer(kind: str, text: str) -> Comparable:
    if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", text):
        raise _invalid(kind, text)
    value = Decimal(text.strip())  # int() refuses over 4,300 digits
    limit = 2 ** _BITS[kind]
    if not -limit <= value < limit:
        words = f'value "{text}" is out of range for type {type_name(kind)}'
        raise BadLiteral(f"22003 (numeric_value_out_of_range) {words}")
    return value


_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|[+-]?inf(?:inity)?)\s*", re.I)


def _number(kind: str, text: str) -> Comparable:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise _invalid(kind, text)
    try:
        value = Decimal(match[1])
    except InvalidOperation:  # an exponent of twenty digits
        value = Decimal("1e999999")
    if kind == "numeric" and value.is_finite() and value.adjusted() >= MAX_DIGITS:
        raise BadLiteral("22003 (numeric_value_out_of_range) value overflows numeric format")
    if kind != "numeric" and value.is_finite():
        try:
            near = float(value) if kind == "float8" else struct.unpack("f", struct.pack("f", float(value)))[0]
        except OverflowError:
            near = float("inf")
        if near in (float("inf"), float("-inf")):
            words = f'"{text}" is out of range for type {type_name(kind)}'
            raise BadLiteral(f"22003 (numeric_value_out_of_range) {words}")
        value = Decimal(near)
    return (1, Decimal(0)) if value.is_nan() else (0, value)  # SQL: NaN equals itself and is above all


_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def _boolean(kind: str, text: str) -> Comparable:
    word = text.strip().lower()
    if word and word != "o":
        for value, names in ((True, _YES), (False, _NO)):
            if any(name.startswith(word) for name in names):
                return value
    raise _invalid(kind, text)


def _uuid(kind: str, text: str) -> Comparable:
    if not re.fullmatch(r"(\{)?(?:[0-9a-f]{4}-?){7}[0-9a-f]{4}(?(1)\})", text, re.IGNORECASE):
        raise _invalid(kind, text)
    return re.sub(r"[{}-]", "", text).lower()


def _json(kind: str, text: str) -> Comparable:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadLiteral("22P02 (invalid_text_representation) invalid input syntax for type json") from None


_DATE = r"(?P<year>[0-9]{4})-(?P<month>[0-9]{1,2})-(?P<day>[0-9]{1,2})"
_TIME = r"(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2}(?:\.[0-9]*)?))?"
_ZONE = r"\s*(?P<zone>z|utc|(?P<sign>[+-])(?P<zh>[0-9]{1,2})(?::?(?P<zm>[0-9]{2}))?)"
_MOMENT = re.compile(rf"\s*{_DATE}(?:(?:\s*t\s*|\s+){_TIME})?(?:{_ZONE})?\s*", re.IGNORECASE)
_CLOCK = re.compile(rf"\s*(?:{_DATE}(?:\s*t\s*|\s+))?{_TIME}(?:{_ZONE})?\s*", re.IGNORECASE)
_ENDS = {"infinity": (1, datetime.max), "+infinity": (1, datetime.max), "-infinity": (-1, datetime.min)}


def _moment(kind: str, text: str) -> Comparable:
    """A rank, for the infinities, and the time, in UTC where the type knows zones."""
    end = _ENDS.get(text.strip().lower())
    if end is not None:
        return end
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise _invalid(kind, text, _BAD_TIME)
    try:
        day = datetime(int(match["year"]), int(match["month"]), int(match["day"]))
        clock = _since_midnight(match)
        if kind == "date":
            return 0, day
        return 0, day + clock - (_offset(match) if kind == "timestamptz" else timedelta(0))
    except (ValueError, OverflowError):
        raise _out_of_range(text) from None


def _clock(kind: str, text: str) -> Comparable:
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise _invalid(kind, text, _BAD_TIME)
    try:
        clock = _since_midnight(match)
    except ValueError:
        raise _out_of_range(text) from None
    # SQL: of equal instants the one further east comes first
    return (clock - _offset(match), -_offset(match)) if kind == "timetz" else clock


def _since_midnight(match: re.Match[str]) -> timedelta:
    hour, minute, second = int(match["hour"] or 0), int(match["minute"] or 0), Decimal(match["second"] or 0)
    clock = timedelta(hours=hour, minutes=minute, microseconds=round(second * 1_000_000))
    if minute > 59 or second > 60 or clock > timedelta(hours=24):
        raise ValueError
    return clock


def _offset(match: re.Match[str]) -> timedelta:
    if match["sign"] is None:
        return timedelta(0)  # the database's own zone is UTC
    offset = timedelta(hours=int(match["zh"]), minutes=int(match["zm"] or 0))
    return -offset if match["sign"] == "-" else offset


_BAD_TIME = "22007 (invalid_datetime_format)"


def _out_of_range(text: str) -> BadLiteral:
    return BadLiteral(f'22008 (datetime_field_overflow) date/time field value out of range: "{text}"')


_READERS: dict[str, Callable[[str, str], Comparable]] = {
    **dict.fromkeys(("int2", "int4", "int8"), _integer),
    **dict.fromkeys(("float4", "float8", "numeric"), _number),
    **dict.fromkeys(("date", "timestamp", "timestamptz"), _moment),
    **dict.fromkeys(("time", "timetz"), _clock),
    **dict.fromkeys(("json", "jsonb"), _json),
    "bool": _boolean,
    "bpchar": lambda kind, text: text.rstrip(" "),
    "uuid": _uuid,
}
