"""The verdict for probes: from the last proof of life, never from hope."""

from __future__ import annotations

import json
import threading

import rtpool
from rtpool.testing import JoinRefusal, RealtimeServer, Refusal
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.wait import wait_until


def test_a_pool_that_nobody_uses_is_well_and_a_closed_one_is_down(pool: rtpool.RealtimePool) -> None:
    assert pool.health() == rtpool.Health(verdict="ok", status="idle")
    pool.close()
    health = pool.health()
    assert (health.verdict, health.ok, health.status) == ("down", False, "closed")
    assert health.reasons == ("the pool is closed",)


def test_a_pool_that_serves_is_well_and_says_when_it_was_last_heard(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool = make_pool(heartbeat_interval=0.1)
    pool.channel("room").subscribe()
    wait_until(lambda: pool.health().age is not None and pool.stats().heartbeat_latency is not None)
    health = pool.health()
    assert health.ok
    assert health.reasons == ()
    assert health.age is not None
    assert 0.0 <= health.age < 5.0
    assert json.loads(json.dumps(health.as_dict())) == {
        "ok": True,
        "verdict": "ok",
        "status": "connected",
        "reasons": [],
        "age": health.age,
    }


def test_a_refused_channel_beside_one_that_works_is_degraded(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    server.on_join = lambda topic, *_: JoinRefusal("Unauthorized: no") if topic == "secret" else None
    pool.channel("room").subscribe()
    pool.channel("secret").subscribe(wait=False)
    wait_until(lambda: pool.health().reasons)
    wait_until(lambda: pool.health().reasons[0].startswith("'secret' is errored: the server refused 'secret'"))
    assert pool.health().verdict == "degraded"


def test_without_a_connection_it_is_down_with_the_reason_and_well_when_it_is_back(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    seen = Recorder()
    pool = make_pool(max_retries=1, health_check_interval=3_600).on_status(seen)
    pool.channel("room").subscribe()
    server.on_connect = lambda request: Refusal(503)
    server.connections[0].abort()
    seen.wait_for(lambda events: events[-1].status == "error")
    health = pool.health()
    assert (health.verdict, health.status) == ("down", "error")
    assert "connection 1 is error after 1 failed attempts: " in health.reasons[0]
    assert "HTTP 503" in health.reasons[0]
    assert any(reason.startswith("'room' is errored: ") and "HTTP 503" in reason for reason in health.reasons)
    server.on_connect = None
    pool.connect()
    wait_until(lambda: pool.health().ok)


def test_one_connection_of_two_is_degraded(server: RealtimeServer, make_pool: MakePool) -> None:
    seen = Recorder()
    pool = make_pool(max_retries=1, health_check_interval=3_600, max_channels_per_connection=1).on_status(seen)
    pool.channel("one").subscribe()
    pool.channel("two").subscribe()
    server.on_connect = lambda request: Refusal(503)
    server.connections[0].abort()
    seen.wait_for(lambda events: events[-1].status == "error")
    health = pool.health()
    assert health.verdict == "degraded"
    assert not any("two" in reason for reason in health.reasons)


def test_a_silent_peer_is_not_taken_for_a_live_one(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(heartbeat_interval=3_600, heartbeat_timeout=3_600)
    pool.channel("room").subscribe()
    (connection,) = pool._engine.coordinator.connections.all
    assert pool.health().ok
    connection.proof_of_life -= 7_300  # as if so much time had passed; the socket object is there all the same
    health = pool.health()
    assert health.verdict == "down"
    assert health.reasons[0].startswith("connection 1 was last heard 73")
    assert health.age is not None
    assert health.age >= 7_300


def test_a_socket_that_is_not_read_because_a_mailbox_is_full_is_degraded_not_dead(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, go_on = make_pool(mailbox_limit=2, overflow="block"), threading.Event()
    pool.channel("room").on_broadcast("*", lambda event: go_on.wait(10)).subscribe()
    try:
        for number in range(200):
            server.broadcast("room", "x", {"n": number})
        wait_until(lambda: any("is not read" in reason for reason in pool.health().reasons))
        assert pool.health().verdict == "degraded"
    finally:
        go_on.set()


def test_an_io_thread_that_does_nothing_is_down(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    pool.channel("room").subscribe()
    go_on, stuck = threading.Event(), threading.Event()
    pool._engine.post(lambda: (stuck.set(), go_on.wait(10)))
    assert stuck.wait(5)
    clock = pool._engine.loop.clock
    pool._engine.loop.clock = lambda: clock() + 20.0
    try:
        health = pool.health()
    finally:
        pool._engine.loop.clock = clock
        go_on.set()
    assert health.verdict == "down"
    assert health.reasons[0].startswith("the I/O thread has done nothing for 20.")
