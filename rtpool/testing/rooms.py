"""
Topics and who is in them: broadcast, presence, replay. Confined to the server's loop.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from rtpool.testing.clock import Timer
from rtpool.testing.policy import EVERYTHING, Permissions
from rtpool.testing.refusals import System
from rtpool.testing.wire import ClientMessage, ServerMessage, encode

if TYPE_CHECKING:
    from rtpool.testing.connection import ServerConnection
    from rtpool.testing.server import RealtimeServer
    from rtpool.testing.store import StoredMessage

__all__ = ["Member", "Reached", "Room", "Rooms", "truth"]


def truth(value: Any) -> bool:
    """A flag as Realtime reads it: a boolean, or its name in any case."""
    return value is True or (isinstance(value, str) and value.lower() == "true")


@attrs.define(eq=False)
class Member:
    """One joined channel of one socket."""

    connection: ServerConnection
    topic: str
    join_ref: Any
    own_ref: Any  # what its pushes carry: the join's ref where the join had no join_ref
    private: bool = False
    ack: bool = False
    receive_own: bool = False
    presence: bool = False
    key: str = ""
    bindings: list[dict[str, Any]] = attrs.field(factory=list)
    legacy: bool = False  # joined without a config: changes come as INSERT, UPDATE, DELETE
    subscribed: bool = False  # changes before "Subscribed to PostgreSQL" are lost
    replication_ready: bool = False
    token: str | None = None
    claims: Mapping[str, Any] = attrs.field(factory=dict)
    may: Permissions = EVERYTHING  # what it may read; writing is asked about at the first try
    may_write: Permissions | None = None
    replayed: frozenset[str] = frozenset()
    expiry: Timer | None = None
    meta: dict[str, Any] | None = None
    presence_calls: int = 0
    presence_window: float = 0.0

    @classmethod
    def from_join(cls, connection: ServerConnection, message: ClientMessage) -> Member:
        """Read a join's payload as leniently as Realtime does."""
        payload, join_ref = message.payload, message.join_ref
        payload = payload if isinstance(payload, dict) else {}
        config = payload.get("config")
        config = config if isinstance(config, dict) else {}

        def section(name: str) -> dict[str, Any]:
            value = config.get(name)
            return value if isinstance(value, dict) else {}

        changes = config.get("postgres_changes")
        bindings = [c for c in changes if isinstance(c, dict)] if isinstance(changes, list) else []
        legacy = "config" not in payload
        return cls(
            connection,
            message.topic,
            join_ref,
            message.ref if join_ref is None else join_ref,
            private=truth(config.get("private")),
            ack=truth(section("broadcast").get("ack")),
            receive_own=truth(section("broadcast").get("self")),
            presence=truth(section("presence").get("enabled")),
            key=str(section("presence").get("key") or uuid.uuid1()),
            bindings=_legacy_binding(message.topic) if legacy else bindings,
            legacy=legacy,
            replication_ready=section("broadcast").get("replication_ready") not in (None, False),
        )

    @property
    def name(self) -> str:
        """The topic as users write it."""
        return self.topic.removeprefix("realtime:")

    def send(self, event: str, payload: Any, *, own: bool = True) -> None:
        """Push to this channel; `own` frames carry its join_ref, fanned-out ones do not."""
        self.connection.send(ServerMessage(self.own_ref if own else None, None, self.topic, event, payload))

    def system(self, extension: str, status: str, words: str) -> None:
        """Push a ``system`` message."""
        self.send("system", {"extension": extension, "status": status, "message": words, "channel": self.name})


def _legacy_binding(topic: str) -> list[dict[str, Any]]:
    # protocol: without a config the topic is schema[:table[:filter]], and "*" any schema
    parts = topic.removeprefix("realtime:").split(":", 2)
    return [dict(zip(("schema", "table", "filter"), parts, strict=False))]


class Reached(NamedTuple):
    """Whom a broadcast reached, and whether that was over the events limit."""

    members: list[Member]
    over: bool

    def enforce(self) -> int:
        """Shut down whom it reached if it was over the limit; returns how many it reached."""
        if self.over:
            for member in self.members:
                member.connection.shut_down(member, System.TOO_MANY_MESSAGES())
        return len(self.members)


