"""
Filters of Postgres changes as the server reads them, judges them and applies them to rows.

Sources: supabase/realtime 2.129, `Extensions.PostgresCdcRls.Subscriptions` for the grammar, and its SQL functions
``subscription_check_filters`` and ``check_equality_op`` for what the database makes of a filter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from rtpool.testing.literals import BadLiteral, guess, of_cell, read, read_array, type_name

__all__ = ["BadFilter", "Term", "inspect", "problem", "terms"]

#: Values of one ``in``.
MAX_VALUES = 100


class BadFilter(Exception):
    """A binding the server accepts at the join and refuses in a `system` message afterwards."""


def inspect(value: Any) -> str:
    """JSON data as the server prints it, for the messages that quote what they refuse."""
    if isinstance(value, dict):
        return "%{" + ", ".join(f"{inspect(key)} => {inspect(item)}" for key, item in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(inspect(item) for item in value) + "]"
    return "nil" if value is None else json.dumps(value, ensure_ascii=False)


@attrs.frozen
class Term:
    """One condition of a filter: a column, an operator's name, its value as text (``in``: an array's), ``not.``."""

    column: str
    name: str
    value: str
    negated: bool

    def holds(self, row: Mapping[str, Any], kind: str | None = None) -> bool:
        """
        Whether a row meets it; never for a row without the column, or with a value that cannot be compared.

        Args:
            kind: the column's type; None guesses it from the cell.
        """
        if self.column not in row:
            return False
        cell = row[self.column]
        try:
            met = _OPERATORS[self.name](kind or guess(cell), cell, self.value)
        except (BadLiteral, TypeError, re.error):
            return False
        return met is not None and met is not self.negated  # SQL: the negation of unknown is unknown

    def __str__(self) -> str:
        negated = "true" if self.negated else "false"
        return f"{{{inspect(self.column)}, {inspect(self.name)}, {inspect(self.value)}, {negated}}}"


def terms(text: str | None) -> list[Term]:
    """The conditions of a filter, all of which must hold. Raises `BadFilter` with the server's words."""
    trimmed = (text or "").strip()
    return [_term(part.strip()) for part in _split(trimmed)] if trimmed else []


def _split(text: str) -> list[str]:
    """Split on commas outside quotes and parentheses; a quote opens only after a dot, a comma or a parenthesis."""
    parts, depth, quoted, start, before = [], 0, False, 0, ""
    characters = enumerate(text)
    for index, char in characters:
        if quoted:
            if char == "\\":
                next(characters, None)
            quoted = char != '"'
        elif char == '"' and before in (".", "(", ","):
            quoted = True
        elif char == "," and depth == 0:
            parts.append(text[start:index])
            start, char = index + 1, ""  # no quote opens a condition
        else:
            depth = max(0, depth + (char == "(") - (char == ")"))
        before = char
    return [*parts, text[start:]]


def _refused(words: str) -> BadFilter:
    return BadFilter(f"Error parsing `filter` params: {words}")


def _term(text: str) -> Term:
    if not text:
        raise _refused("filter must not contain empty segments (check for extra commas)")
    column, equals, rest = text.partition("=")
    if not equals:
        raise _refused(inspect([text]))
    name, dot, value = rest.removeprefix("not.").partition(".")
    if not dot:
        raise _refused(inspect([name]))
    if name not in _OPERATORS:
        raise _refused(inspect([name, value]))
    if name != "in":
        value = _unquote(value)
    elif len(value) >= 2 and value[0] == "(" and value[-1] == ")":
        value = f"{{{value[1:-1]}}}"
    else:
        raise _refused("`in` filter value must be wrapped by parentheses")
    return Term(column, name, value, rest.startswith("not."))


def _unquote(text: str) -> str:
    """What stands in quotes; a text that goes on after the closing quote, or has none, stays as it is."""
    match = re.fullmatch(r'"((?:[^"\\]|\\.)*)"', text, re.DOTALL)
    return text if match is None else re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL)


def problem(term: Term, kind: str | None) -> str | None:
    """
    What the database says against a condition, None when it takes it.

    Args:
        kind: the column's type; None where it is not known, and then all is well that may be.
    """
    try:
        words = _CHECKS.get(term.name, _check_value)(term, kind)
    except BadLiteral as error:
        return str(error)
    return None if words is None else f"P0001 (raise_exception) {words}"


def _check_value(term: Term, kind: str | None) -> str | None:
    if kind is not None:
        read(kind, term.value)
    return None


