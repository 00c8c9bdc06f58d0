"""
What a pool is doing, in numbers.
"""

from __future__ import annotations

from rtpool.engine.engine import Engine
from rtpool.registry import Subscriber
from rtpool.stats import PoolStats, SubscriptionDetails

__all__ = ["stats_of"]


def stats_of(engine: Engine) -> PoolStats:
    """The statistics of an engine's pool. Called on any thread; waits for nothing."""
    coordinator = engine.coordinator
    sockets = coordinator.connections
    totals = sockets.totals()
    connections = tuple(connection.details() for connection in sockets.all)
    subscribers = engine.registry.subscribers()
    gaps = dict(coordinator.router.gaps)
    gaps["overflow"] += engine.overflow_gaps
    latencies = [c.heartbeat_latency for c in connections if c.state == "open" and c.heartbeat_latency is not None]
    return PoolStats(
        connection_status="closed" if engine.closed else sockets.status,
        total_connections=len(connections),
        active_connections=sum(c.state == "open" for c in connections),
        error_connections=sum(c.state == "error" for c in connections),
        total_subscriptions=len(subscribers),
        active_subscriptions=sum(s.is_ready for s in subscribers),
        total_joins=len(coordinator.joins),
        reconnect_attempts=sockets.reconnect_attempts,
        messages_received=totals.messages,
        messages_unheard=totals.unheard,
        events_received=engine.dispatcher.received,
        messages_delivered=engine.dispatcher.delivered,
        messages_dropped=engine.dispatcher.dropped,
        callback_errors=engine.callback_errors,
        callback_seconds=engine.dispatcher.callback_seconds,
        gaps=sum(gaps.values()),
        gaps_by_cause=gaps,
        pushes_sent=coordinator.pushes.sent,
        pushes_delayed=coordinator.pushes.queue.delayed,
        joins_per_second=coordinator.joining.queue.per_second,
        events_per_second=coordinator.pushes.queue.per_second,
        bytes_received=totals.bytes_received,
        bytes_sent=totals.bytes_sent,
        joins_moved=coordinator.mover.moved,
        repairs=coordinator.audit.repairs,
        heartbeat_latency=max(latencies, default=None),
        connection_details=connections,
        subscription_details=tuple(_details(s) for s in subscribers),
    )


def _details(subscriber: Subscriber) -> SubscriptionDetails:
    mailboxes = [m for m in (subscriber.mailbox, subscriber.stream) if m is not None]
    return SubscriptionDetails(
        topic=subscriber.topic,
        state=subscriber.state.value,
        private=subscriber.key.private,
        callbacks=len(subscriber.bindings),
        received=sum(m.received for m in mailboxes),
        queued=max(0, sum(m.queued for m in mailboxes)),
        delivered=sum(m.delivered for m in mailboxes),
        dropped=sum(m.dropped for m in mailboxes),
        callback_seconds=sum(m.callback_seconds for m in mailboxes),
    )
