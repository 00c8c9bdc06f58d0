"""
What tests make the embedded server do: send, change rows, lose its database, restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

import attrs

from rtpool.testing.changes import Feed
from rtpool.testing.connection import ServerConnection
from rtpool.testing.limits import Rate
from rtpool.testing.options import ServerOptions
from rtpool.testing.rooms import Rooms
from rtpool.testing.runner import Runner
from rtpool.testing.store import Store, StoredMessage
from rtpool.testing.tables import RowPolicy, Table, Tables
from rtpool.testing.wire import ServerMessage

__all__ = ["Controls"]


class Controls(Runner):
    """
    The server's own deeds, and what befalls it.

    Thread-safety: every method may be called from any thread.
    """

    options: ServerOptions
    rooms: Rooms
    feed: Feed
    tables: Tables
    store: Store
    joins_rate: Rate
    events: Rate
    presence_events: Rate
    change_events: Rate
    database_is_down = False

    @property
    def connections(self) -> tuple[ServerConnection, ...]:
        """The sockets open now, oldest first."""
        return ()

    # What it does

    def broadcast(
        self,
        topic: str,
        event: str,
        payload: Mapping[str, Any] | bytes,
        *,
        private: bool = False,
        id: str | None = None,
        as_text: bool = False,
    ) -> int:
        """
        Broadcast from the server's side, as a REST call would; `database_send` is for what the database sends.

        Args:
            payload: an object, or bytes (which vsn 1 sockets do not get).
            id: becomes ``meta.id``.
            as_text: a text frame also on vsn 2, as the batch REST endpoint sends.

        Returns:
            How many channels it was sent to.
        """
        body = payload if isinstance(payload, bytes) else dict(payload)
        data: dict[str, Any] = {"type": "broadcast", "event": event, "payload": body}
        if id is not None:
            data["meta"] = {"id": id}

        message = ServerMessage(None, None, self.wire_topic(topic), "broadcast", data, not as_text)
        return self.call(lambda: self.rooms.broadcast(message, private).enforce())

    def database_send(
        self,
        topic: str,
        event: str,
        payload: Any,
        *,
        private: bool = True,
        id: str | None = None,
        inserted_at: float | None = None,
    ) -> StoredMessage:
        """
        What the SQL functions ``realtime.send`` and, for bytes, ``realtime.send_binary`` do: store and deliver.

        Args:
            payload: an object, which gets an ``id`` if it has none, or bytes; anything else comes to nothing, as with
                the real server.
            id: of the message; None makes one.
            inserted_at: seconds since the epoch; None is now, anything else is only stored, not delivered.

        Returns:
            The row of ``realtime.messages``.
        """
        body = dict(payload) if isinstance(payload, Mapping) else payload

        def send() -> StoredMessage:
            stored = self.store.add(topic, event, body, private=private, id=id, inserted_at=inserted_at)
            over = self.events.over(self.options.max_events_per_second)
            if inserted_at is None and isinstance(stored.payload, (dict, bytes)) and not over:
                data = {"type": "broadcast", "event": event, "payload": stored.payload, "meta": {"id": stored.id}}
                wire_topic = self.wire_topic(topic)
                message = ServerMessage(None, None, wire_topic, "broadcast", data, True)
                self.rooms.broadcast(message, private).enforce()
            return stored

        return self.call(send)

    def push(self, topic: str, event: str, payload: Any) -> int:
        """Push any event to everybody on a topic; returns how many got it."""

        def send() -> int:
            message = ServerMessage(None, None, self.wire_topic(topic), event, payload)
            return sum(len(room.fan_out(message)) for room in self.rooms.of(self.wire_topic(topic)))

        return self.call(send)

    def change(
        self,
        schema: str,
        table: str,
        type: str,
        record: Mapping[str, Any] | None = None,
        old_record: Mapping[str, Any] | None = None,
        *,
        columns: list[dict[str, str]] | None = None,
        commit_timestamp: str | None = None,
    ) -> int:
        """
        A row changed: tell every channel with a binding that matches.

        Args:
            type: ``INSERT``, ``UPDATE`` or ``DELETE``.
            record: the new row; not for DELETE.
            old_record: the replica identity of the old row; not for INSERT.
            columns: ``{"name", "type"}`` of each; None guesses.
            commit_timestamp: as it goes over the wire; None is now.

        Returns:
            How many channels got it.
        """
        data = self._change(schema, table, type, record, old_record)
        if columns is not None:
            data["columns"] = columns
        if commit_timestamp is not None:
            data["commit_timestamp"] = commit_timestamp
        return self.call(lambda: self.feed.deliver([data]))

    def changes(self, *rows: tuple[Any, ...]) -> int:
        """
        Rows changed so fast that the server sees all of it at once.

        With row-level security what is deleted by then is not seen any more: of an insertion, an update and a deletion
        only the deletion is sent.

        Args:
            rows: each ``(schema, table, type, record, old_record)``, as for `change`.

        Returns:
            How many channels got something, summed over the rows.
        """
        batch = [self._change(*row) for row in rows]
        return self.call(lambda: self.feed.deliver(batch))

    def _change(
        self,
        schema: str,
        table: str,
        type: str,
        record: Mapping[str, Any] | None = None,
        old_record: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        moment = datetime.fromtimestamp(self.clock.now(), timezone.utc)
        row = record if record is not None else old_record or {}
        data: dict[str, Any] = {
            "schema": schema,
            "table": table,
            "type": type.upper(),
            "commit_timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "errors": None,
            "columns": [{"name": name, "type": _column_type(value)} for name, value in row.items()],
        }
        if record is not None:
            data["record"] = dict(record)
        if old_record is not None:
            data["old_record"] = dict(old_record)
        return data

    def table(
        self,
        name: str,
        columns: Mapping[str, str],
        *,
        schema: str = "public",
        primary_key: Iterable[str] = ("id",),
        row_security: RowPolicy | None = None,
        roles: Iterable[str] | None = None,
        full_identity: bool = False,
    ) -> None:
        """
        Declare a table of the publication; from the first on, only declared ones can be subscribed to.

        Args:
            columns: the PostgreSQL type of each, by name.
            primary_key: what an old row is known by; without one only errors are sent.
            row_security: who sees which row, called with a token's claims and the row.
            roles: which may select; None is all.
            full_identity: old rows are whole.
        """
        table = Table(
            schema=schema,
            name=name,
            columns=dict(columns),
            primary_key=tuple(primary_key),
            row_security=row_security,
            roles=None if roles is None else frozenset(roles),
            full_identity=full_identity,
        )
        self.call(lambda: self.tables.declare(table))

    def drop_table(self, name: str, *, schema: str = "public") -> None:
        """Take a table out of the publication."""
        self.call(lambda: self.tables.drop(schema, name))

    def restart_changes_feed(self) -> None:
        """Begin the changes feed anew, as a changed publication does: every subscriber is told a second time."""
        self.call(self.feed.restart)

    # What befalls it

    def configure(self, **changes: Any) -> None:
        """Change options while it runs; `private_only` and `suspended` disconnect everybody, as really."""

        def change() -> None:
            before, self.options = self.options, attrs.evolve(self.options, **changes)
            if "rate_tick" in changes:
                self.reset_rates()
            switches = (self.options.private_only, self.options.suspended)
            if switches != (before.private_only, before.suspended):
                self.disconnect_all()

        self.call(change)

    def reset_rates(self) -> None:
        """Count joins, messages and changes from nothing."""
        tick = self.options.rate_tick
        self.joins_rate, self.events = Rate(self.clock.now, tick), Rate(self.clock.now, tick)
        self.presence_events, self.change_events = Rate(self.clock.now, tick), Rate(self.clock.now, tick)

    def disconnect_all(self) -> None:
        """Tell each channel "Server requested disconnect", then close with 1012: the settings were changed."""

        def disconnect() -> None:
            for connection in self.connections:
                connection.request_disconnect()

        self.call(disconnect)

    def drain(self) -> None:
        """Close with 1012 every socket that has joined, without a word: the server is being stopped."""

        def close() -> None:
            for connection in self.connections:
                if connection.counted:
                    connection.close(1012)

        self.call(close)

    def crash_channel(self, topic: str) -> int:
        """Kill the channels of a topic: phx_error to each; returns how many there were."""

        def crash() -> int:
            members = [member for room in self.rooms.of(self.wire_topic(topic)) for member in list(room.members)]
            for member in members:
                member.connection.crash(member)
            return len(members)

        return self.call(crash)

    def expire_tokens(self, topic: str | None = None) -> int:
        """End the channels of a topic, None is all, as if their tokens had expired now; returns how many."""

        def expire() -> int:
            rooms = self.rooms.all() if topic is None else self.rooms.of(self.wire_topic(topic))
            members = [member for room in rooms for member in list(room.members)]
            for member in members:
                member.connection.shut_down(member, "Token has expired 0 seconds ago")
            return len(members)

        return self.call(expire)

    def stop_database(self) -> None:
        """Lose the database: private joins fail, changes are lost, new subscriptions wait."""

        def stop() -> None:
            self.database_is_down = True

        self.call(stop)

    def start_database(self) -> None:
        """Have the database again; subscriptions that waited fail once and are tried again after `postgres_retry`."""

        def start() -> None:
            self.database_is_down = False
            self.feed.database_is_back()

        self.call(start)

    def track(self, connection: ServerConnection, topic: str, key: str, meta: Mapping[str, Any] | None) -> str | None:
        """
        Track a channel's presence from the server's side, as plain Phoenix applications do.

        Args:
            connection: the socket that has joined `topic`; `LookupError` when it has not.
            key: the presence key.
            meta: None untracks.

        Returns:
            The phx_ref of the presence, None when there is none any more.
        """

        def track() -> str | None:
            member = connection.members[self.wire_topic(topic)]
            member.key = key
            return self.rooms.track(member, None if meta is None else dict(meta))

        return self.call(track)

    def wire_topic(self, topic: str) -> str:
        """A topic as it is on the wire."""
        options = self.options
        as_it_is = options.plain_phoenix or not options.require_prefix or topic.startswith("realtime:")
        return topic if as_it_is else f"realtime:{topic}"

    def short_topic(self, topic: str) -> str:
        """A wire topic as users write it."""
        return topic if self.options.plain_phoenix else topic.removeprefix("realtime:")


def _column_type(value: Any) -> str:
    kinds = {bool: "bool", int: "int8", float: "float8", dict: "jsonb", list: "jsonb"}
    return kinds.get(type(value), "text")