def _check_in(term: Term, kind: str | None) -> str | None:
    values = read_array(term.value) if kind is None else read(f"_{kind}", term.value)
    return f"too many values for `in` filter. Maximum {MAX_VALUES}" if len(values) > MAX_VALUES else None


def _check_is(term: Term, kind: str | None) -> str | None:
    if term.value not in _IS:
        return "invalid value for is filter: must be null, true, false, or unknown"
    if kind in (None, "bool") or term.value == "null":
        return None
    return f"is {term.value} filter requires a boolean column, got {type_name(str(kind))}"


def _needs_text(term: Term, kind: str | None, kinds: tuple[str, ...]) -> str | None:
    if kind is None or kind in kinds:
        return None
    return f"operator {term.name} requires a text-compatible column type, got {type_name(kind)}"


def _check_like(term: Term, kind: str | None) -> str | None:
    # protocol: only types that have the operator themselves, so not even varchar
    return _needs_text(term, kind, ("text", "bpchar", "name", "bytea", "citext"))


def _check_match(term: Term, kind: str | None) -> str | None:
    words = _needs_text(term, kind, ("text", "citext"))
    if words is None:
        try:
            re.compile(term.value)
        except re.error as error:
            # Only what no dialect takes is refused; what Python alone cannot read matches nothing.
            fault = next((fault for ours, fault in _REGEX_FAULTS.items() if error.msg.startswith(ours)), None)
            if fault is not None:
                words = f"invalid regular expression for {term.name} filter: invalid regular expression: {fault}"
    return words


_REGEX_FAULTS = {
    "missing ), unterminated subpattern": "parentheses () not balanced",
    "unbalanced parenthesis": "parentheses () not balanced",
    "unterminated character set": "brackets [] not balanced",
    "nothing to repeat": "quantifier operand invalid",
}

_CHECKS: dict[str, Callable[[Term, str | None], str | None]] = {
    "in": _check_in,
    "is": _check_is,
    "like": _check_like,
    "ilike": _check_like,
    "match": _check_match,
    "imatch": _check_match,
}

#: The type, the cell, the value's text; None is SQL's unknown.
Operator = Callable[[str, Any, str], "bool | None"]


def _compare(test: Callable[[Any, Any], bool]) -> Operator:
    def operator(kind: str, cell: Any, text: str) -> bool | None:
        return None if cell is None else test(of_cell(kind, cell), read(kind, text))

    return operator


def _like(flags: int) -> Operator:
    wild = {"%": ".*", "_": "."}

    def operator(kind: str, cell: Any, pattern: str) -> bool | None:
        tokens = re.findall(r"\\.|.", pattern, re.DOTALL)  # a backslash takes the meaning off what follows
        regex = "".join(wild.get(token) or re.escape(token[-1]) for token in tokens)
        return None if cell is None else re.fullmatch(regex, str(cell), flags | re.DOTALL) is not None

    return operator


def _regex(flags: int) -> Operator:
    def operator(kind: str, cell: Any, pattern: str) -> bool | None:
        return None if cell is None else re.search(pattern, str(cell), flags) is not None

    return operator


def _in(kind: str, cell: Any, text: str) -> bool | None:
    values = _flat(read(f"_{kind}", text))
    if not values:
        return False  # SQL: even of NULL
    if cell is None:
        return None
    return of_cell(kind, cell) in values or (None if None in values else False)


def _flat(values: list[Any]) -> list[Any]:
    return [one for value in values for one in (_flat(value) if isinstance(value, list) else [value])]


def _is_distinct(kind: str, cell: Any, text: str) -> bool:
    wanted = read(kind, text)  # "null" is a text like any other
    return cell is None or bool(of_cell(kind, cell) != wanted)


_IS = {"null": None, "true": True, "false": False, "unknown": None}

_OPERATORS: dict[str, Operator] = {
    "eq": _compare(lambda a, b: bool(a == b)),
    "neq": _compare(lambda a, b: bool(a != b)),
    "lt": _compare(lambda a, b: bool(a < b)),
    "lte": _compare(lambda a, b: bool(a <= b)),
    "gt": _compare(lambda a, b: bool(a > b)),
    "gte": _compare(lambda a, b: bool(a >= b)),
    "in": _in,
    "is": lambda kind, cell, word: cell is _IS[word] if word in _IS else None,
    "isdistinct": _is_distinct,
    "like": _like(0),
    "ilike": _like(re.IGNORECASE),
    "match": _regex(0),
    "imatch": _regex(re.IGNORECASE),
}
