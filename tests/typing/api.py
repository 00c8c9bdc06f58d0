"""How the public names are used, checked by mypy --strict; never run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from typing_extensions import assert_type

import rtpool
from rtpool.filters import Column, Filter, col
from rtpool.metrics import PrometheusCollector, instrument


def heard(message: rtpool.Broadcast) -> None:
    assert_type(message.event, str)


def changed(change: rtpool.PostgresChange) -> int:
    assert_type(change.errors, tuple[str, ...])
    return 1


def use(pool: rtpool.RealtimePool) -> None:
    channel = pool.channel("room", private=True, access_token=lambda: "token")
    assert_type(channel, rtpool.Channel)
    assert_type(channel.on_broadcast("x", heard), rtpool.Channel)
    chained = channel.on_broadcast("x", heard).on_postgres_changes("*", changed, table="cars").on_gap(print)
    assert_type(chained.subscribe(timeout=1), rtpool.Channel)
    assert_type(channel.state, rtpool.ChannelState)

    @channel.on_broadcast("y")
    def decorated(message: rtpool.Broadcast) -> None:
        print(message.replayed)

    @channel.on_presence_join()
    def joined(presence: rtpool.Presence) -> None:
        print(presence.key)

    assert_type(col("status"), Column)
    wanted = col("status").in_(["rented", 5, True]) & ~col("at").gt(datetime.now()) & col("gone").is_(None)
    assert_type(wanted, Filter)
    channel.on_postgres_changes("*", changed, schema=None, table="cars", filter=wanted, select=["id"])
    assert_type(pool.on_changes("cars", changed, filter=wanted), rtpool.Channel)
    assert_type(pool.on_changes("cars", changed, filter="id=gt.5", select=("id",), timeout=1), rtpool.Channel)

    @channel.on_postgres_changes("INSERT", table="cars", filter=col("id").eq(1))
    def inserted(change: rtpool.PostgresChange) -> None:
        print(change.commit_timestamp)

    push = channel.send_broadcast("x", {"a": [1, None]})
    assert_type(push, rtpool.Push)
    assert_type(push.result(timeout=1), Any)
    assert_type(channel.send_broadcast("x", b"bytes").done(), bool)
    assert_type(channel.get(1.0), rtpool.events.Event)
    events = channel.events()
    assert_type(events, Iterator[rtpool.events.Event])
    assert_type(pool.stats(), rtpool.PoolStats)
    assert_type(pool.health().reasons, tuple[str, ...])
    assert_type(pool.stats().gaps_by_cause["transport"], int)
    assert_type(PrometheusCollector(pool, pool), PrometheusCollector)
    instrument(pool)
    instrument()
    pool.run_forever(handle_sigterm=True)
    assert_type(pool.close(timeout=1), bool)
    assert_type(rtpool.get_pool("https://x.supabase.co", api_key="k"), rtpool.RealtimePool)
    with pool as entered, entered.channel("a") as inner:
        assert_type(inner, rtpool.Channel)

    channel.on_broadcast("x", changed)  # type: ignore[arg-type]
    channel.send_broadcast("x", [1])  # type: ignore[arg-type]
    pool.channel(3)  # type: ignore[arg-type]
    col("a").lt(None)  # type: ignore[arg-type]
    col("a").eq(b"x")  # type: ignore[arg-type]
    channel.on_postgres_changes("*", changed, table="cars", filter=5)  # type: ignore[call-overload]


def errors(error: rtpool.JoinRefused) -> None:
    assert_type(error.code, str | None)
    assert_type(error.retryable, bool)