class Room:
    """One topic, public or private: the two never see each other."""

    def __init__(self) -> None:
        self.members: dict[Member, None] = {}
        self.presence: dict[str, dict[Member, dict[str, Any]]] = {}

    def fan_out(self, message: ServerMessage, *, to: Callable[[Member], bool] | None = None) -> list[Member]:
        """Send to those that `to` picks, None is everybody, in the order of joining; returns who got it."""
        frames: dict[str, str | bytes | None] = {}  # encoded once for all sockets of a version
        reached = []
        for member in self.members:
            if to is not None and not to(member):
                continue
            connection = member.connection
            if connection.vsn not in frames:
                frames[connection.vsn] = encode(connection.vsn, message)
            frame = frames[connection.vsn]
            if frame is not None:
                connection.send(message, frame=frame)
                reached.append(member)
        return reached

    def state(self) -> dict[str, Any]:
        """The presence state as it goes over the wire."""
        return {key: {"metas": list(metas.values())} for key, metas in self.presence.items()}

    def set_meta(self, member: Member, meta: dict[str, Any] | None, phx_ref: str) -> int:
        """Track or untrack, and tell who may see it the difference; returns how many."""
        before = member.meta
        leaves = {} if before is None else {member.key: {"metas": [before]}}
        joins: dict[str, Any] = {}
        if meta is not None:
            member.meta = {**meta, "phx_ref": phx_ref}
            if before is not None:
                member.meta["phx_ref_prev"] = before["phx_ref"]
            self.presence.setdefault(member.key, {})[member] = member.meta
            joins = {member.key: {"metas": [member.meta]}}
        else:
            member.meta = None
            metas = self.presence.get(member.key, {})
            metas.pop(member, None)
            if not metas:
                self.presence.pop(member.key, None)
        if not joins and not leaves:
            return 0
        diff = ServerMessage(None, None, member.topic, "presence_diff", {"joins": joins, "leaves": leaves})
        return len(self.fan_out(diff, to=lambda other: other.may.read_presence))


class Rooms:
    """Every room of the server."""

    def __init__(self, server: RealtimeServer) -> None:
        self._server = server
        self._rooms: dict[tuple[str, bool], Room] = {}
        self._refs = itertools.count(1)

    def get(self, topic: str, private: bool) -> Room | None:
        """The room, None when nobody is in it."""
        return self._rooms.get((topic, private))

    def of(self, topic: str) -> Iterable[Room]:
        """The public and the private room of a topic, as far as they exist."""
        return [room for private in (False, True) if (room := self.get(topic, private))]

    def all(self) -> list[Room]:
        """Every room somebody is in."""
        return list(self._rooms.values())

    def enter(self, member: Member) -> None:
        """Let a member in."""
        self._rooms.setdefault((member.topic, member.private), Room()).members[member] = None

    def leave(self, member: Member) -> None:
        """Put a member out and end its presence."""
        room = self.get(member.topic, member.private)
        if room is None or member not in room.members:
            return
        del room.members[member]
        if member.expiry is not None:
            member.expiry.cancel()
        if member.meta is not None:
            self._server.presence_events.count(room.set_meta(member, None, ""))
        if not room.members:
            del self._rooms[member.topic, member.private]

    def present(self, member: Member) -> bool:
        """Whether a member is still in its room."""
        room = self.get(member.topic, member.private)
        return room is not None and member in room.members

    def broadcast(self, message: ServerMessage, private: bool, *, but: Member | None = None) -> Reached:
        """Fan a broadcast out to all that may hear it."""
        server, room = self._server, self.get(message.topic, private)
        over = server.events.over(server.options.max_events_per_second)
        server.events.count()
        if room is None:
            return Reached([], over)
        meta = message.payload.get("meta") if isinstance(message.payload, dict) else None
        number = meta.get("id") if isinstance(meta, dict) else None

        def hears(member: Member) -> bool:
            return member is not but and member.may.read_broadcast and number not in member.replayed

        reached = room.fan_out(message, to=hears)
        server.events.count(len(reached))
        return Reached(reached, over)

    def replay(self, member: Member, messages: list[StoredMessage]) -> None:
        """Send stored messages to one member that has just joined."""
        member.replayed = frozenset(message.id for message in messages)
        for message in messages:
            meta = {"id": message.id, "replayed": True}
            data = {"type": "broadcast", "event": message.event, "payload": message.payload, "meta": meta}
            member.send("broadcast", data)

    def after_join(self, member: Member) -> None:
        """What the server says of presence after the reply."""
        room = self.get(member.topic, member.private)
        enabled = member.presence or self._server.options.presence_enabled
        if room is not None and enabled and member.may.read_presence:
            member.send("presence_state", room.state())
            self._server.presence_events.count()

    def track(self, member: Member, meta: dict[str, Any] | None) -> str | None:
        """Track or untrack a member and return its phx_ref; an identical payload changes nothing."""
        room = self.get(member.topic, member.private)
        before = member.meta or {}
        same = {k: v for k, v in before.items() if k not in ("phx_ref", "phx_ref_prev")} == meta
        if room is None or (meta is None and member.meta is None) or (member.meta is not None and same):
            return before.get("phx_ref")
        ref = f"F{next(self._refs):08x}"
        self._server.presence_events.count(room.set_meta(member, meta, ref))
        return None if meta is None else ref
