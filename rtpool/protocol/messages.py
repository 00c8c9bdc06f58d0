"""
Phoenix messages as values, and the names the protocol reserves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = [
    "ACCESS_TOKEN",
    "BROADCAST",
    "BinaryBody",
    "Body",
    "Broadcasts",
    "HEARTBEAT",
    "JsonBody",
    "MAX_NAME_BYTES",
    "PHOENIX_TOPIC",
    "PHX_CLOSE",
    "PHX_ERROR",
    "PHX_JOIN",
    "PHX_LEAVE",
    "PHX_REPLY",
    "POSTGRES_CHANGES",
    "PRESENCE",
    "PRESENCE_DIFF",
    "PRESENCE_STATE",
    "RESERVED_EVENTS",
    "Ref",
    "SYSTEM",
    "UserBroadcast",
    "WireMessage",
]

PHX_JOIN = "phx_join"
PHX_LEAVE = "phx_leave"
PHX_REPLY = "phx_reply"
PHX_CLOSE = "phx_close"
PHX_ERROR = "phx_error"
HEARTBEAT = "heartbeat"
#: The topic of heartbeats.
PHOENIX_TOPIC = "phoenix"

BROADCAST = "broadcast"
PRESENCE = "presence"
PRESENCE_STATE = "presence_state"
PRESENCE_DIFF = "presence_diff"
POSTGRES_CHANGES = "postgres_changes"
ACCESS_TOKEN = "access_token"
SYSTEM = "system"

#: Events only the protocol itself may push.
RESERVED_EVENTS = frozenset({PHX_JOIN, PHX_LEAVE, PHX_REPLY, PHX_CLOSE, PHX_ERROR, HEARTBEAT, ACCESS_TOKEN})

#: Binary frames give each name one size byte, so no topic or event may be longer in UTF-8.
MAX_NAME_BYTES = 255

#: A client-chosen message id. Strings by convention; a server echoes an integer as an integer.
Ref = str | int | None


class WireMessage(NamedTuple):
    """
    One decoded Phoenix message.

    `payload` is a JSON value or bytes. A reply's payload is ``{"status": str, "response": JSON value or bytes}``; a
    broadcast's ``{"type": "broadcast", "event": str, "payload": JSON value or bytes[, "meta": {…}]}``.
    """

    join_ref: Ref
    ref: Ref
    topic: str
    event: str
    payload: Any


class Broadcasts(NamedTuple):
    """
    Broadcasts of a topic, in order, by their payloads: messages without a ref that came with nothing between them but
    such of other topics. To make and pass on each by itself would take half the time of decoding it.
    """

    topic: str
    payloads: list[Any]

    def messages(self) -> Iterator[WireMessage]:
        """Each of them."""
        return (WireMessage(None, None, self.topic, BROADCAST, payload) for payload in self.payloads)


class JsonBody(NamedTuple):
    """A payload already encoded as JSON text in UTF-8. It may hold a token, and is not shown."""

    data: bytes

    def __repr__(self) -> str:
        return f"<JsonBody of {len(self.data)} bytes>"


class BinaryBody(NamedTuple):
    """A raw payload for any event: a kind 0 frame, vsn 2 only."""

    data: bytes


class UserBroadcast(NamedTuple):
    """A broadcast in a kind 3 frame, vsn 2 on Realtime only: bytes, or JSON already encoded."""

    event: str
    data: bytes
    is_json: bool = False
    metadata: bytes = b""


Body = JsonBody | BinaryBody | UserBroadcast
