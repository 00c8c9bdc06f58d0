"""
Postgres changes on the server's side: bindings, ids, and filters really evaluated.

Which tables there are, and what of a row goes out to whom, is in `rtpool.testing.tables`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

import attrs

__all__ = ["BadFilter", "Term", "binding_id", "binding_matches", "check_binding", "event_of", "inspect", "terms"]

#: Ids are hashes in 0 to 2**27 - 1 (Erlang's `phash2`).
ID_SPACE = 2**27

#: Values of one ``in``.
MAX_VALUES = 100


class BadFilter(Exception):
    """A binding the server accepts at the join and refuses in a `system` message afterwards."""


def binding_id(binding: dict[str, Any]) -> int:
    """The id of a binding: equal objects have equal ids."""
    return zlib.crc32(json.dumps(binding, sort_keys=True).encode()) % ID_SPACE


def check_binding(binding: dict[str, Any]) -> None:
    """Raise `BadFilter` with the server's words."""
    if "schema" not in binding and "table" not in binding:
        raise BadFilter(f"{_NOTHING}{inspect(binding)}")
    if any(not isinstance(binding.get(name, ""), str) for name in ("schema", "table", "filter")):
        raise BadFilter(f"{_NOTHING}{inspect(binding)}")  # protocol: an explicit null is no absent key
    if "select" in binding:
        _check_select(binding)
    terms(binding.get("filter"))


_NOTHING = "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: "


def _check_select(binding: dict[str, Any]) -> None:
    names = binding["select"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadFilter(
            'Error parsing `select` params: expected a list of column name strings, e.g. select: ["col1", "col2"]'
        )
    if "*" in (binding.get("schema", "public"), binding.get("table", "*")):
        raise BadFilter(
            "Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name."
        )


def inspect(value: Any) -> str:
    """JSON data as the server prints it, for the messages that quote what they refuse."""
    if isinstance(value, dict):
        return "%{" + ", ".join(f"{inspect(key)} => {inspect(item)}" for key, item in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(inspect(item) for item in value) + "]"
    return "nil" if value is None else json.dumps(value, ensure_ascii=False)


def binding_matches(binding: dict[str, Any], schema: str, table: str, change: str, row: dict[str, Any]) -> bool:
    """Whether a changed row is for a binding."""
    if event_of(binding) not in ("*", change):
        return False
    if binding.get("schema", "public") not in ("*", schema) or binding.get("table", "*") not in ("*", table):
        return False
    try:
        return all(term.holds(row) for term in terms(binding.get("filter")))
    except BadFilter:
        return False


def event_of(binding: dict[str, Any]) -> str:
    """INSERT, UPDATE, DELETE or ``*``, which is what any other name means too."""
    event = str(binding.get("event", "*")).upper()
    return event if event in ("INSERT", "UPDATE", "DELETE") else "*"


Operator = Callable[[Any, Any], "bool | None"]  # None is SQL's unknown
_TERM = re.compile(r"([^=]+)=(not\.)?([a-z]+)\.(.*)\Z", re.DOTALL)


@attrs.frozen
class Term:
    """One condition of a filter: a column, an operator's name, its value or values as text."""

    column: str
    name: str
    value: Any
    negated: bool

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether a row meets it; never for a row without the column."""
        if self.column not in row:
            return False
        met = _OPERATORS[self.name](row[self.column], self.value)
        return met is not None and met is not self.negated  # SQL: the negation of unknown is unknown


def terms(text: Any) -> list[Term]:
    """The conditions of a filter, all of which must hold. Raises `BadFilter` with the server's words."""
    if text is None or not str(text).strip():
        return []
    return [_term(part.strip()) for part in _split(str(text))]


def _split(text: str) -> list[str]:
    """Split on commas outside quotes and parentheses; a quote opens only after a dot, a comma or a parenthesis."""
    parts, depth, quoted, start, index = [], 0, False, 0, 0
    while index < len(text):
        char = text[index]
        if quoted:
            if char == "\\":
                index += 1
            elif char == '"':
                quoted = False
        elif char == '"' and (index == 0 or text[index - 1] in ".(,"):
            quoted = True
        elif char in "()":
            depth = max(0, depth + (1 if char == "(" else -1))
        elif char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
        index += 1
    parts.append(text[start:])
    if any(not part.strip() for part in parts):
        raise BadFilter("filter must not contain empty segments (check for extra commas)")
    return parts


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


def _term(text: str) -> Term:
    match = _TERM.match(text)
    if match is None or match.group(3) not in _OPERATORS:
        raise BadFilter(f"Error parsing `filter` params: {inspect(text.split('=', 1)[-1].split('.'))}")
    column, negated, name, value = match.groups()
    wanted: Any = _unquote(value)
    if name == "in":
        if not (value.startswith("(") and value.endswith(")")):
            raise BadFilter("`in` filter value must be wrapped by parentheses")
        values = value[1:-1]
        wanted = [_unquote(part.strip()) for part in _split(values)] if values.strip() else []
        if len(wanted) > MAX_VALUES:
            raise BadFilter(f"too many values for `in` filter. Maximum {MAX_VALUES}")
    elif name == "is" and wanted not in _IS:  # the words are in lower case only
        raise BadFilter(f"Error parsing `filter` params: {inspect(['is', value])}")
    return Term(column, name, wanted, bool(negated))


def _compare(test: Callable[[Any, Any], bool]) -> Operator:
    def operator(cell: Any, text: str) -> bool | None:
        if cell is None:
            return None
        try:
            if isinstance(cell, bool):
                return test(cell, _BOOLEANS[text.strip().lower()])
            if isinstance(cell, (int, float, Decimal)):
                return test(Decimal(str(cell)), Decimal(text.strip()))
        except (KeyError, InvalidOperation):
            return None  # a value that is none of the column's type
        return test(str(cell), text)

    return operator


def _like(flags: int) -> Operator:
    wild = {"%": ".*", "_": "."}

    def operator(cell: Any, pattern: str) -> bool | None:
        tokens = re.findall(r"\\.|.", pattern, re.DOTALL)  # a backslash takes the meaning off what follows
        regex = "".join(wild.get(token) or re.escape(token[-1]) for token in tokens)
        return None if cell is None else re.fullmatch(regex, str(cell), flags | re.DOTALL) is not None

    return operator


def _regex(flags: int) -> Operator:
    def operator(cell: Any, pattern: str) -> bool | None:
        try:
            return None if cell is None else re.search(pattern, str(cell), flags) is not None
        except re.error:
            return None

    return operator


def _in(cell: Any, values: list[str]) -> bool | None:
    return None if cell is None else any(_EQ(cell, value) for value in values)


def _is_distinct(cell: Any, text: str) -> bool:
    return not _EQ(cell, text)  # "null" is a text like any other


_BOOLEANS = {"true": True, "t": True, "false": False, "f": False}

_EQ = _compare(lambda a, b: bool(a == b))
_IS = {"null": None, "true": True, "false": False, "unknown": None}

_OPERATORS: dict[str, Operator] = {
    "eq": _EQ,
    "neq": _compare(lambda a, b: bool(a != b)),
    "lt": _compare(lambda a, b: bool(a < b)),
    "lte": _compare(lambda a, b: bool(a <= b)),
    "gt": _compare(lambda a, b: bool(a > b)),
    "gte": _compare(lambda a, b: bool(a >= b)),
    "in": _in,
    "is": lambda cell, value: cell is _IS[value],
    "isdistinct": _is_distinct,
    "like": _like(0),
    "ilike": _like(re.IGNORECASE),
    "match": _regex(0),
    "imatch": _regex(re.IGNORECASE),
}
