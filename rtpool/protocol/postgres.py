"""
Postgres changes: what a binding asks for, and which of a frame's ids are whose.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, TypeGuard

from rtpool.checks import check_name, check_type
from rtpool.errors import InvalidType, InvalidValue
from rtpool.events import PostgresChange
from rtpool.filters import Filter, check_filter
from rtpool.protocol.cells import NUMERIC_TYPES, convert_rows
from rtpool.protocol.messages import MAX_NAME_BYTES

__all__ = ["ChangeBinding", "index_ids", "keep_numerics", "matching", "parse_change"]

CHANGE_EVENTS = ("*", "INSERT", "UPDATE", "DELETE")


class ChangeBinding(NamedTuple):
    """
    One server-side binding. Equal bindings are one on the wire.

    Attributes:
        event: ``INSERT``, ``UPDATE``, ``DELETE`` or ``*``.
        schema, table, filter, select: as Realtime takes them; None is left out, because the server refuses nulls.
    """

    event: str
    schema: str | None
    table: str | None = None
    filter: str | None = None
    select: tuple[str, ...] | None = None

    @classmethod
    def checked(
        cls,
        event: str,
        schema: str | None,
        table: str | None,
        filter: Filter | str | None,
        select: Sequence[str] | None,
    ) -> ChangeBinding:
        """
        A binding of what a user asked for, in one form for equal wishes.

        Raises:
            InvalidValue, InvalidType: naming the argument.
        """
        check_type("event", event, str)
        if event.upper() not in CHANGE_EVENTS:
            raise InvalidValue(f"event must be one of {', '.join(CHANGE_EVENTS)}, not {event!r}")
        for name, value in (("schema", schema), ("table", table)):
            if value is not None:
                check_name(name, value, MAX_NAME_BYTES)
        if schema is None and table is None:
            raise InvalidValue("both schema and table are missing; name the schema, the table, or '*' for all")
        if select is not None:
            select = _checked_select(schema, table, select)
        return cls(event.upper(), schema, table, check_filter(filter), select)

    @property
    def topic(self) -> str:
        """Where `RealtimePool.on_changes` asks for it: equal bindings share a join, others have each their own."""
        digest = hashlib.sha256(repr(self).encode("utf-8")).hexdigest()[:12]
        return f"changes:{(self.table or '*')[:40].encode('ascii', 'replace').decode()}:{digest}"

    def to_wire(self) -> dict[str, Any]:
        """The object for the join's config. With a filter the server wants schema and table named."""
        filtered = self.filter is not None
        wire = {
            "event": self.event,
            "schema": "public" if self.schema is None and filtered else self.schema,
            "table": "*" if self.table is None and filtered else self.table,
            "filter": self.filter,
            "select": None if self.select is None else list(self.select),
        }
        return {name: value for name, value in wire.items() if value is not None}


def _checked_select(schema: str | None, table: str | None, select: object) -> tuple[str, ...]:
    if not isinstance(select, (list, tuple)):
        raise InvalidType(f"select must be a list or tuple of column names, not {type(select).__name__}")
    if not select:
        raise InvalidValue("select names no column; leave it out for all, or name the primary key, which always comes")
    for name in select:
        check_name("a column in select", name, MAX_NAME_BYTES)
    if schema == "*" or table in (None, "*"):
        raise InvalidValue(
            f"select needs one table, not schema={schema!r}, table={table!r}: the server takes no columns of wildcards"
        )
    return tuple(dict.fromkeys(select))


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def index_ids(bindings: Sequence[ChangeBinding], response: Any) -> dict[int, tuple[ChangeBinding, ...]]:
    """
    Which bindings stand behind each id of a join reply.

    Entry *i* of the reply is the *i*-th binding asked for; identical objects get identical ids, and 0 is legal.
    """
    entries = response.get("postgres_changes") if isinstance(response, dict) else None
    index: dict[int, tuple[ChangeBinding, ...]] = {}
    for binding, entry in zip(bindings, entries if isinstance(entries, list) else (), strict=False):
        change_id = entry.get("id") if isinstance(entry, dict) else None
        if _is_id(change_id):
            index[change_id] = (*index.get(change_id, ()), binding)
    return index


def matching(index: dict[int, tuple[ChangeBinding, ...]], payload: Any, change_type: str) -> frozenset[ChangeBinding]:
    """The bindings a ``postgres_changes`` payload is for: named by its ids, and of its type, in any case, or ``*``."""
    change_type = change_type.upper()
    ids = payload.get("ids") if isinstance(payload, dict) else None
    return frozenset(
        binding
        for change_id in (ids if isinstance(ids, list) else ())
        if _is_id(change_id)
        for binding in index.get(change_id, ())
        if binding.event.upper() in ("*", change_type)
    )


def _columns(data: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    columns = data.get("columns")
    return tuple(c for c in columns if isinstance(c, dict)) if isinstance(columns, list) else ()


def _data(payload: Any) -> dict[str, Any] | None:
    data = payload.get("data") if isinstance(payload, dict) else None
    return data if isinstance(data, dict) else None


def keep_numerics(payload: Any, exact: Any) -> None:
    """
    Put the ``numeric`` cells of a payload decoded exactly into the same payload decoded fast.

    Args:
        payload: of a ``postgres_changes`` message; changed in place.
        exact: decoded from the same text with its numbers as `NumberText`.
    """
    data, exact_data = _data(payload), _data(exact)
    if data is None or exact_data is None:
        return
    names = [column.get("name") for column in _columns(data) if column.get("type") in NUMERIC_TYPES]
    for row, exact_row in zip(_rows(data), _rows(exact_data), strict=True):
        for name in names:
            if isinstance(name, str) and name in row:
                row[name] = exact_row[name]


def _rows(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in ("record", "old_record"):
        row = data.get(name)
        yield row if isinstance(row, dict) else {}


def parse_change(topic: str, payload: Any) -> PostgresChange | None:
    """The event in a ``postgres_changes`` payload, None when it holds none."""
    data = _data(payload)
    if data is None:
        return None
    columns = _columns(data)
    record, old_record = convert_rows(_rows(data), columns)
    return PostgresChange(
        topic=topic,
        type=str(data.get("type", "")).upper(),
        schema=str(data.get("schema", "")),
        table=str(data.get("table", "")),
        record=record,
        old_record=old_record,
        columns=columns,
        commit_timestamp=_timestamp(data.get("commit_timestamp")),
        errors=_errors(data.get("errors")),
    )


def _errors(errors: Any) -> tuple[str, ...]:
    if isinstance(errors, list):
        return tuple(str(error) for error in errors)
    return (errors,) if isinstance(errors, str) and errors else ()


#: ISO 8601 in all the forms PostgreSQL writes it; `datetime.fromisoformat` of Python 3.10 knows few of them.
_TIMESTAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):?(\d\d)?)?", re.ASCII
)


def _timestamp(text: Any) -> datetime | None:
    if isinstance(text, str) and len(text) == 24 and text[-1] == "Z":  # what today's server writes; ten times faster
        with suppress(ValueError):
            return datetime.fromisoformat(f"{text[:-1]}+00:00")
    match = _TIMESTAMP.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    *date_and_time, fraction, sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
    year, month, day, hour, minute, second = map(int, date_and_time)
    microsecond = int((fraction or "")[:6].ljust(6, "0"))
    try:
        return datetime(year, month, day, hour, minute, second, microsecond, timezone(offset))
    except ValueError:
        return None
