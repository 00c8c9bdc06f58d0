"""
What the embedded server takes and keeps: options, refusals for its hooks, records of what it saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = [
    "JoinRecord",
    "JoinRefusal",
    "LeaveRecord",
    "ReceivedMessage",
    "Refusal",
    "RequestInfo",
    "ServerOptions",
]


@attrs.frozen(kw_only=True)
class ServerOptions:
    """
    Limits and timings. Seconds are floats.

    Attributes:
        max_channels_per_client: channels of one socket.
        max_concurrent_users: sockets that joined at least once; when full, upgrades are refused with HTTP 429, and
            joins of sockets not yet counted with an error reply.
        max_joins_per_second: joins accepted within a second over the server; one more is refused and its socket closed
            with 1001. None is no limit.
        max_payload_kb: of a broadcast, in 1,000 bytes.
        max_frame_size: bytes; a larger frame closes the socket with 1009.
        idle_timeout: a socket that sent nothing for so long is closed with 1000.
        connect_error_backoff, join_error_backoff: how long a refusal is held back; the real server takes 2 and 5 s.
        join_latency: how long every join takes; meanwhile its socket is deaf and mute.
        postgres_delay: from a join's reply to "Subscribed to PostgreSQL".
        presence_max_calls: presence messages a channel may send in a window; None is no limit (the real one: 5).
        presence_window: how long that window is.
        record_limit: how many messages, joins and leaves each are kept for looking at; the oldest go first.
        send_queue_limit: bytes waiting for one client; more and it is cut off.
        require_prefix: only topics that begin with ``realtime:`` can be joined; False takes any, and then the
            server's own methods take topics as they are on the wire.
        plain_phoenix: any topic is welcome, no key is asked for, nothing of Supabase's is sent or understood.
    """

    max_channels_per_client: int = 100
    max_concurrent_users: int = 200
    max_joins_per_second: int | None = None
    max_payload_kb: int = 3000
    max_frame_size: int = 5_000_000
    idle_timeout: float = 60.0
    connect_error_backoff: float = 0.0
    join_error_backoff: float = 0.0
    join_latency: float = 0.0
    postgres_delay: float = 0.0
    presence_max_calls: int | None = None
    presence_window: float = 30.0
    record_limit: int = 100_000
    send_queue_limit: int = 64 * 1024 * 1024
    require_prefix: bool = True
    plain_phoenix: bool = False


@attrs.frozen
class RequestInfo:
    """An upgrade request: its path, the query's last value by name, the headers by lower-case name."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@attrs.frozen
class Refusal:
    """What an `on_connect` hook returns to refuse: an HTTP status, a body, headers."""

    status: int
    body: str = ""
    headers: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class JoinRefusal:
    """What an `on_join` hook returns to refuse: the reason, seconds to hold it back, a close code for the socket."""

    reason: str
    delay: float | None = None
    close_code: int | None = None


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
