"""The audit finds what should not be, tells it and mends it; each fault here is made by hand, on the I/O thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

import rtpool
from rtpool.engine.connection import Connection
from rtpool.registry import Subscriber
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.wait import wait_until

SOON = {"health_check_interval": 0.05, "cleanup_interval": 0.05}


def on_io_thread(pool: rtpool.RealtimePool, call: Callable[[], Any]) -> Any:
    done: Future[Any] = Future()
    pool._engine.post(lambda: done.set_result(call()))
    return done.result(5)


def tamper(pool: rtpool.RealtimePool, fault: Callable[[], Any], caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Make a fault, and wait until it is found and told."""
    assert pool.stats().repairs == 0
    with caplog.at_level(logging.WARNING):
        on_io_thread(pool, fault)
        wait_until(lambda: words in caplog.text, "the audit finds it")
    assert pool.stats().repairs >= 1


def the_connection(pool: rtpool.RealtimePool) -> Connection:
    (connection,) = pool._engine.coordinator.connections.all
    return connection


def test_nothing_is_found_in_a_pool_in_use(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(health_check_interval=0.01, cleanup_interval=0.01)
    for _ in range(5):
        channels = [pool.channel(f"room-{n % 7}").subscribe() for n in range(20)]
        server.connections[0].abort()
        wait_until(lambda channels=channels: all(channel.is_subscribed for channel in channels))
        pool.unsubscribe_all()
        wait_until(lambda: pool.stats().total_connections == 0)
    assert pool.stats().repairs == 0


def test_a_channel_whose_join_was_lost_gets_it_back(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(**SOON)
    channel = pool.channel("room").subscribe()
    coordinator = pool._engine.coordinator

    def fault() -> None:
        (join,) = coordinator.joins.values()
        del coordinator.joins[join.share.key]
        del join.connection.joins[join.topic]  # type: ignore[union-attr]
        join.connection.session.leave(join.topic, coordinator._loop.now)  # type: ignore[union-attr]

    tamper(pool, fault, caplog, "a Channel of 'realtime:room' has no join")
    wait_until(lambda: server.members("room") == 1 and channel.state is rtpool.ChannelState.JOINED)


def test_a_join_that_nobody_wants_is_left(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(**SOON)
    channel = pool.channel("room").subscribe()
    tamper(pool, lambda: pool._engine.registry.detach(channel._subscriber), caplog, "has no Channel")
    server.wait_for(lambda s: s.members("room") == 0)


def test_a_server_channel_without_a_join_is_left(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(**SOON)
    pool.channel("room").subscribe()
    session = the_connection(pool).session
    body = next(iter(pool._engine.coordinator.joins.values())).body(supabase=True)
    tamper(
        pool, lambda: session.join("realtime:ghost", body, 0.0), caplog, "'realtime:ghost' on connection 1 for nobody"
    )
    server.wait_for(lambda s: len(s.joins("ghost")) == 1 and s.members("ghost") == 0)
    assert server.members("room") == 1


@pytest.mark.parametrize("lost", ["its timer", "its turn"])
def test_a_join_that_nothing_brings_back_is_asked_for_again(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    pool = make_pool(**SOON)
    channel = pool.channel("room").subscribe()
    (join,) = pool._engine.coordinator.joins.values()

    def fault() -> None:
        session = the_connection(pool).session
        session._topics.pop(join.topic)
        join.requested = lost == "its turn"

    tamper(pool, fault, caplog, "nothing brings 'room' back")
    server.wait_for(lambda s: len(s.joins("room")) == 2)
    wait_until(lambda: channel.is_subscribed)


def test_a_connection_that_nothing_dials_is_dialled(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    never = threading.Event()

    def wait(state: object) -> float:
        never.wait(10)  # a strategy of the user's that does not return
        return 0.0

    pool = make_pool(reconnect=rtpool.ReconnectPolicy(wait=wait), **SOON)
    pool.channel("room").subscribe()
    tamper(pool, server.connections[0].abort, caplog, "nothing dials connection 1 again, which is waiting")
    server.wait_for(lambda s: s.connections_total == 2 and s.members("room") == 1)
    never.set()


def test_an_idle_connection_that_nothing_closes_is_closed(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(health_check_interval=0.05, cleanup_interval=0.0)
    pool.connect()

    def fault() -> None:
        connections = pool._engine.coordinator.connections
        connection = connections.new()
        real, connections.close_when_idle = connections.close_when_idle, lambda c: None  # type: ignore[method-assign]
        pool._engine.loop.call_later(0.3, lambda: setattr(connections, "close_when_idle", real))
        assert connection.is_idle

    wait_until(lambda: pool.stats().total_connections == 0)
    with caplog.at_level(logging.WARNING):
        on_io_thread(pool, fault)
        wait_until(lambda: pool.stats().repairs >= 1 and pool.stats().total_connections == 0)
    assert "is idle and nothing closes it" in caplog.text


def test_a_socket_that_belongs_to_nobody_is_closed(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(**SOON)
    pool.channel("room").subscribe()

    def fault() -> None:
        connections = pool._engine.coordinator.connections
        connection = the_connection(pool)
        connection.joins.clear()
        connections._by_id.clear()
        connections._publish()

    on_io_thread(pool, fault)
    server.wait_for(lambda s: s.connections_total == 2 and len(s.connections) == 1 and s.members("room") == 1)
    assert "a socket belongs to nobody" in caplog.text


def test_a_place_kept_for_a_join_that_lives_elsewhere_is_freed(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(max_channels_per_connection=1, **SOON)
    pool.channel("one").subscribe()
    pool.channel("two").subscribe()
    first, second = pool._engine.coordinator.connections.all

    def fault() -> None:
        first.joins["realtime:two"] = second.joins["realtime:two"]

    tamper(pool, fault, caplog, "keeps a place for 'realtime:two', which lives elsewhere")
    assert list(first.joins) == ["realtime:one"]
    assert server.members("two") == 1


def test_force_cleanup_audits_without_a_health_check(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(enable_health_check=False)
    channel = pool.channel("room").subscribe()
    subscriber: Subscriber = channel._subscriber
    on_io_thread(pool, lambda: pool._engine.registry.detach(subscriber))
    pool.force_cleanup()
    assert pool.stats().repairs == 0  # a command under way might explain it
    monkeypatch.setattr("rtpool.engine.audit.MOMENT", 0.0)
    pool.force_cleanup()
    assert pool.stats().repairs == 1
    server.wait_for(lambda s: s.members("room") == 0)


def test_what_a_moment_explains_is_no_finding(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, statuses = make_pool(enable_health_check=False), Recorder()
    pool.channel("room").on_status(statuses).subscribe()
    audit = pool._engine.coordinator.audit
    subscriber = pool.channel("late")._subscriber
    attachment = pool._engine.registry.attach(subscriber)  # its sync is about to be posted
    assert attachment is not None
    attachment.opened = True
    assert on_io_thread(pool, audit.run) == []
    pool._engine.post(pool._engine.coordinator.sync, subscriber.key)
    wait_until(lambda: subscriber.is_ready)
    assert on_io_thread(pool, audit.run) == []
    assert on_io_thread(pool, audit.run) == []
