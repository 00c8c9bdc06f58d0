"""
What a pool can tell about itself: frozen snapshots, safe to keep, JSON-able, free of secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["ConnectionDetails", "GAP_CAUSES", "Health", "PoolStats", "SubscriptionDetails"]

#: What `Gap.cause` may be.
GAP_CAUSES = (
    "transport",
    "heartbeat",
    "server restart",
    "token",
    "rejoin",
    "overflow",
    "feed restart",
    "fork",
    "replay",
)


@attrs.frozen(kw_only=True)
class ConnectionDetails:
    """
    One connection.

    Attributes:
        connection_id: number, unique within the pool, kept over reconnects.
        state: ``dialing open waiting error``.
        epoch: how often it was dialled.
        joins: joins placed on it.
        attempts: failed attempts of the present outage.
        bytes_received, bytes_sent, messages_received: since it was made.
        messages_unheard: received ones that were nobody's: unreadable, of an earlier join, of a topic just left.
        heartbeat_latency: seconds of the last heartbeat's round trip, None before the first.
        send_queue: bytes waiting for the kernel.
    """

    connection_id: int
    state: str
    epoch: int
    joins: int
    attempts: int
    bytes_received: int
    bytes_sent: int
    messages_received: int
    messages_unheard: int
    heartbeat_latency: float | None
    send_queue: int


@attrs.frozen(kw_only=True)
class SubscriptionDetails:
    """
    One Channel.

    Attributes:
        topic: as the user wrote it.
        state: a `ChannelState` value.
        private: whether the channel is private.
        callbacks: registered callbacks.
        received: events that came for it; each is delivered, dropped or queued.
        queued: events waiting in its mailbox, or in a worker's hands.
        delivered, dropped: events handed over, and lost to overflow or queued when it was unsubscribed.
        callback_seconds: how long its callbacks took. Counted when a worker is through with the events it took at a
            time, up to 512 of them; where one takes over 5 ms, after each.
    """

    topic: str
    state: str
    private: bool
    callbacks: int
    received: int
    queued: int
    delivered: int
    dropped: int
    callback_seconds: float


@attrs.frozen(kw_only=True)
class PoolStats:
    """
    A snapshot of a pool. Counters only grow, over the pool's life.

    Attributes:
        connection_status: ``idle connecting connected reconnecting error closed``.
        total_connections, active_connections, error_connections: sockets wanted, open, and given up for now.
        total_subscriptions: subscribed Channels.
        active_subscriptions: those of them that are ready.
        total_joins: server channels, each shared by one or more Channels.
        reconnect_attempts: dials after a failure or a loss.
        messages_received: Phoenix messages decoded.
        messages_unheard: received ones that were nobody's: unreadable, of an earlier join, of a topic just left.
        events_received: events that came for a Channel, once for each; every one is delivered, dropped or still queued.
        messages_delivered: events handed to a callback or an iterator.
        messages_dropped: events lost to a full mailbox, or queued when their Channel ended.
        callback_errors: callbacks that raised.
        callback_seconds: how long callbacks took, those for status included; workers at work together count each.
            Counted when a worker is through with the events it took at a time, up to 512 of them.
        gaps: `Gap` events announced.
        gaps_by_cause: how many of them each cause had, every one of `GAP_CAUSES`.
        pushes_sent: pushes handed to the kernel, counted when they have their outcome: at the reply, if one is awaited.
        pushes_delayed: pushes that had to wait their turn because of the option `max_events_per_second`.
        joins_per_second, events_per_second: how many joins, and pushes, may go out a second at present: as the options
            `max_joins_per_second` and `max_events_per_second`, less for a while after the server refused more; None
            where the option is.
        bytes_received, bytes_sent: on the wire, headers of frames included.
        joins_moved: joins that went to another socket so that a sparse one could be closed.
        repairs: what the health check found wrong with the pool itself, and mended; 0 unless rtpool has a bug.
        heartbeat_latency: seconds, the slowest of the open connections; None before the first heartbeat.
        connection_details: one `ConnectionDetails` a connection.
        subscription_details: one `SubscriptionDetails` a Channel.
    """

    connection_status: str
    total_connections: int
    active_connections: int
    error_connections: int
    total_subscriptions: int
    active_subscriptions: int
    total_joins: int
    reconnect_attempts: int
    messages_received: int
    messages_unheard: int
    events_received: int
    messages_delivered: int
    messages_dropped: int
    callback_errors: int
    callback_seconds: float
    gaps: int
    gaps_by_cause: Mapping[str, int] = attrs.field(hash=False)
    pushes_sent: int
    pushes_delayed: int
    joins_per_second: float
    events_per_second: float | None
    bytes_received: int
    bytes_sent: int
    joins_moved: int
    repairs: int
    heartbeat_latency: float | None
    connection_details: tuple[ConnectionDetails, ...]
    subscription_details: tuple[SubscriptionDetails, ...]

    def as_dict(self) -> dict[str, Any]:
        """
        The same as JSON-able dictionaries and lists.
        """
        data = attrs.asdict(self)
        for name in ("connection_details", "subscription_details"):
            data[name] = list(data[name])
        return data


@attrs.frozen(kw_only=True)
class Health:
    """
    Whether a pool does what it was asked to, from the last proof of life rather than from hope.

    Attributes:
        verdict: ``"ok"``; ``"degraded"`` when something is not as it should be and something is served; ``"down"`` when
            nothing can be: closed, or no connection that is alive though there are subscriptions. An idle pool is ok.
        status: the pool's `connection_status`.
        reasons: what is not ok, in plain words; empty when ok.
        age: seconds since the last proof of life, bytes that arrived, of the connection that has been silent longest,
            of those that are needed. At most `heartbeat_interval` and a moment when all is well; None when nothing was
            ever heard, or nothing is needed.
    """

    verdict: str
    status: str
    reasons: tuple[str, ...] = ()
    age: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the verdict is ``"ok"``."""
        return self.verdict == "ok"

    def as_dict(self) -> dict[str, Any]:
        """
        The same, and `ok`, as a JSON-able dictionary.
        """
        return {"ok": self.ok, **attrs.asdict(self), "reasons": list(self.reasons)}
