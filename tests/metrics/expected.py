"""What exporters are to tell of a pool's statistics, written down a second time and by hand."""

from __future__ import annotations

from collections import Counter

from rtpool import PoolStats

__all__ = ["COUNTERS", "Points", "otel_points", "prometheus_points"]

#: Values by name and label.
Points = dict[tuple[str, str], float]

#: Fields of `PoolStats`, by the names for Prometheus and for OpenTelemetry.
COUNTERS = {
    "reconnect_attempts": ("rtpool_reconnect_attempts_total", "rtpool.reconnect_attempts"),
    "messages_received": ("rtpool_messages_received_total", "rtpool.messages.received"),
    "messages_unheard": ("rtpool_messages_unheard_total", "rtpool.messages.unheard"),
    "events_received": ("rtpool_events_received_total", "rtpool.events.received"),
    "messages_delivered": ("rtpool_events_delivered_total", "messaging.client.consumed.messages"),
    "messages_dropped": ("rtpool_events_dropped_total", "rtpool.events.dropped"),
    "callback_errors": ("rtpool_callback_errors_total", "rtpool.callback.errors"),
    "callback_seconds": ("rtpool_callback_duration_seconds_total", "rtpool.callback.duration"),
    "pushes_sent": ("rtpool_pushes_sent_total", "messaging.client.sent.messages"),
    "pushes_delayed": ("rtpool_pushes_delayed_total", "rtpool.pushes.delayed"),
    "joins_moved": ("rtpool_join_moves_total", "rtpool.join.moves"),
    "bytes_received": ("rtpool_received_bytes_total", "rtpool.received"),
    "bytes_sent": ("rtpool_sent_bytes_total", "rtpool.sent"),
    "repairs": ("rtpool_repairs_total", "rtpool.repairs"),
}
GAUGES = {
    "active_subscriptions": ("rtpool_active_subscriptions", "rtpool.active_subscriptions"),
    "total_joins": ("rtpool_joins", "rtpool.joins"),
    "joins_per_second": ("rtpool_join_limit_per_second", "rtpool.join.limit"),
    "events_per_second": ("rtpool_push_limit_per_second", "rtpool.push.limit"),
    "heartbeat_latency": ("rtpool_heartbeat_latency_seconds", "rtpool.heartbeat.latency"),
}
CAUSES = ["transport", "heartbeat", "server restart", "token", "rejoin", "overflow", "feed restart", "fork", "replay"]


def prometheus_points(stats: PoolStats) -> Points:
    """By the names of samples."""
    return _points(stats, 0)


def otel_points(stats: PoolStats) -> Points:
    """By the names of instruments."""
    return _points(stats, 1)


def _points(stats: PoolStats, which: int) -> Points:
    points: Points = {}
    for field, names in {**COUNTERS, **GAUGES}.items():
        if (value := getattr(stats, field)) is not None:
            points[names[which], ""] = value
    queued = [details.queued for details in stats.subscription_details]
    for names, value in (
        (("rtpool_events_queued", "rtpool.events.queued"), sum(queued)),
        (("rtpool_mailbox_fullest", "rtpool.mailbox.fullest"), max(queued, default=0)),
        (("rtpool_send_queue_bytes", "rtpool.send_queue"), sum(c.send_queue for c in stats.connection_details)),
    ):
        points[names[which], ""] = value
    connections = Counter(details.state for details in stats.connection_details)
    subscriptions = Counter(details.state for details in stats.subscription_details)
    for names, labels, counted in (
        (("rtpool_connections", "rtpool.connections"), ("dialing", "open", "waiting", "error"), connections),
        (
            ("rtpool_subscriptions", "rtpool.subscriptions"),
            ("closed", "joining", "joined", "errored", "leaving"),
            subscriptions,
        ),
        (("rtpool_gaps_total", "rtpool.gaps"), CAUSES, stats.gaps_by_cause),
        (
            ("rtpool_status", "rtpool.status"),
            ("idle", "connecting", "connected", "reconnecting", "error", "closed"),
            {stats.connection_status: 1},
        ),
    ):
        points |= {(names[which], label): counted.get(label, 0) for label in labels}
    return points
