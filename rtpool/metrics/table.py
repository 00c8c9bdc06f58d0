"""
The metrics: what each is called, what it means, and how it is read from a pool's statistics. Both exporters are made
from this one table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from rtpool.events import ChannelState
from rtpool.stats import PoolStats

__all__ = ["METRICS", "Metric", "SUFFIXES", "UNMEASURED"]

#: What labels may be: all of it is told from the start, so that a rate misses no first increment.
CONNECTION_STATES = ("dialing", "open", "waiting", "error")
STATUSES = ("idle", "connecting", "connected", "reconnecting", "error", "closed")
CHANNEL_STATES = tuple(state.value for state in ChannelState)

#: Fields of `PoolStats` of which there is no metric of their own, and why.
UNMEASURED = {
    "total_connections": "the sum of rtpool_connections",
    "active_connections": "rtpool_connections, state open",
    "error_connections": "rtpool_connections, state error",
    "total_subscriptions": "the sum of rtpool_subscriptions",
    "gaps": "the sum of rtpool_gaps_total",
}

#: How Prometheus writes the units of UCUM, which OpenTelemetry has; what is in braces is a word for people.
SUFFIXES = {"By": "_bytes", "s": "_seconds"}


@attrs.frozen(kw_only=True)
class Metric:
    """
    One metric.

    Attributes:
        name: with dots, as OpenTelemetry has it.
        kind: ``"counter"`` only grows; ``"sum"`` goes up and down, and those of several pools add up; ``"gauge"`` does
            not add up.
        unit: in UCUM: ``By``, ``s``, ``{event}``, ``{join}/s``.
        help: what it is.
        read: its values by label, the empty one where it has no label. No value where there is nothing to tell.
        label: by which it is divided; what is behind its last dot is the label for Prometheus.
        messaging: its name by OpenTelemetry's conventions for messaging, and the operation, where there is one.
    """

    name: str
    kind: str
    unit: str
    help: str
    read: Callable[[PoolStats], Mapping[str, float]] = attrs.field(repr=False)
    label: str | None = None
    messaging: tuple[str, str] | None = None

    @property
    def family(self) -> str:
        """Its name for Prometheus, without the ``_total`` of a counter: as OpenTelemetry's own exporter writes it."""
        what, _, per = self.unit.partition("/")
        suffix = SUFFIXES.get(what, "") + ("_per_second" if per == "s" else "")
        return self.name.replace(".", "_") + suffix

    @property
    def sample(self) -> str:
        """Its name for Prometheus as queries have it."""
        return f"{self.family}_total" if self.kind == "counter" else self.family


def _field(kind: str, name: str, unit: str, field: str, words: str, **more: Any) -> Metric:
    """A field of `PoolStats` as it is; nothing is told of it while it is None."""

    def read(stats: PoolStats) -> Mapping[str, float]:
        value = getattr(stats, field)
        return {} if value is None else {"": value}

    return Metric(name=name, kind=kind, unit=unit, help=words, read=read, **more)


def _each(labels: tuple[str, ...], counted: Mapping[str, float]) -> Mapping[str, float]:
    return {**dict.fromkeys(labels, 0), **counted}


def _connections(stats: PoolStats) -> Mapping[str, float]:
    return _each(CONNECTION_STATES, Counter(c.state for c in stats.connection_details))


def _subscriptions(stats: PoolStats) -> Mapping[str, float]:
    return _each(CHANNEL_STATES, Counter(s.state for s in stats.subscription_details))


