"""
What callbacks, iterators and status listeners receive: frozen values, safe to keep and to share between threads.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs

__all__ = [
    "Broadcast",
    "ChannelState",
    "Event",
    "Gap",
    "Heartbeat",
    "Message",
    "PostgresChange",
    "Presence",
    "StatusChange",
    "SystemMessage",
]


class ChannelState(str, enum.Enum):
    """
    Where a Channel is in its life; the words are Phoenix's own.
    """

    CLOSED = "closed"  #: not subscribed
    JOINING = "joining"  #: asked to join, no answer yet
    JOINED = "joined"  #: the server said ok
    ERRORED = "errored"  #: refused, crashed or disconnected; comes back by itself unless the error says otherwise
    LEAVING = "leaving"  #: asked to leave, no answer yet

    def __str__(self) -> str:
        return self.value


@attrs.define(eq=False, repr=False)
class BroadcastFields:
    """
    A broadcast while it is made: a frozen class takes three times as long to fill its slots. Given `Broadcast` as its
    class, which has the very same slots, it is one.
    """

    topic: str
    event: str
    payload: Any
    id: str | None = None
    replayed: bool = False


@attrs.frozen
class Broadcast(BroadcastFields):
    """
    A broadcast.

    Attributes:
        topic: as the user wrote it.
        event: the sender's event name.
        payload: a JSON object (any JSON value where a sender got one through), or ``bytes`` on protocol 2.0.0.
        id: the message's id when it came from the database, else None.
        replayed: whether it was stored and sent again after a join.
    """


@attrs.frozen
class PostgresChange:
    """
    One changed row.

    Attributes:
        topic: as the user wrote it.
        type: ``"INSERT"``, ``"UPDATE"`` or ``"DELETE"``.
        schema, table: where.
        record: the new row by column; empty on DELETE.
        old_record: the replica identity of the old row; empty on INSERT.
        columns: ``({"name": str, "type": str}, …)``.
        commit_timestamp: aware datetime of the commit, None on error rows.
        errors: the server's errors about this row, usually empty.
    """

    topic: str
    type: str
    schema: str
    table: str
    record: Mapping[str, Any]
    old_record: Mapping[str, Any]
    columns: tuple[Mapping[str, str], ...] = ()
    commit_timestamp: datetime | None = None
    errors: tuple[str, ...] = ()


@attrs.frozen
class Presence:
    """
    A presence event.

    Attributes:
        topic: as the user wrote it.
        type: ``"sync"``, ``"join"`` or ``"leave"``.
        key: the presence key that joined or left, ``""`` for sync.
        metas: for join the new metas, for leave those that left, for sync empty.
        current: for join the metas the key had before, for leave those that remain, for sync empty.
        state: the whole state by key after the change, for sync; None otherwise.
    """

    topic: str
    type: str
    key: str = ""
    metas: tuple[Mapping[str, Any], ...] = ()
    current: tuple[Mapping[str, Any], ...] = ()
    state: Mapping[str, tuple[Mapping[str, Any], ...]] | None = None


@attrs.frozen
class SystemMessage:
    """
    What the server says of the channel itself.

    Attributes:
        topic: as the user wrote it.
        extension: ``"system"`` or ``"postgres_changes"``.
        status: ``"ok"`` or ``"error"``.
        message: the server's words; sometimes a printed Elixir term.
    """

    topic: str
    extension: str
    status: str
    message: str


@attrs.frozen
class Message:
    """
    A raw Phoenix message.

    Attributes:
        topic: as the user wrote it.
        event: the Phoenix event.
        payload: any JSON value, or ``bytes``.
    """

    topic: str
    event: str
    payload: Any


@attrs.frozen
class Gap:
    """
    A span of time in which messages may have been lost.

    Attributes:
        topic: as the user wrote it.
        cause: ``"transport"``, ``"heartbeat"``, ``"server restart"``, ``"token"``, ``"rejoin"``, ``"overflow"``,
            ``"feed restart"``, ``"fork"`` in a child that subscribed anew, or ``"replay"`` when the very first replay
            was cut.
        lost_from: aware datetime before which all that was sent had arrived: the last proof of life, less the time a
            message may be under way.
        lost_to: aware datetime at which events flowed again.
        certain: whether something was lost for certain.
        replay: how many missed messages the server replayed, None when none were asked for.
        truncated: whether the replay may lack older messages; the server keeps to the newest 25.
    """

    topic: str
    cause: str
    lost_from: datetime
    lost_to: datetime
    certain: bool = False
    replay: int | None = None
    truncated: bool = False


@attrs.frozen
class Heartbeat:
    """
    A sign of life of one connection.

    Attributes:
        connection_id: which one, as in `PoolStats.connection_details`.
        status: ``"sent"``, ``"ok"`` when the server answered, ``"timeout"`` when it did not and the connection is left.
        latency: seconds from sending to the answer, or for which none came; None for ``"sent"``.
    """

    connection_id: int
    status: str
    latency: float | None = None


@attrs.frozen
class StatusChange:
    """
    A change in a pool's or a Channel's standing.

    Attributes:
        topic: as the user wrote it; None for the pool.
        status: pool: ``idle connecting connected reconnecting error closed``; Channel: ``joining joined rejoining
            refused timed_out error closed``. ``error`` says that the quick attempts are over.
        error: the typed error behind it, or None.
        attempt: of a pool, for ``reconnecting`` the attempt that comes next, counted from 1, for ``error`` how many
            failed.
        delay: of a pool, for ``reconnecting`` the seconds until that attempt, for ``error`` until the health check
            makes one; None when rtpool makes none by itself.
        connection_id: of a pool, for ``reconnecting`` and ``error`` the connection in trouble, as in
            `PoolStats.connection_details`; None for what is true of all.
    """

    topic: str | None
    status: str
    error: Exception | None = None
    attempt: int = 0
    delay: float | None = None
    connection_id: int | None = None


Event = Broadcast | PostgresChange | Presence | SystemMessage | Message | Gap | StatusChange
