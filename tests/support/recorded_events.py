"""
A second opinion on what the users of a recorded join are to hear, read frame by frame. Shares no logic with rtpool.
"""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from rtpool.events import Broadcast, Event, Message, PostgresChange, Presence, SystemMessage
from tests.support.recorded_wire import is_true

__all__ = ["Listener", "bindings_of", "wants_presence"]

#: Stands for a Gap, whose times no recording holds.
FEED_RESTART = ("gap", "feed restart")
CHANGE_EVENTS = ("INSERT", "UPDATE", "DELETE")


def _config(payload: Any) -> dict[str, Any]:
    config = payload.get("config") if isinstance(payload, dict) else None
    return config if isinstance(config, dict) else {}


def bindings_of(payload: Any) -> list[dict[str, Any]]:
    """What a join asked of the table feed, as the server counts it: nulls are left out, unknown events are ``*``."""
    asked = _config(payload).get("postgres_changes")
    bindings = [dict(binding) for binding in asked if isinstance(binding, dict)] if isinstance(asked, list) else []
    for binding in bindings:
        event = str(binding.get("event", "*")).upper()
        binding["event"] = event if event in CHANGE_EVENTS else "*"
    return bindings


def wants_presence(payload: Any) -> bool:
    """Whether a join asked to see who is present."""
    presence = _config(payload).get("presence")
    return isinstance(presence, dict) and is_true(presence.get("enabled"))


class Listener:
    """All the users of one topic on one socket, over its rejoins."""

    def __init__(self, topic: str, *, plain: bool) -> None:
        self.topic = topic
        self.plain = plain  # plain Phoenix: every event is the application's own
        self.asked: list[dict[str, Any]] = []
        self.bindings: list[dict[str, Any]] = []
        self.ids: list[int] = []
        self.present: list[tuple[str, dict[str, Any]]] = []  # key and meta, oldest first
        self.presence = self.synced = self.fed = False
        self.introduced = False  # whether they were ever told who is present
        self.early: list[dict[str, Any]] = []

    def joins(self, payload: Any) -> None:
        """A join is asked for."""
        self.asked = bindings_of(payload)
        self.presence = self.plain or wants_presence(payload)
        self.synced = self.fed = False
        self.early = []

    def joined(self, response: Any) -> None:
        """The server let it in: entry by entry it numbers what was asked for."""
        self.bindings = self.asked
        self.ids = [] if self.plain else [entry["id"] for entry in response["postgres_changes"]]

    def matching(self, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """The bindings a change is for."""
        kind = payload["data"]["type"].upper()
        return [
            binding
            for binding, binding_id in zip(self.bindings, self.ids, strict=False)
            if binding_id in payload["ids"] and binding["event"] in ("*", kind) and binding in self.asked
        ]

    def state(self) -> dict[str, tuple[dict[str, Any], ...]]:
        """Who is present, by key."""
        return {key: tuple(meta for k, meta in self.present if k == key) for key, _ in self.present}

    def hears(self, event: str, payload: Any) -> list[Event | tuple[str, str]]:
        """What one frame comes to."""
        if event in ("presence_state", "presence_diff"):
            followed = self._presence_state if event == "presence_state" else self._presence_diff
            return [Message(self.topic, event, payload), *followed(payload)]
        if not self.plain and event == "broadcast" and isinstance(payload, dict) and "event" in payload:
            meta = payload.get("meta", {})
            words = payload["event"], payload.get("payload")
            return [Broadcast(self.topic, *words, meta.get("id"), meta.get("replayed", False))]
        if not self.plain and event == "system":
            fed_before, told = (
                self.fed,
                SystemMessage(self.topic, *(payload[k] for k in ("extension", "status", "message"))),
            )
            if told.extension != "postgres_changes" or told.status != "ok":
                return [told]
            self.fed = True
            return [told, FEED_RESTART] if fed_before else [told]
        if not self.plain and event == "postgres_changes":
            return [self._change(payload["data"])] if self.matching(payload) else []
        return [Message(self.topic, event, payload)]

    def _change(self, data: dict[str, Any]) -> PostgresChange:
        at = data["commit_timestamp"]
        return PostgresChange(
            self.topic,
            data["type"],
            data["schema"],
            data["table"],
            _exact(data, "record"),
            _exact(data, "old_record"),
            tuple(data["columns"]),
            at and datetime.strptime(at, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc),
            tuple(data["errors"] or ()),
        )

    # Presence: everybody is a line of a list

    def _presence_state(self, payload: dict[str, Any]) -> list[Event | tuple[str, str]]:
        there = [(key, meta) for key, entry in payload.items() for meta in entry["metas"]]
        new = [line for line in there if line[1]["phx_ref"] not in _refs(self.present)]
        gone = [line for line in self.present if line[1]["phx_ref"] not in _refs(there)]
        told = self._apply(new, gone)
        self.synced = True
        for diff in self.early:
            told += self._apply(*_lines(diff))
        return self._sync(told)

    def _presence_diff(self, payload: dict[str, Any]) -> list[Event | tuple[str, str]]:
        if not self.presence:
            return []
        if not self.synced:
            self.early.append(payload)
            return []
        return self._sync(self._apply(*_lines(payload)))

    def _sync(self, told: list[Event | tuple[str, str]]) -> list[Event | tuple[str, str]]:
        if not self.introduced:
            self.introduced = True
            told = [Presence(self.topic, "join", key, metas) for key, metas in self.state().items()]
        return [*told, Presence(self.topic, "sync", state=self.state())] if self.presence else []

    def _apply(self, new: list[Any], gone: list[Any]) -> list[Event | tuple[str, str]]:
        told: list[Event | tuple[str, str]] = []
        for key in dict.fromkeys(key for key, _ in new):
            metas = tuple(meta for k, meta in new if k == key)
            told.append(Presence(self.topic, "join", key, metas, self.state().get(key, ())))
            self.present = [(k, m) for k, m in self.present if k != key or m["phx_ref"] not in _refs(new)]
            self.present += [(key, meta) for meta in metas]
        for key in dict.fromkeys(key for key, _ in gone if key in self.state()):
            metas = tuple(meta for k, meta in gone if k == key)
            self.present = [(k, m) for k, m in self.present if k != key or m["phx_ref"] not in _refs(gone)]
            told.append(Presence(self.topic, "leave", key, metas, self.state().get(key, ())))
        return told


def _exact(data: dict[str, Any], row: str) -> dict[str, Any]:
    """A row with its ``numeric`` cells as decimals; no recorded one has more digits than a float prints."""
    numeric = {column["name"] for column in data["columns"] if column["type"] == "numeric"}
    cells = data.get(row, {}).items()
    return {name: Decimal(str(cell)) if name in numeric and cell is not None else cell for name, cell in cells}


def _refs(lines: list[Any]) -> set[str]:
    return {meta["phx_ref"] for _, meta in lines}


def _lines(diff: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    new, gone = (
        [(key, meta) for key, entry in diff[part].items() for meta in entry["metas"]] for part in ("joins", "leaves")
    )
    return new, gone