#: Every metric there is, in the order in which they are told.
METRICS: tuple[Metric, ...] = (
    Metric(
        name="rtpool.status",
        kind="gauge",
        unit="",
        help="1 for the status that the pool has, 0 for the others.",
        read=lambda stats: _each(STATUSES, {stats.connection_status: 1}),
        label="rtpool.pool.status",
    ),
    Metric(
        name="rtpool.connections",
        kind="sum",
        unit="{connection}",
        help="Sockets the pool wants, by state: error is given up for now.",
        read=_connections,
        label="rtpool.connection.state",
    ),
    Metric(
        name="rtpool.subscriptions",
        kind="sum",
        unit="{channel}",
        help="Subscribed Channels, by state.",
        read=_subscriptions,
        label="rtpool.channel.state",
    ),
    _field("sum", "rtpool.active_subscriptions", "{channel}", "active_subscriptions", "Channels that are ready."),
    _field("sum", "rtpool.joins", "{join}", "total_joins", "Server channels, each shared by one or more Channels."),
    _field(
        "counter",
        "rtpool.reconnect_attempts",
        "{attempt}",
        "reconnect_attempts",
        "Dials after a failure or a loss.",
    ),
    _field("counter", "rtpool.messages.received", "{message}", "messages_received", "Phoenix messages decoded."),
    _field(
        "counter",
        "rtpool.messages.unheard",
        "{message}",
        "messages_unheard",
        "Received messages that were nobody's: unreadable, of an earlier join, of a topic just left.",
    ),
    _field(
        "counter",
        "rtpool.events.received",
        "{event}",
        "events_received",
        "Events that came for a Channel, once for each of its Channels.",
    ),
    _field(
        "counter",
        "rtpool.events.delivered",
        "{event}",
        "messages_delivered",
        "Events handed to a callback or an iterator.",
        messaging=("messaging.client.consumed.messages", "receive"),
    ),
    _field(
        "counter",
        "rtpool.events.dropped",
        "{event}",
        "messages_dropped",
        "Events lost to a full mailbox, or queued when their Channel ended.",
    ),
    Metric(
        name="rtpool.events.queued",
        kind="sum",
        unit="{event}",
        help="Events that wait in mailboxes, or in a worker's hands.",
        read=lambda stats: {"": sum(s.queued for s in stats.subscription_details)},
    ),
    Metric(
        name="rtpool.mailbox.fullest",
        kind="gauge",
        unit="{event}",
        help="Events that wait in the fullest mailbox; its limit is the option mailbox_limit.",
        read=lambda stats: {"": max((s.queued for s in stats.subscription_details), default=0)},
    ),
    Metric(
        name="rtpool.gaps",
        kind="counter",
        unit="{gap}",
        help="Gaps announced to Channels: times in which messages may have been lost, by cause.",
        read=lambda stats: stats.gaps_by_cause,
        label="rtpool.gap.cause",
    ),
    _field("counter", "rtpool.callback.errors", "{error}", "callback_errors", "Callbacks that raised."),
    _field(
        "counter",
        "rtpool.callback.duration",
        "s",
        "callback_seconds",
        "Seconds that callbacks took, all workers together.",
    ),
    _field(
        "counter",
        "rtpool.pushes.sent",
        "{push}",
        "pushes_sent",
        "Pushes handed to the kernel, counted when they have their outcome.",
        messaging=("messaging.client.sent.messages", "send"),
    ),
    _field(
        "counter",
        "rtpool.pushes.delayed",
        "{push}",
        "pushes_delayed",
        "Pushes that waited their turn because of the option max_events_per_second.",
    ),
    _field(
        "gauge",
        "rtpool.push.limit",
        "{push}/s",
        "events_per_second",
        "Pushes that may go out a second at present; none where the option max_events_per_second is None.",
    ),
    _field("gauge", "rtpool.join.limit", "{join}/s", "joins_per_second", "Joins that may go out a second at present."),
    _field("counter", "rtpool.join.moves", "{join}", "joins_moved", "Joins moved to close a sparse socket."),
    _field("counter", "rtpool.received", "By", "bytes_received", "Bytes received, headers of frames included."),
    _field("counter", "rtpool.sent", "By", "bytes_sent", "Bytes sent, headers of frames included."),
    Metric(
        name="rtpool.send_queue",
        kind="sum",
        unit="By",
        help="Bytes that wait for the kernel, over all sockets.",
        read=lambda stats: {"": sum(c.send_queue for c in stats.connection_details)},
    ),
    _field(
        "gauge",
        "rtpool.heartbeat.latency",
        "s",
        "heartbeat_latency",
        "Round trip of the last heartbeat, of the slowest open socket; none before the first.",
    ),
    _field(
        "counter",
        "rtpool.repairs",
        "{repair}",
        "repairs",
        "What the health check found wrong with the pool itself, and mended; 0 unless rtpool has a bug.",
    ),
)
