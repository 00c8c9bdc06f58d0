"""When a connection is dialled again: never in vain, never too soon, at once where there is hope."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable

import pytest
import trustme

import rtpool
from rtpool.testing import RealtimeServer, Refusal, faults
from tests.conftest import Figure, MakePool
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until
from tests.support.ways import serving, trusting


class Door:
    """Answers upgrades with what it is told to, and remembers when each came."""

    def __init__(self, server: RealtimeServer, refusal: Refusal | None = None) -> None:
        self.refusal = refusal
        self.knocks: list[float] = []
        server.on_connect = self._answer

    def _answer(self, request: object) -> Refusal | None:
        self.knocks.append(time.monotonic())
        return self.refusal


def wait_a_while(make_pool: MakePool, attempts: int = 12) -> None:
    """Until another pool, which hopes, has tried so often with the same options."""
    with RealtimeServer() as other:
        door = Door(other, Refusal(503))
        hopeful = make_pool(other.url, api_key=other.api_key, **QUICK)
        hopeful.channel("room").subscribe(wait=False)
        wait_until(lambda: len(door.knocks) >= attempts)
        hopeful.close()


QUICK = {"base_delay": 0.02, "max_delay": 0.05, "health_check_interval": 0.1}


def back_within_a_second(pool: rtpool.RealtimePool, hope: Callable[[], object], figure: Figure) -> None:
    began = time.monotonic()
    hope()
    wait_until(lambda: pool.channels()[0].is_subscribed)
    took = time.monotonic() - began
    figure(f"one attempt, then back {took * 1000:.0f} ms after the good token")
    assert took < 1.0


@pytest.mark.parametrize(("status", "body"), [(401, '{"error":"Token has expired"}'), (404, "Tenant not found")])
def test_what_cannot_succeed_is_tried_once_and_told_once_until_there_is_another_token(
    server: RealtimeServer, make_pool: MakePool, figure: Figure, status: int, body: str
) -> None:
    door, seen, of_channel = Door(server, Refusal(status, body)), Recorder(), Recorder()
    pool = make_pool(**QUICK).on_status(seen)
    pool.channel("room").on_status(of_channel).subscribe(wait=False)
    error = seen.wait_for(lambda events: events and events[-1].status == "error")[-1].error
    assert isinstance(error, rtpool.HandshakeRefused)
    assert (error.status, error.retryable) == (status, False)
    wait_a_while(make_pool)
    assert len(door.knocks) == 1
    assert [change.status for change in seen.events] == ["connecting", "error"]
    assert [(change.status, type(change.error)) for change in of_channel.events] == [("error", type(error))]
    assert seen.events[-1].delay is None  # none will be made
    door.refusal = None
    back_within_a_second(pool, lambda: pool.set_auth(server.token(role="authenticated")), figure)
    assert len(door.knocks) == 2


def test_a_bad_certificate_is_met_once_and_told_once_until_there_is_hope(
    authority: trustme.CA, make_pool: MakePool, figure: Figure
) -> None:
    handshakes = Recorder()
    context = serving(authority, "127.0.0.1")
    context.sni_callback = lambda sock, name, _: handshakes(name)
    ours, seen = trusting(trustme.CA()), Recorder()
    with RealtimeServer(ssl_context=context) as server:
        pool = make_pool(server.url, api_key=server.api_key, ssl_context=ours, **QUICK).on_status(seen)
        pool.channel("room").subscribe(wait=False)
        error = seen.wait_for(lambda events: events and events[-1].status == "error")[-1].error
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
        wait_a_while(make_pool)
        assert len(handshakes.events) == 1
        assert [change.status for change in seen.events] == ["connecting", "error"]
        authority.configure_trust(ours)
        back_within_a_second(pool, lambda: pool.set_auth(server.token()), figure)
        pool.close()


def test_retry_after_is_obeyed_to_the_second_even_by_connect_and_by_other_connections(
    server: RealtimeServer, make_pool: MakePool, figure: Figure
) -> None:
    door, seen = Door(server, Refusal(429, headers={"Retry-After": "3"})), Recorder()
    pool = make_pool(max_channels_per_connection=1, **QUICK).on_status(seen)
    pool.channel("a").subscribe(wait=False)
    change = seen.first(lambda change: change.status == "reconnecting")
    assert change.error.retry_after == 3
    door.refusal = None
    with pytest.raises(rtpool.ConnectionFailed, match=r"within 0\.05 s"):
        pool.connect(timeout=0.05)
    pool.set_auth(server.token())
    pool.channel("b").subscribe()
    wait_until(lambda: len(pool.channels()) == 2 and all(c.is_subscribed for c in pool.channels()))
    pauses = [knock - door.knocks[0] for knock in door.knocks[1:]]
    figure(f"429 with Retry-After: 3, and the next attempts came {', '.join(f'{p:.3f}' for p in pauses)} s later")
    assert len(pauses) == 2
    assert min(pauses) >= 3.0


def test_a_crash_loop_is_held_down_and_said_to_be_an_error(server: RealtimeServer, make_pool: MakePool) -> None:
    door, seen = Door(server), Recorder()
    server.on_join = lambda topic, payload, connection: connection.abort()
    pool = make_pool(stable_after=10.0, base_delay=0.01, max_retries=3, health_check_interval=3_600).on_status(seen)
    pool.channel("room").subscribe(wait=False)
    final = seen.wait_for(lambda events: events and events[-1].status == "error")[-1]
    assert final.attempt == 3
    assert 1_800 <= final.delay <= 3_600
    assert len(door.knocks) == 3
    server.on_join = None
    pool.connect()
    wait_until(lambda: pool.channels()[0].is_subscribed)


def test_what_lasted_begins_a_new_outage_when_it_is_lost(server: RealtimeServer, make_pool: MakePool) -> None:
    seen = Recorder()
    pool = make_pool(max_retries=1).on_status(seen)
    channel = pool.channel("room").subscribe()
    for number in range(1, 6):
        server.connections[0].abort()
        server.wait_for(lambda s, n=number: s.connections_total == n + 1 and s.members("room") == 1)
        wait_until(lambda: channel.is_subscribed)
    told = [change for change in seen.events if change.error is not None]
    assert [(change.status, change.attempt) for change in told] == [("reconnecting", 1)] * 5


def test_no_retries_means_the_health_check_alone_brings_it_back(server: RealtimeServer, make_pool: MakePool) -> None:
    seen = Recorder()
    pool = make_pool(max_retries=0, health_check_interval=0.2).on_status(seen)
    pool.channel("room").subscribe()
    server.connections[0].abort()
    seen.wait_for(lambda events: events[-1].status == "connected" and len(events) > 2)
    (trouble,) = [change for change in seen.events if change.error is not None]
    assert trouble.status == "error"
    assert 0.1 <= trouble.delay <= 0.2


@pytest.mark.parametrize("how", ["a new token", "connect"])
def test_hope_ends_the_wait_at_once(server: RealtimeServer, make_pool: MakePool, how: str) -> None:
    seen = Recorder()
    pool = make_pool(max_retries=1, health_check_interval=3_600).on_status(seen)
    door = Door(server, Refusal(503))
    pool.channel("room").subscribe(wait=False)
    seen.wait_for(lambda events: events and events[-1].status == "error")
    door.refusal = None
    if how == "connect":
        pool.connect(timeout=10)
    else:
        pool.set_auth(lambda: server.token())
    wait_until(lambda: pool.channels()[0].is_subscribed)
    assert len(door.knocks) == 2


def test_one_connection_that_is_back_ends_the_wait_of_the_others(server: RealtimeServer, make_pool: MakePool) -> None:
    seen = Recorder()
    pool = make_pool(max_retries=1, health_check_interval=3_600, max_channels_per_connection=1)
    pool.on_status(seen)
    channels = [pool.channel(f"room-{n}").subscribe() for n in range(3)]
    door = Door(server, Refusal(503))
    for connection in server.connections:
        connection.abort()
    seen.wait_for(lambda events: sum(e.status == "error" for e in events) == 3)
    door.refusal = None
    channels[0].unsubscribe(timeout=0.5)
    pool.channel("room-0").subscribe()  # a new wish dials its own place
    wait_until(lambda: all(channel.is_subscribed for channel in channels[1:]))
    assert len(server.connections) == 3


def test_a_channel_is_left_at_once_while_its_connection_is_away(server: RealtimeServer, make_pool: MakePool) -> None:
    seen = Recorder()
    pool = make_pool(max_retries=1, health_check_interval=3_600, cleanup_interval=0).on_status(seen)
    channel = pool.channel("room").subscribe()
    Door(server, Refusal(503))
    server.connections[0].abort()
    seen.wait_for(lambda events: events[-1].status == "error")
    channel.unsubscribe(timeout=CAP)
    wait_until(lambda: pool.stats().total_connections == 0)
    assert not channel._subscriber.leaving
    assert pool.stats().total_joins == 0


def test_a_connection_that_crashes_gives_the_others_no_hope_and_gets_none(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    seen = Recorder()
    pool = make_pool(stable_after=10.0, max_retries=2, health_check_interval=3_600, max_channels_per_connection=1)
    pool.on_status(seen)
    server.on_join = lambda topic, payload, connection: connection.abort() if topic == "bad" else None
    pool.channel("bad").subscribe(wait=False)
    seen.wait_for(lambda events: events and events[-1].status == "error")
    total = server.connections_total
    pool.channel("good").subscribe()
    assert server.connections_total == total + 1
    assert pool.stats().error_connections == 1


def test_without_auto_reconnect_everybody_is_told_once_and_no_attempt_is_made(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    door, seen, of_channel = Door(server), Recorder(), Recorder()
    pool = make_pool(auto_reconnect=False, **QUICK).on_status(seen)
    pool.channel("room").on_status(of_channel).subscribe()
    server.connections[0].abort()
    of_channel.wait_for(lambda events: events[-1].status == "error")
    wait_a_while(make_pool)
    assert len(door.knocks) == 1
    told = [change for change in seen.events if change.error is not None]
    assert [(change.status, change.delay) for change in told] == [("error", None)]
    assert [change.status for change in of_channel.events] == ["joining", "joined", "error"]
    pool.connect()
    wait_until(lambda: pool.channels()[0].is_subscribed)


def test_strategies_of_the_user_never_run_on_the_io_thread_and_a_failing_one_is_survived(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    threads = Recorder()

    def broken(state: object) -> float:
        threads(threading.current_thread().name)
        raise SystemExit("a strategy that ends the program")

    pool = make_pool(reconnect=rtpool.ReconnectPolicy(wait=broken))
    pool.channel("room").subscribe()
    server.connections[0].abort()
    assert "-dial-" in threads.wait(1)[0]
    server.wait_for(lambda s: s.connections_total == 2 and s.members("room") == 1)


def test_a_newcomer_is_not_placed_on_a_connection_that_is_away(server: RealtimeServer, make_pool: MakePool) -> None:
    seen = Recorder()
    pool = make_pool(max_retries=1, health_check_interval=3_600, max_channels_per_connection=2).on_status(seen)
    for name in ("a", "b", "c"):
        pool.channel(name).subscribe()
    pool.channels()[0].unsubscribe()
    server.on_connect = lambda request: Refusal(503)
    first = next(c for c in server.connections if "realtime:b" in c.topics)
    first.abort()
    seen.wait_for(lambda events: events[-1].status == "error")
    pool.channel("late").subscribe()
    assert pool.stats().error_connections == 1


@pytest.mark.parametrize("how", ["a new token", "connect"])
def test_hope_that_comes_while_a_dial_is_under_way_is_followed_by_one_more(
    server: RealtimeServer, make_pool: MakePool, how: str
) -> None:
    slow = server.inject(faults.Delay(3_600), on=faults.Upgrading())
    server.inject(faults.Refuse(401))
    pool = make_pool(health_check_interval=3_600)
    channel = pool.channel("room").subscribe(wait=False)
    slow.wait()
    if how == "connect":
        with pytest.raises(rtpool.ConnectionFailed):
            pool.connect(timeout=0.05)
    else:
        pool.set_auth(server.token())
    slow.undo()
    wait_until(lambda: channel.is_subscribed)


def test_an_idle_connection_that_is_lost_is_told_with_its_error(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    seen = Recorder()
    pool.on_status(seen).connect()
    server.wait_for(lambda s: s.connections)  # it has answered, and counts a moment later
    server.connections[0].abort()
    last = seen.wait_for(lambda events: events and events[-1].status == "idle")[-1]
    assert isinstance(last.error, rtpool.ConnectionFailed)


def test_connect_outlives_the_channel_its_connection_was_made_for(server: RealtimeServer, make_pool: MakePool) -> None:
    door, outcome = Door(server, Refusal(503)), Recorder()
    pool = make_pool(base_delay=0.2, max_retries=1_000)
    channel = pool.channel("room").subscribe(wait=False)
    wait_until(lambda: door.knocks)
    thread = threading.Thread(target=lambda: outcome(pool.connect(timeout=CAP)))
    thread.start()
    wait_until(lambda: pool._engine.coordinator.connections._waiters)
    channel.unsubscribe()
    door.refusal = None
    thread.join()
    assert outcome.events == [None]


def test_a_system_without_a_thread_left_is_waited_for(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtpool.engine.coordinator.REVIVE_SECONDS", 0.05)
    pool = make_pool()
    channel = pool.channel("room").subscribe()
    wait_until(lambda: not pool._engine.dialer._threads)
    start, refused = threading.Thread.start, Recorder()

    def no_thread(thread: threading.Thread) -> None:
        if "-dial-" in thread.name and len(refused.events) < 3:
            refused(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    server.connections[0].abort()
    refused.wait(3)
    wait_until(lambda: channel.is_subscribed and server.connections_total == 2)


def test_back_off_long_holds_for_the_health_check_too(server: RealtimeServer, make_pool: MakePool) -> None:
    seen = Recorder()
    pool = make_pool(max_retries=1, stable_after=60, health_check_interval=0.05).on_status(seen)
    pool.channel("room").subscribe()
    server.connections[0].close(1013)  # try again later
    change = seen.wait_for(lambda events: events[-1].status == "error")[-1]
    assert change.delay >= 10.0


def test_counters_never_fall_while_a_connection_says_goodbye(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    pool.channel("room").subscribe()
    before = pool.stats()
    server.connections[0].pause_reading()  # it does not answer the goodbye
    pool.unsubscribe_all(timeout=0.05)
    pool.force_cleanup()
    during = pool.stats()
    wait_until(lambda: not pool._engine.coordinator.connections._closing)
    after = pool.stats()
    for name in ("messages_received", "bytes_received", "bytes_sent"):
        assert getattr(before, name) <= getattr(during, name) <= getattr(after, name)
    pool.close()
    assert pool.stats().messages_received == after.messages_received


def test_a_loss_is_told_at_once_though_every_dial_thread_hangs(server: RealtimeServer, make_pool: MakePool) -> None:
    go_on, seen, hanging = threading.Event(), Recorder(), Recorder()

    def dial(host: str, port: int, seconds: float) -> socket.socket:
        if len(hanging.events) < 9:
            hanging(host)
            if len(hanging.events) > 1:
                go_on.wait(10)
        return socket.create_connection((host, port))

    pool = make_pool(dial=dial, max_channels_per_connection=1).on_status(seen)
    pool.channel("first").subscribe()
    for number in range(8):
        pool.channel(f"room-{number}").subscribe(wait=False)
    hanging.wait(9)
    server.connections[0].abort()
    try:
        change = seen.wait_for(lambda events: events[-1].status == "reconnecting", cap=5)[-1]
        assert change.connection_id == 1
    finally:
        go_on.set()


def test_a_socket_that_somebody_closes_behind_our_back_is_a_lost_connection_and_no_more(
    make_pool: MakePool, server: RealtimeServer
) -> None:
    made: list[socket.socket] = []

    def dial(host: str, port: int, seconds: float) -> socket.socket:
        made.append(socket.create_connection((host, port)))
        return made[-1]

    pool = make_pool(dial=dial, max_channels_per_connection=1)
    first = pool.channel("a").subscribe()
    made[0].close()
    second = pool.channel("b").subscribe()  # gets the number of the one that was closed
    wait_until(lambda: first.is_subscribed and second.is_subscribed and len(made) == 3)


def test_a_pool_that_fails_says_so_with_its_error(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Recorder()
    pool = make_pool().on_status(seen)
    pool.channel("room").subscribe()
    before = pool.stats().messages_received
    pool._engine.post(lambda: 1 / 0)
    change = seen.wait_for(lambda events: events[-1].status == "closed")[-1]
    assert isinstance(change.error, rtpool.PoolClosed)
    assert "ZeroDivisionError" in str(change.error)
    assert pool.stats().messages_received >= before
    caplog.clear()


def test_connect_that_has_no_more_time_when_it_is_looked_at_harms_nobody(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    pool.channel("room").subscribe()
    busy, go_on = threading.Event(), threading.Event()
    pool._engine.post(lambda: (busy.set(), go_on.wait(5)))
    assert busy.wait(5)
    with pytest.raises(rtpool.ConnectionFailed, match="within 0"):
        pool.connect(timeout=0.05)
    go_on.set()
    pool.connect()
    assert not pool.closed


@pytest.mark.parametrize("what", ["never returns", "returns no number of seconds"])
def test_a_strategy_that_is_of_no_use_is_done_without_and_the_loss_is_told(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("rtpool.engine.reconnecting.DECISION_SECONDS", 0.1)
    go_on, seen = threading.Event(), Recorder()

    def wait(state: object) -> float:
        if what == "never returns":
            go_on.wait(30)
        return float("inf")

    pool = make_pool(reconnect=rtpool.ReconnectPolicy(wait=wait), health_check_interval=3_600).on_status(seen)
    channel = pool.channel("room").subscribe()
    server.connections[0].abort()
    try:
        change = seen.first(lambda change: change.status == "reconnecting")
        assert 0 <= change.delay <= 0.05  # by base_delay, as without a strategy
        server.wait_for(lambda s: s.connections_total == 2 and s.members("room") == 1)
        wait_until(lambda: channel.is_subscribed)
        assert pool.stats().repairs == 0
    finally:
        go_on.set()


def test_a_loss_names_the_connection_and_the_server(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    seen = Recorder()
    pool.on_status(seen).channel("room").subscribe()
    server.connections[0].abort()
    error = seen.first(lambda change: change.error is not None).error
    assert type(error) is rtpool.ConnectionFailed
    assert f"connection 1 to ws://127.0.0.1:{server.port}/" in str(error)


def test_who_was_never_served_is_joining_still_when_the_connection_is_lost(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    seen = Recorder()
    hold = server.inject(faults.Drop(), on=faults.Receiving("phx_join", topic="room"))
    make_pool().channel("room").on_status(seen).subscribe(wait=False)
    hold.wait()
    server.connections[0].abort()
    seen.wait_for(lambda events: events[-1].status == "joined")
    assert {change.status for change in seen.events} == {"joining", "joined"}


def test_a_strategy_that_always_fails_hammers_nobody(server: RealtimeServer, make_pool: MakePool) -> None:
    def broken(state: object) -> float:
        raise LookupError("of the strategy")

    door, seen = Door(server, Refusal(503)), Recorder()
    pool = make_pool(reconnect=rtpool.ReconnectPolicy(wait=broken), max_retries=3, health_check_interval=3_600)
    pool.on_status(seen).channel("room").subscribe(wait=False)
    assert seen.wait_for(lambda events: events and events[-1].status == "error")[-1].delay >= 1_800
    assert len(door.knocks) == 3
