"""
The tables of the embedded server, if a test declares any: what may be subscribed to, and what of a row goes to whom.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from rtpool.testing.postgres import BadFilter, Term, event_of, inspect, terms

__all__ = ["RowPolicy", "Table", "Tables"]

#: Bytes of a row over which only short values go out.
MAX_ROW = 1024 * 1024

#: Bytes of a value that still goes out then.
SHORT = 64

#: Whether a token's claims may see a row.
RowPolicy = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]


@attrs.frozen(kw_only=True)
class Table:
    """
    A table of the publication ``supabase_realtime``.

    Attributes:
        columns: the PostgreSQL type of each, by name: ``int8``, ``text``, ``_int4`` …
        primary_key: what an old row is known by; without one only errors are sent.
        row_security: who sees which row, by a token's claims; None lets everybody. Deletions go to everybody.
        roles: which may select; None is all.
        full_identity: ``replica identity full``: old rows are whole.
    """

    schema: str
    name: str
    columns: Mapping[str, str]
    primary_key: tuple[str, ...] = ("id",)
    row_security: RowPolicy | None = None
    roles: frozenset[str] | None = None
    full_identity: bool = False

    def may_see(self, claims: Mapping[str, Any], kind: str, row: Mapping[str, Any]) -> bool:
        """Whether a change of a row goes to who has these claims."""
        if self.row_security is None or kind == "DELETE" or claims.get("role") == "service_role":
            return True
        try:
            return bool(self.row_security(claims, row))
        except Exception:
            return False

    def key(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The primary key of a row."""
        return {name: row[name] for name in self.primary_key if name in row}

    def finish(self, data: dict[str, Any], claims: Mapping[str, Any]) -> dict[str, Any]:
        """A change as it goes to who has these claims."""
        if not self.primary_key:
            return _only(data, "Error 400: Bad Request, no primary key")
        if self.roles is not None and claims.get("role") not in self.roles:
            return _only(data, "Error 401: Unauthorized")
        data = {**data, "columns": [{"name": name, "type": kind} for name, kind in self.columns.items()]}
        old = data.get("old_record")
        if old is not None:
            reduced = not self.full_identity or (data["type"] == "DELETE" and self.row_security is not None)
            data["old_record"] = self.key(old) if reduced else old
        if _weight(data) > MAX_ROW:
            data["errors"] = ["Error 413: Payload Too Large"]
            for name in ("record", "old_record"):
                if name in data:
                    data[name] = {k: v for k, v in data[name].items() if v is not None and _weight(v) <= SHORT}
        return data

    def select(self, data: dict[str, Any], columns: Iterable[str]) -> dict[str, Any]:
        """A change with these columns and the primary key only."""
        names = {*columns, *self.primary_key}
        data = {**data, "columns": [column for column in data["columns"] if column["name"] in names]}
        for part in ("record", "old_record"):
            if part in data:
                data[part] = {name: value for name, value in data[part].items() if name in names}
        return data


def _only(data: dict[str, Any], error: str) -> dict[str, Any]:
    reduced = {**data, "columns": [], "errors": [error], "commit_timestamp": None}
    return {**reduced, **{name: {} for name in ("record", "old_record") if name in data}}


def _weight(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, default=str).encode())


class Tables:
    """
    The publication. As long as no table is declared everything can be subscribed to.

    Thread-safety: confined to the server's loop.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[str, str], Table] = {}

    def declare(self, table: Table) -> None:
        """Add a table, or change it."""
        self._tables[table.schema, table.name] = table

    def drop(self, schema: str, name: str) -> None:
        """Take a table out of the publication."""
        self._tables.pop((schema, name), None)

    def get(self, schema: str, name: str) -> Table | None:
        """The table, None when it is not declared."""
        return self._tables.get((schema, name))

    def published(self, schema: str, name: str) -> bool:
        """Whether changes of a table are sent at all."""
        return not self._tables or (schema, name) in self._tables

    def check(self, binding: dict[str, Any]) -> None:
        """Raise `BadFilter` with the server's words when a well-formed binding asks for what is not there."""
        if not self._tables:
            return
        schema, name = binding.get("schema", "public"), binding.get("table", "*")
        found = [t for t in self._tables.values() if schema in ("*", t.schema) and name in ("*", t.name)]
        wanted = terms(binding.get("filter"))
        if not found:
            please = "Please check Realtime is enabled for the given connect parameters"
            raise BadFilter(f"{_UNABLE} {please}: {_shown(binding, wanted)}")
        for table in found:
            problem = _problem(table, wanted, binding.get("select") or [])
            if problem is not None:
                please = "An exception happened so please check your connect parameters"
                raise BadFilter(f"{_UNABLE} {please}: {_shown(binding, wanted)}. Exception: ERROR {problem}")


_UNABLE = "Unable to subscribe to changes with given parameters."


def _shown(binding: dict[str, Any], wanted: list[Term]) -> str:
    filters = ", ".join(_term(term) for term in wanted)
    select = inspect(binding["select"]) if "select" in binding else "nil"
    event, schema, name = event_of(binding), binding.get("schema", "public"), binding.get("table", "*")
    return f"[event: {event}, schema: {schema}, table: {name}, filters: [{filters}], select: {select}]"


def _term(term: Term) -> str:
    value = "{" + ",".join(term.value) + "}" if isinstance(term.value, list) else term.value
    negated = "true" if term.negated else "false"
    return f"{{{inspect(term.column)}, {inspect(term.name)}, {inspect(value)}, {negated}}}"


def _problem(table: Table, wanted: list[Term], select: list[str]) -> str | None:
    for term in wanted:
        kind = table.columns.get(term.column)
        if kind is None:
            return f"P0001 (raise_exception) invalid column for filter {term.column}"
        name, pattern = _TYPES.get(kind, ("", None))
        if pattern is None or term.name not in ("eq", "neq", "lt", "lte", "gt", "gte", "in"):
            continue
        for text in term.value if isinstance(term.value, list) else [term.value]:
            if not re.fullmatch(pattern, text.strip(), re.IGNORECASE):
                shown = inspect(text)
                return f"22P02 (invalid_text_representation) invalid input syntax for type {name}: {shown}"
    for column in select:
        if column not in table.columns:
            return f"P0001 (raise_exception) invalid column for select {column}"
    return None


_INTEGER = r"[+-]?\d+"
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|[+-]?inf(inity)?"
_TYPES: dict[str, tuple[str, str]] = {
    "int2": ("smallint", _INTEGER),
    "int4": ("integer", _INTEGER),
    "int8": ("bigint", _INTEGER),
    "float4": ("real", _NUMBER),
    "float8": ("double precision", _NUMBER),
    "numeric": ("numeric", _NUMBER),
    "bool": ("boolean", "t(r(ue?)?)?|f(a(l(se?)?)?)?|y(es?)?|no?|on|off?|1|0"),
    "uuid": ("uuid", r"\{?[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}\}?"),
}
