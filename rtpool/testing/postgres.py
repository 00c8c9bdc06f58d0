"""
Postgres changes on the server's side: bindings, ids, and filters really evaluated.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from typing import Any

__all__ = ["BadFilter", "binding_id", "binding_matches", "check_binding"]

#: Ids are hashes in 0 to 2**27 - 1 (Erlang's `phash2`).
ID_SPACE = 2**27


class BadFilter(Exception):
    """A binding the server accepts at the join and refuses in a `system` message afterwards."""


def binding_id(binding: dict[str, Any]) -> int:
    """The id of a binding: equal objects have equal ids."""
    return zlib.crc32(json.dumps(binding, sort_keys=True).encode()) % ID_SPACE


def check_binding(binding: dict[str, Any]) -> None:
    """Raise `BadFilter` with the server's words."""
    if "schema" not in binding and "table" not in binding:
        raise BadFilter(
            "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: "
            + json.dumps(binding)
        )
    _conditions(binding.get("filter"))


def binding_matches(binding: dict[str, Any], schema: str, table: str, change: str, row: dict[str, Any]) -> bool:
    """Whether a changed row is for a binding."""
    event = str(binding.get("event", "*")).upper()
    if event in ("INSERT", "UPDATE", "DELETE") and event != change:
        return False
    if binding.get("schema", "public") not in ("*", schema) or binding.get("table", "*") not in ("*", table):
        return False
    try:
        return all(condition(row) for condition in _conditions(binding.get("filter")))
    except BadFilter:
        return False


Condition = Callable[[dict[str, Any]], bool]
_TERM = re.compile(r"([^.=,\s]+)=(not\.)?([a-z]+)\.(.*)\Z", re.DOTALL)


def _conditions(text: Any) -> list[Condition]:
    if text is None or not str(text).strip():
        return []
    return [_condition(part) for part in _split(str(text))]


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
            depth += 1 if char == "(" else -1
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


def _condition(term: str) -> Condition:
    match = _TERM.match(term)
    if match is None or match.group(3) not in _OPERATORS:
        raise BadFilter(f"Error parsing `filter` params: {json.dumps([term])}")
    column, negated, name, value = match.groups()
    if name == "in":
        if not (value.startswith("(") and value.endswith(")")):
            raise BadFilter("`in` filter value must be wrapped by parentheses")
        wanted: Any = [_unquote(part) for part in _split(value[1:-1])]
    else:
        wanted = _unquote(value)
    operator = _OPERATORS[name]

    def holds(row: dict[str, Any]) -> bool:
        if column not in row:
            return False  # a filter on a column the row does not have fails closed
        return operator(row[column], wanted) is not bool(negated)

    return holds


def _compare(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def operator(cell: Any, text: str) -> bool:
        if cell is None:
            return False
        try:
            if isinstance(cell, bool):
                return test(str(cell).lower(), text.lower())
            if isinstance(cell, (int, float)):
                return test(cell, type(cell)(text))
        except ValueError:
            return False
        return test(str(cell), text)

    return operator


def _like(flags: int) -> Callable[[Any, Any], bool]:
    def operator(cell: Any, pattern: str) -> bool:
        regex = re.escape(pattern).replace("%", ".*").replace("_", ".")
        return re.fullmatch(regex, str(cell), flags | re.DOTALL) is not None

    return operator


def _regex(flags: int) -> Callable[[Any, Any], bool]:
    return lambda cell, pattern: re.search(pattern, str(cell), flags) is not None


_EQ = _compare(lambda a, b: bool(a == b))
_IS = {"null": None, "true": True, "false": False, "unknown": None}

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": _EQ,
    "neq": _compare(lambda a, b: bool(a != b)),
    "lt": _compare(lambda a, b: bool(a < b)),
    "lte": _compare(lambda a, b: bool(a <= b)),
    "gt": _compare(lambda a, b: bool(a > b)),
    "gte": _compare(lambda a, b: bool(a >= b)),
    "in": lambda cell, values: any(_EQ(cell, value) for value in values),
    "is": lambda cell, value: cell is _IS.get(value, value),
    "isdistinct": lambda cell, value: not _EQ(cell, value),
    "like": _like(0),
    "ilike": _like(re.IGNORECASE),
    "match": _regex(0),
    "imatch": _regex(re.IGNORECASE),
}
