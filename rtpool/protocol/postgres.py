"""
Postgres changes: what a binding asks for, and which of a frame's ids are whose.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs

from rtpool.events import PostgresChange

__all__ = ["ChangeBinding", "index_ids", "matching", "parse_change"]


@attrs.frozen
class ChangeBinding:
    """
    One server-side binding. Equal bindings are one on the wire.

    Attributes:
        event: ``INSERT``, ``UPDATE``, ``DELETE`` or ``*``.
        schema, table, filter, select: as Realtime takes them; None is left out, because the server refuses nulls.
    """

    event: str
    schema: str
    table: str | None = None
    filter: str | None = None
    select: tuple[str, ...] | None = None

    def to_wire(self) -> dict[str, Any]:
        """The object for the join's config."""
        wire: dict[str, Any] = {"event": self.event, "schema": self.schema}
        if self.table is not None:
            wire["table"] = self.table
        if self.filter is not None:
            wire["filter"] = self.filter
        if self.select is not None:
            wire["select"] = list(self.select)
        return wire


def index_ids(bindings: Sequence[ChangeBinding], response: Any) -> dict[int, tuple[ChangeBinding, ...]]:
    """
    Which bindings stand behind each id of a join reply.

    Entry *i* of the reply is the *i*-th binding asked for; identical objects get identical ids, and 0 is legal.
    """
    entries = response.get("postgres_changes") if isinstance(response, dict) else None
    index: dict[int, tuple[ChangeBinding, ...]] = {}
    for binding, entry in zip(bindings, entries if isinstance(entries, list) else (), strict=False):
        change_id = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(change_id, int):
            index[change_id] = (*index.get(change_id, ()), binding)
    return index


def matching(index: dict[int, tuple[ChangeBinding, ...]], payload: Any, change_type: str) -> frozenset[ChangeBinding]:
    """The bindings a ``postgres_changes`` payload is for: named by its ids, and of its type or ``*``."""
    ids = payload.get("ids") if isinstance(payload, dict) else None
    return frozenset(
        binding
        for change_id in (ids if isinstance(ids, list) else ())
        if isinstance(change_id, int)
        for binding in index.get(change_id, ())
        if binding.event in ("*", change_type)
    )


def parse_change(topic: str, payload: Any) -> PostgresChange | None:
    """The event in a ``postgres_changes`` payload, None when it holds none."""
    data = payload.get("data") if isinstance(payload, dict) else None
    if not isinstance(data, dict):
        return None
    errors = data.get("errors")
    return PostgresChange(
        topic=topic,
        type=str(data.get("type", "")).upper(),
        schema=str(data.get("schema", "")),
        table=str(data.get("table", "")),
        record=data.get("record") or {},
        old_record=data.get("old_record") or {},
        columns=tuple(data.get("columns") or ()),
        commit_timestamp=_timestamp(data.get("commit_timestamp")),
        errors=tuple(errors) if isinstance(errors, list) else (),
    )


def _timestamp(text: Any) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        # Python 3.10 does not know the suffix Z.
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
