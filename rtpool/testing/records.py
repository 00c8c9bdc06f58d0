"""
What the hooks of the embedded server are given and give back, and records of what it saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = [
    "JoinRecord",
    "JoinRefusal",
    "JoinReply",
    "LeaveRecord",
    "PushReply",
    "ReceivedMessage",
    "Refusal",
    "RequestInfo",
    "RestRecord",
    "RestRequest",
]


@attrs.frozen
class RequestInfo:
    """An upgrade request: its path, the query's last value by name, the headers by lower-case name."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@attrs.frozen
class Refusal:
    """
    What an `on_connect` hook returns to refuse, and an `on_request` hook to answer.

    Attributes:
        status: of HTTP.
        delay: seconds to hold it back; None is the server's own back-off.
    """

    status: int
    body: str = ""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    delay: float | None = None


@attrs.frozen
class JoinRefusal:
    """What an `on_join` hook returns to refuse: the reason, seconds to hold it back, a close code for the socket."""

    reason: str
    delay: float | None = None
    close_code: int | None = None


@attrs.frozen
class JoinReply:
    """
    What an `on_join` hook returns to let a join in with a response of its own.

    Attributes:
        delay: seconds the join takes; meanwhile its socket is deaf and mute.
        pushes: ``(event, payload)`` of each push that follows the reply.
    """

    response: Any = attrs.field(factory=dict)
    delay: float = 0.0
    pushes: tuple[tuple[str, Any], ...] = ()


@attrs.frozen
class PushReply:
    """What an `on_push` hook returns to answer a push: any status, any JSON or bytes, after so many seconds."""

    response: Any = attrs.field(factory=dict)
    status: str = "ok"
    delay: float = 0.0


@attrs.frozen
class RestRequest:
    """A request that is no upgrade: query and headers as in `RequestInfo`; a body over 8 MB is cut and `too_large`."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    too_large: bool = False


@attrs.frozen
class RestRecord:
    """A REST call that was answered."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int


@attrs.frozen
class JoinRecord:
    """A join that was asked for: by whom, for what, and whether it was let in."""

    connection_id: int
    topic: str
    wire_topic: str
    join_ref: Any
    payload: Any
    accepted: bool
    reason: str | None


@attrs.frozen
class LeaveRecord:
    """A channel that was left."""

    connection_id: int
    topic: str
    wire_topic: str


@attrs.frozen
class ReceivedMessage:
    """A message a client sent."""

    connection_id: int
    join_ref: Any
    ref: Any
    topic: str
    event: str
    payload: Any
