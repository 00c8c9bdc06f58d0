"""
Topics and who is in them: broadcast, presence, changes. Confined to the server's loop.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs

from rtpool.testing.postgres import BadFilter, binding_id, binding_matches, check_binding
from rtpool.testing.wire import ClientMessage, ServerMessage, encode

if TYPE_CHECKING:
    from rtpool.testing.connection import ServerConnection

__all__ = ["Member", "Room", "Rooms"]


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
    subscribed: bool = False  # changes before "Subscribed to PostgreSQL" are lost
    token: str | None = None
    meta: dict[str, Any] | None = None
    presence_calls: int = 0
    presence_window: float = 0.0

    @classmethod
    def from_join(cls, connection: ServerConnection, message: ClientMessage) -> Member:
        """Read a join's payload as leniently as Realtime does."""
        payload, join_ref = message.payload, message.join_ref
        config = payload.get("config") if isinstance(payload, dict) else None
        config = config if isinstance(config, dict) else {}

        def section(name: str) -> dict[str, Any]:
            value = config.get(name)
            return value if isinstance(value, dict) else {}

        changes = config.get("postgres_changes")
        token = payload.get("user_token") or payload.get("access_token") if isinstance(payload, dict) else None
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
            bindings=[c for c in changes if isinstance(c, dict)] if isinstance(changes, list) else [],
            token=token if isinstance(token, str) else None,
        )

    def send(self, event: str, payload: Any, *, own: bool = True) -> None:
        """Push to this channel; `own` frames carry its join_ref, fanned-out ones do not."""
        self.connection.send(ServerMessage(self.own_ref if own else None, None, self.topic, event, payload))

    def system(self, extension: str, status: str, words: str) -> None:
        """Push a ``system`` message."""
        name = self.topic.removeprefix("realtime:")
        self.send("system", {"extension": extension, "status": status, "message": words, "channel": name})


class Room:
    """One topic, public or private: the two never see each other."""

    def __init__(self) -> None:
        self.members: dict[Member, None] = {}
        self.presence: dict[str, dict[Member, dict[str, Any]]] = {}

    def fan_out(self, message: ServerMessage, *, but: Member | None = None) -> int:
        """Send to everybody, in the order of joining; returns how many got it."""
        frames: dict[str, str | bytes | None] = {}  # encoded once for all sockets of a version
        reached = 0
        for member in self.members:
            if member is but:
                continue
            connection = member.connection
            if connection.vsn not in frames:
                frames[connection.vsn] = encode(connection.vsn, message)
            frame = frames[connection.vsn]
            if frame is not None:
                connection.enqueue(frame)
                reached += 1
        return reached

    def state(self) -> dict[str, Any]:
        """The presence state as it goes over the wire."""
        return {key: {"metas": list(metas.values())} for key, metas in self.presence.items()}

    def set_meta(self, member: Member, meta: dict[str, Any] | None, phx_ref: str) -> None:
        """Track or untrack, and tell everybody the difference."""
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
        if joins or leaves:
            self.fan_out(ServerMessage(None, None, member.topic, "presence_diff", {"joins": joins, "leaves": leaves}))


class Rooms:
    """Every room of the server."""

    def __init__(self) -> None:
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
        if member.meta is not None:
            room.set_meta(member, None, "")
        if not room.members:
            del self._rooms[member.topic, member.private]

    def after_join(self, member: Member) -> None:
        """What the server says of its own accord after the reply."""
        room = self.get(member.topic, member.private)
        if room is not None and member.presence:
            member.send("presence_state", room.state())

    def postgres_status(self, member: Member) -> None:
        """Say whether changes flow."""
        room = self.get(member.topic, member.private)
        if not member.bindings or room is None or member not in room.members:
            return  # it may have left since this was set going
        status, message = "ok", "Subscribed to PostgreSQL"
        try:
            for binding in member.bindings:
                check_binding(binding)
        except BadFilter as error:
            status, message = "error", str(error)
            member.bindings = []
        member.subscribed = status == "ok"
        member.system("postgres_changes", status, message)

    def track(self, member: Member, meta: dict[str, Any] | None) -> None:
        """Track or untrack a member; an identical payload changes nothing."""
        room = self.get(member.topic, member.private)
        before = member.meta or {}
        same = {k: v for k, v in before.items() if k not in ("phx_ref", "phx_ref_prev")} == meta
        if room is None or (meta is None and member.meta is None) or (member.meta is not None and same):
            return
        room.set_meta(member, meta, f"F{next(self._refs):08x}")

    def change(self, data: dict[str, Any]) -> int:
        """Fan a changed row out; returns how many channels got it."""
        row = data.get("record") if data["type"] != "DELETE" else data.get("old_record")
        sent = 0
        for room in self.all():
            for member in room.members:
                if not member.subscribed:
                    continue
                ids = [
                    binding_id(b)
                    for b in member.bindings
                    if binding_matches(b, data["schema"], data["table"], data["type"], row or {})
                ]
                if ids:
                    member.send("postgres_changes", {"ids": ids, "data": data}, own=False)
                    sent += 1
        return sent
