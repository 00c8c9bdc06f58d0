"""
The verdict for probes, from the last proof of life. May be asked on any thread.
"""

from __future__ import annotations

from collections.abc import Callable

from rtpool.engine.connection import Connection
from rtpool.engine.engine import Engine
from rtpool.events import ChannelState
from rtpool.options import PoolOptions
from rtpool.registry import Subscriber
from rtpool.stats import Health

__all__ = ["health_of"]

#: Characters of an error that a reason shows.
WORDS = 200
#: Seconds without a turn after which the I/O thread is not well; it looks at the clocks every five.
STALLED_SECONDS = 15.0


def health_of(engine: Engine) -> Health:
    """Whether a pool does what it was asked to; numbers may be a moment apart."""
    if engine.closed:
        return Health(verdict="down", status="closed", reasons=("the pool is closed",))
    connections, hide = engine.coordinator.connections, engine.logs.hide  # a server may repeat what it was sent
    needed = [connection for connection in connections.all if connection.joins]
    reasons = [reason for connection in needed if (reason := _trouble(connection, engine.options, hide))]
    subscribers = engine.registry.subscribers()
    reasons += [_unready(subscriber, hide) for subscriber in subscribers if not subscriber.is_ready]
    alive = any(_is_alive(connection, engine.options) for connection in needed)
    stalled = engine.loop.clock() - engine.loop.now if engine.started else 0.0
    if stalled > STALLED_SECONDS:
        alive = False
        reasons.insert(0, f"the I/O thread has done nothing for {stalled:.1f} s")
    verdict = "ok" if not reasons else "degraded" if alive or not subscribers else "down"
    heard = [connection.age for connection in needed if connection.epoch]
    return Health(verdict=verdict, status=connections.status, reasons=tuple(reasons), age=max(heard, default=None))


def _unready(subscriber: Subscriber, hide: Callable[[str], str]) -> str:
    waits = subscriber.state is ChannelState.JOINED and bool(subscriber.config.changes)
    attachment = subscriber.attachment
    error = attachment.share.last_error if attachment is not None else None
    why = f": {hide(str(error))[:WORDS]}" if error is not None else ""
    return f"{subscriber.topic!r} is {subscriber.state}" + (", and its changes do not flow" if waits else "") + why


def _is_alive(connection: Connection, options: PoolOptions) -> bool:
    """Whether it was heard lately. One that is not read at present, because a mailbox is full, cannot be heard."""
    silent = connection.age > options.heartbeat_interval + options.heartbeat_timeout
    return connection.state == "open" and (not silent or bool(connection.paused_by))


def _trouble(connection: Connection, options: PoolOptions, hide: Callable[[str], str]) -> str:
    name, error = f"connection {connection.connection_id}", connection.last_error
    if connection.state in ("waiting", "error"):
        why = f": {hide(str(error))[:WORDS]}" if error is not None else ""
        return f"{name} is {connection.state} after {connection.attempts} failed attempts{why}"
    if connection.state != "open":
        return f"{name} is {connection.state}"
    if connection.paused_by:
        return f"{name} is not read: a mailbox with overflow='block' is full"
    if not _is_alive(connection, options):
        return f"{name} was last heard {connection.age:.1f} s ago"
    return ""
