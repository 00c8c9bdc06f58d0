"""
Bindings to Postgres changes on the server's side: their ids, what is wrong with them, and which rows are for them.

Filters are in `rtpool.testing.conditions`; which tables there are, and what of a row goes out to whom, is in
`rtpool.testing.tables`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from rtpool.testing.conditions import BadFilter, Term, inspect, problem, terms

__all__ = [
    "BadFilter",
    "UNABLE",
    "binding_id",
    "binding_matches",
    "check_binding",
    "event_of",
    "failed",
    "parse_binding",
    "selection",
    "shown",
]

#: Ids are hashes in 0 to 2**27 - 1 (Erlang's `phash2`).
ID_SPACE = 2**27

#: How every refusal by the database begins.
UNABLE = "Unable to subscribe to changes with given parameters."

_NOTHING = "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: "


def binding_id(binding: dict[str, Any]) -> int:
    """The id of a binding: equal objects have equal ids."""
    return zlib.crc32(json.dumps(binding, sort_keys=True).encode()) % ID_SPACE


def parse_binding(binding: dict[str, Any]) -> list[Term]:
    """The conditions of a binding. Raises `BadFilter` with the server's words when the binding is malformed."""
    chosen = selection(binding)
    given = [name for name in ("schema", "table", "filter") if name in binding]
    # protocol: an explicit null is no absent key, and a filter wants both schema and table named
    if given not in _FORMS or not all(isinstance(binding[name], str) for name in given):
        raise BadFilter(f"{_NOTHING}{inspect(binding)}")
    wanted = terms(binding.get("filter"))
    if chosen is not None and "*" in (binding.get("schema", "public"), binding.get("table", "*")):
        raise BadFilter(
            "Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name."
        )
    return wanted


_FORMS = (["schema", "table", "filter"], ["schema", "table"], ["schema"], ["table"])


def selection(binding: dict[str, Any]) -> list[str] | None:
    """The columns a binding selects, None for all. Raises `BadFilter` for a text."""
    names = binding.get("select")
    if isinstance(names, str):
        raise BadFilter(
            'Error parsing `select` params: expected a list of column name strings, e.g. select: ["col1", "col2"]'
        )
    chosen = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return chosen or None


def check_binding(binding: dict[str, Any]) -> None:
    """Raise `BadFilter` with the server's words where no table is known to judge a binding by."""
    wanted = parse_binding(binding)
    for term in wanted:
        words = problem(term, None)
        if words is not None:
            raise failed(binding, wanted, words)


def failed(binding: dict[str, Any], wanted: list[Term], words: str) -> BadFilter:
    """What is told of a binding that the database raised an error for."""
    please = "An exception happened so please check your connect parameters"
    return BadFilter(f"{UNABLE} {please}: {shown(binding, wanted)}. Exception: ERROR {words}")


def shown(binding: dict[str, Any], wanted: list[Term]) -> str:
    """A binding as these messages quote it."""
    filters = ", ".join(str(term) for term in wanted)
    event, schema, name = event_of(binding), binding.get("schema", "public"), binding.get("table", "*")
    chosen = inspect(selection(binding))
    return f"[event: {event}, schema: {schema}, table: {name}, filters: [{filters}], select: {chosen}]"


def binding_matches(
    binding: dict[str, Any],
    schema: str,
    table: str,
    change: str,
    row: Mapping[str, Any],
    columns: Mapping[str, str] | None = None,
) -> bool:
    """
    Whether a changed row is for a binding.

    Args:
        columns: the type of each; None guesses by the values.
    """
    if event_of(binding) not in ("*", change):
        return False
    if binding.get("schema", "public") not in ("*", schema) or binding.get("table", "*") not in ("*", table):
        return False
    try:
        return all(term.holds(row, (columns or {}).get(term.column)) for term in parse_binding(binding))
    except BadFilter:
        return False


def event_of(binding: dict[str, Any]) -> str:
    """INSERT, UPDATE, DELETE or ``*``, which is what any other name means too."""
    event = str(binding.get("event", "*")).upper()
    return event if event in ("INSERT", "UPDATE", "DELETE") else "*"
