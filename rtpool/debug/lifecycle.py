"""
A probe of a pool's whole life in small: subscribe, unsubscribe, and see that nothing is left.
"""

from __future__ import annotations

import secrets
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

import attrs

from rtpool.engine.engine import Engine
from rtpool.engine.snapshot import stats_of
from rtpool.engine.threads import outcome_of
from rtpool.errors import RtpoolError
from rtpool.events import ChannelState
from rtpool.registry import ShareKey

if TYPE_CHECKING:
    from rtpool.pool import RealtimePool

__all__ = ["LifecycleReport", "probe"]

#: Seconds between two looks for what is left, and which the I/O thread may take to answer one.
PAUSE, LOOK_SECONDS = 0.02, 2.0


@attrs.frozen(kw_only=True)
class LifecycleReport:
    """
    What a probe found.

    Attributes:
        ok: whether it was let in, left, and nothing of it is left.
        topic: what it joined.
        joined_in, left_in: seconds until events flowed, and until the server said that it forgot the channel; None when
            that did not happen.
        error: why not, empty when it did.
        left_over: what is left of it, in plain words; empty when all is well.
        before, after: counts of threads, sockets, joins and subscriptions; others may have changed them meanwhile.
    """

    ok: bool
    topic: str
    joined_in: float | None
    left_in: float | None
    error: str
    left_over: tuple[str, ...]
    before: dict[str, int]
    after: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """
        The same as a JSON-able dictionary.
        """
        return {**attrs.asdict(self), "left_over": list(self.left_over)}


def probe(pool: RealtimePool, timeout: float, topic: str | None, private: bool) -> LifecycleReport:
    """Join and leave a topic within `timeout` seconds, and see what is left."""
    engine, deadline = pool._engine, time.monotonic() + timeout
    before, threads = _counts(engine), _threads(engine)
    sockets = {connection.connection_id for connection in engine.coordinator.connections.all}
    topic = topic or f"rtpool-probe-{secrets.token_hex(4)}"
    channel = pool.channel(topic, private=private)
    subscriber, key = channel._subscriber, channel._subscriber.key
    joined_in: float | None = None
    left_in: float | None = None
    error = ""
    began = time.monotonic()
    try:
        channel.subscribe(timeout=timeout)
        joined_in = time.monotonic() - began
    except RtpoolError as failure:
        error = f"{type(failure).__name__}: {failure}"
    else:
        began = time.monotonic()
        channel.unsubscribe(timeout=max(0.0, deadline - time.monotonic()))
        left_in = time.monotonic() - began

    def left_over() -> list[str]:
        left = _of_the_probe(engine, key, sockets)
        left += [f"thread {name}" for name in sorted(_threads(engine) - threads) if "-dial-" in name]
        return left + ["a subscription"] * (subscriber.attachment is not None)

    left = left_over()
    while left and time.monotonic() < deadline:
        threading.Event().wait(PAUSE)
        left = left_over()
    del channel
    return LifecycleReport(
        ok=joined_in is not None and not left,
        topic=topic,
        joined_in=joined_in,
        left_in=left_in if not left else None,
        error=error,
        left_over=tuple(left),
        before=before,
        after=_counts(engine),
    )


def _of_the_probe(engine: Engine, key: ShareKey, sockets: set[int]) -> list[str]:
    told: Future[list[str]] = Future()

    def tell() -> None:
        try:
            told.set_result(_left_on(engine, key, sockets))
        except Exception as error:  # a look must not take the pool along
            told.set_exception(error)

    try:
        engine.post(tell)
        return outcome_of(told, LOOK_SECONDS)
    except (RtpoolError, FutureTimeout) as error:
        return [f"what the I/O thread does not tell ({type(error).__name__})"]


def _left_on(engine: Engine, key: ShareKey, sockets: set[int]) -> list[str]:
    """On the I/O thread."""
    coordinator, left = engine.coordinator, []
    if engine.registry.share(key) is not None:
        left.append("an entry in the registry")
    if key in coordinator.joins:
        left.append("a join")
    for connection in coordinator.connections.all:
        state = connection.session.state(key.topic)
        if key.topic in connection.joins or key.topic in connection.guests or state is not ChannelState.CLOSED:
            left.append(f"a place on connection {connection.connection_id}, where it is {state}")
        fresh = connection.connection_id not in sockets and connection.is_idle
        if fresh and connection.state == "open" and not connection.awaits_closing:
            left.append(f"connection {connection.connection_id}, which nothing closes")
    return left


def _threads(engine: Engine) -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(f"rtpool-{engine.name}-")}


def _counts(engine: Engine) -> dict[str, int]:
    stats = stats_of(engine)
    return {
        "threads": len(_threads(engine)),
        "connections": stats.total_connections,
        "joins": stats.total_joins,
        "subscriptions": stats.total_subscriptions,
    }
