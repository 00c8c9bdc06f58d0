"""
What a session says happened.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rtpool.protocol.messages import Broadcasts, WireMessage

__all__ = [
    "ChannelEvent",
    "ChannelLost",
    "Fenced",
    "HeartbeatLost",
    "HeartbeatReplied",
    "HeartbeatSent",
    "JoinFailed",
    "Joined",
    "Left",
    "PushSettled",
    "SessionEvent",
]


class Joined(NamedTuple):
    """The server let a topic in; `response` is the reply's."""

    topic: str
    response: Any


class JoinFailed(NamedTuple):
    """A join was refused with `response`, or not answered in time."""

    topic: str
    response: Any
    timed_out: bool


class ChannelLost(NamedTuple):
    """The server ended a channel: `cause` is ``phx_error``, ``phx_close`` or ``unmatched topic``."""

    topic: str
    cause: str
    payload: Any


class Left(NamedTuple):
    """The server forgot a topic we left, or the wait for its word ended."""

    topic: str
    timed_out: bool


class PushSettled(NamedTuple):
    """
    A push is done. `outcome`: ``reply`` (with status and response), ``sent`` (handed to the kernel; another follows
    when the reply was to be told too), ``timeout`` or ``lost`` (the connection or channel went away first). `written`:
    whether the kernel had it.
    """

    token: Any
    outcome: str
    status: str
    response: Any
    written: bool


class Fenced(NamedTuple):
    """All that was sent to this socket before the fence `ref` was asked for has been read."""

    ref: str


class HeartbeatSent(NamedTuple):
    """A heartbeat is on its way."""


class HeartbeatReplied(NamedTuple):
    """A heartbeat came back after `latency` seconds."""

    latency: float


class HeartbeatLost(NamedTuple):
    """A heartbeat was not answered; the peer is to be left."""

    waited: float


ChannelEvent = Joined | JoinFailed | ChannelLost | Left
#: What is for a topic's subscribers is itself what happened.
SessionEvent = (
    Broadcasts | WireMessage | ChannelEvent | PushSettled | Fenced | HeartbeatSent | HeartbeatReplied | HeartbeatLost
)
