"""
When a fault strikes: the moments of a connection's life that a test can point at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from rtpool.testing.records import RequestInfo

if TYPE_CHECKING:
    from rtpool.testing.connection import ServerConnection
    from rtpool.testing.stream import Stream

__all__ = ["Accepting", "Moment", "Now", "Occasion", "Opening", "Receiving", "Replying", "Sending", "Upgrading"]


@attrs.frozen(kw_only=True, eq=False)
class Occasion:
    """
    One moment in the life of one connection, as `Moment.where` sees it.

    Attributes:
        moment: its class.
        connection: the socket; None before its upgrade has been answered.
        request: the upgrade request, at `Upgrading` alone.
        topic: of the message, as users write it.
        event: of the message.
        answers: the event a reply answers; None for what is no reply.
        message: the message, as a tuple that has ``join_ref``, ``ref``, ``topic`` as it is on the wire, ``event`` and
            ``payload``.
        stream: the connection below its messages; the server's own.
    """

    moment: type[Moment]
    stream: Stream
    connection: ServerConnection | None = None
    request: RequestInfo | None = None
    topic: str | None = None
    event: str | None = None
    answers: str | None = None
    message: Any = None

    @property
    def connection_id(self) -> int | None:
        """The socket's number; None before its upgrade has been answered."""
        return None if self.connection is None else self.connection.id


@attrs.frozen
class Moment:
    """
    What every moment can be told.

    Args:
        connection: only this socket, one of `RealtimeServer.connections`; None is any.
        skip: let it pass so many times first: 2 strikes at the third.
        where: called with the `Occasion` on the server's thread; only where it is true.
    """

    connection: ServerConnection | None = attrs.field(default=None, kw_only=True)
    skip: int = attrs.field(default=0, kw_only=True)
    where: Callable[[Occasion], object] | None = attrs.field(default=None, kw_only=True)

    def matches(self, occasion: Occasion) -> bool:
        """Whether it is this one; on the server's thread."""
        if not issubclass(occasion.moment, self._kind()):
            return False
        if self.connection is not None and occasion.connection is not self.connection:
            return False
        return self._fits(occasion) and (self.where is None or bool(self.where(occasion)))

    @classmethod
    def _kind(cls) -> type[Moment]:
        return cls

    def _fits(self, occasion: Occasion) -> bool:
        return True


@attrs.frozen
class Now(Moment):
    """
    At once, on every open socket that matches; it strikes each once.

    Args:
        topic: only sockets that have joined it, with or without the prefix; None is any.
    """

    topic: str | None = None

    def _fits(self, occasion: Occasion) -> bool:
        assert occasion.connection is not None
        joined = occasion.connection.topics
        return self.topic is None or self.topic in joined or f"realtime:{self.topic}" in joined


@attrs.frozen
class Accepting(Moment):
    """A connection has been accepted, by TLS too; the server has neither read nor written. REST calls are some too."""


@attrs.frozen
class Upgrading(Moment):
    """An upgrade request has been read and not been answered."""


@attrs.frozen
class Opening(Moment):
    """An upgrade has been answered with 101; no frame has passed."""


@attrs.frozen
class _OfMessage(Moment):
    event: str | None = None
    topic: str | None = None

    def _fits(self, occasion: Occasion) -> bool:
        topics = (None, occasion.topic, occasion.message.topic)
        return self.event in (None, self._event(occasion)) and self.topic in topics

    def _event(self, occasion: Occasion) -> str | None:
        return occasion.event


@attrs.frozen
class Receiving(_OfMessage):
    """
    A message has come from the client; the server has recorded it and done nothing else.

    Args:
        event: ``phx_join``, ``phx_leave``, ``heartbeat``, ``broadcast``, …; None is any.
        topic: with or without the prefix, ``phoenix`` for heartbeats; None is any.
    """


@attrs.frozen
class Sending(_OfMessage):
    """
    The turn of a message to the client has come: whatever was sent before it is on the stream.

    Args:
        event: ``phx_reply``, ``broadcast``, ``presence_state``, …; None is any.
        topic: with or without the prefix, ``phoenix`` for heartbeats; None is any.
    """


@attrs.frozen
class Replying(Sending):
    """
    `Sending` of a reply.

    Args:
        event: what it answers: ``phx_join``, ``phx_leave``, ``heartbeat``, ``broadcast``, …; None is any.
        topic: with or without the prefix, ``phoenix`` for heartbeats; None is any.
    """

    @classmethod
    def _kind(cls) -> type[Moment]:
        return Sending

    def _event(self, occasion: Occasion) -> str | None:
        return occasion.answers

    def _fits(self, occasion: Occasion) -> bool:
        return occasion.answers is not None and _OfMessage._fits(self, occasion)
