"""Promises 5 and 6: what is lost comes back, and what may have been lost meanwhile is announced."""

from __future__ import annotations

import socket
from datetime import datetime, timezone

import pytest

import rtpool
from rtpool.testing import NO_REPLY, JoinRefusal, RealtimeServer, Refusal
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.wait import wait_until


@pytest.mark.parametrize("how", ["reset", 1000, 1001, 1011, 1012, 4000])
def test_a_lost_connection_comes_back_with_every_channel_and_one_gap_each(
    server: RealtimeServer, pool: rtpool.RealtimePool, how: str | int
) -> None:
    recorders, gaps = [Recorder() for _ in range(5)], [Recorder() for _ in range(5)]
    for number in range(5):
        channel = pool.channel(f"topic-{number % 3}").on_broadcast("*", recorders[number]).on_gap(gaps[number])
        channel.subscribe()
    before = datetime.now(timezone.utc)
    connection = server.connections[0]
    if how == "reset":
        connection.abort()
    else:
        connection.close(int(how))
    server.wait_for(lambda s: s.connections_total == 2 and all(s.members(f"topic-{n}") for n in range(3)))
    for recorder in gaps:
        gap = recorder.wait(1)[0]
        assert gap.cause == ("server restart" if how == 1012 else "transport")
        assert gap.lost_from <= gap.lost_to
        assert gap.lost_to >= before
    for number in range(3):
        server.broadcast(f"topic-{number}", "x", {"n": 1})
    for recorder in recorders:
        recorder.wait(1)
    assert len(server.connections) == 1
    assert [len(r.events) for r in gaps] == [1] * 5
    assert pool.stats().gaps == 5
    assert pool.stats().reconnect_attempts == 1


def test_a_gap_wakes_no_worker_for_a_channel_that_has_no_callback_for_it(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    gaps, heard = Recorder(), Recorder()
    deaf = pool.channel("room").on_broadcast("*", heard).subscribe()
    pool.channel("room").on_gap(gaps).subscribe()
    runs = deaf._subscriber.mailbox.runs
    server.connections[0].abort()
    gaps.wait(1)
    wait_until(lambda: deaf.is_subscribed)
    assert pool.stats().gaps == 2, "it is counted for both"
    server.broadcast("room", "x", {})
    heard.wait(1)
    wait_until(lambda: deaf._subscriber.mailbox.runs > runs)
    assert deaf._subscriber.mailbox.runs == runs + 1, "the broadcast alone"


def test_presence_is_tracked_again_after_a_reconnect(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    pool.channel("lobby", presence_key="ann").subscribe().track({"name": "Ann"}).result()
    server.connections[0].abort()
    server.wait_for(lambda s: s.connections_total == 2 and "ann" in s.presence("lobby"))


def test_a_frozen_server_is_left_and_the_socket_replaced(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, gaps = make_pool(heartbeat_interval=0.2, heartbeat_timeout=0.2), Recorder()
    pool.channel("room").on_gap(gaps).subscribe()
    wait_until(lambda: pool.stats().heartbeat_latency is not None)
    server.connections[0].freeze()
    assert gaps.wait(1)[0].cause == "heartbeat"
    assert server.connections_total == 2


def test_pushes_made_while_away_are_kept_and_sent_in_order(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, heard = make_pool(), Recorder()
    with make_pool().channel("room").on_broadcast("*", heard):
        refused = Recorder()
        channel = pool.channel("room").subscribe()
        server.on_connect = lambda request: refused(request) or Refusal(503)
        next(c for c in server.connections if c.id == 2).abort()
        refused.wait(1)
        pushes = [channel.send_broadcast("x", {"n": number}) for number in range(20)]
        assert not any(push.done() for push in pushes)
        server.on_connect = None
        for push in pushes:
            push.result(10)
        heard.wait(20)
    assert heard.numbers == list(range(20))


def test_a_push_awaiting_its_reply_fails_once_when_the_connection_is_lost(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    channel = pool.channel("room", ack=True).subscribe()
    server.connections[0].freeze()
    before = pool.stats().bytes_sent
    push = channel.send_broadcast("x", {})
    wait_until(lambda: pool.stats().bytes_sent > before)
    server.connections[0].abort()
    with pytest.raises((rtpool.ConnectionFailed, rtpool.PushTimeout)):
        push.result(10)


def test_an_unreachable_host_is_told_with_its_cause_and_leaves_nothing(make_pool: MakePool) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        pool = make_pool(f"http://127.0.0.1:{port}", base_delay=0.01, max_delay=0.01)
        with pytest.raises(rtpool.ConnectionFailed, match=f"127.0.0.1:{port}") as caught:
            pool.channel("room").subscribe(timeout=10)
    assert isinstance(caught.value, ConnectionError)
    assert pool.stats().total_subscriptions == 0
    wait_until(lambda: pool.health().ok and pool.stats().total_connections == 0)


def test_a_host_that_is_back_in_time_is_no_error(make_pool: MakePool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    tries = Recorder()
    pool = make_pool(f"http://127.0.0.1:{port}", api_key="k", max_retries=1_000, max_delay=0.1)
    pool.on_status(tries)
    channel = pool.channel("room").subscribe(wait=False)
    tries.wait_for(lambda events: any(e.status == "reconnecting" and e.attempt >= 2 for e in events))
    with RealtimeServer(port, api_key="k") as late:
        channel.subscribe(timeout=10)
        assert late.members("room") == 1
        channel.unsubscribe()
        pool.close()


@pytest.mark.parametrize(("status", "retryable"), [(401, False), (404, False), (403, True), (500, True), (503, True)])
def test_a_refused_upgrade_is_a_typed_error_and_only_the_hopeless_is_given_up(
    server: RealtimeServer, make_pool: MakePool, status: int, retryable: bool
) -> None:
    requests = Recorder()
    server.on_connect = lambda request: requests(request) or Refusal(status)
    pool = make_pool(base_delay=0.01, max_delay=0.01)
    with pytest.raises(rtpool.HandshakeRefused, match=f"HTTP {status}") as caught:
        pool.channel("room").subscribe(timeout=10)
    assert (caught.value.status, caught.value.retryable) == (status, retryable)
    assert len(requests.events) == (3 if retryable else 1)
    assert server.api_key not in str(caught.value)


def test_a_refused_join_is_a_typed_error_with_the_servers_words(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.on_join = lambda topic, payload, connection: JoinRefusal("Unauthorized: not for you")
    with pytest.raises(rtpool.JoinRefused, match="not for you") as caught:
        pool.channel("room", private=True).subscribe()
    error = caught.value
    assert (error.topic, error.code, error.reason, error.retryable) == ("room", "Unauthorized", "not for you", False)
    assert len(server.joins("room")) == 1
    assert pool.stats().total_subscriptions == 0


def test_a_refused_join_comes_back_with_a_new_token(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    good = server.token(sub="me")

    def guard(topic: str, payload: object, connection: object) -> JoinRefusal | None:
        assert isinstance(payload, dict)
        return None if payload.get("access_token") == good else JoinRefusal("Unauthorized: who are you")

    server.on_join = guard
    states = Recorder()
    channel = pool.channel("room", private=True).on_status(states).subscribe(wait=False)
    states.wait_for(lambda events: any(e.status == "refused" for e in events))
    pool.set_auth(good)
    states.wait_for(lambda events: events[-1].status == "joined")
    assert channel.is_subscribed


def test_a_temporary_refusal_is_tried_again_until_it_passes(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    answers = [JoinRefusal("InitializingProjectConnection: Connecting"), JoinRefusal("join crashed"), None]
    server.on_join = lambda topic, payload, connection: answers.pop(0)
    pool.channel("room").subscribe()
    assert [j.accepted for j in server.joins("room")] == [False, False, True]


def test_a_join_without_answer_times_out_in_time_and_is_taken_back(server: RealtimeServer, make_pool: MakePool) -> None:
    server.on_join = lambda topic, payload, connection: NO_REPLY if topic == "mute" else None
    pool = make_pool(join_timeout=0.1)
    with pytest.raises(rtpool.JoinTimeout, match="mute") as caught:
        pool.channel("mute").subscribe(timeout=0.5)
    assert isinstance(caught.value, TimeoutError)
    pool.channel("fine").subscribe()
    assert pool.stats().total_subscriptions == 1
    server.wait_for(lambda s: any(m.event == "phx_leave" and m.topic == "realtime:mute" for m in s.received))


def test_a_channel_the_server_ends_comes_back_with_a_gap(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    gaps = Recorder()
    channel = pool.channel("room").on_gap(gaps).subscribe()
    (connection,) = server.connections
    (member,) = connection.members.values()
    server.call(lambda: connection.shut_down(member, "Replication connection was not established in time"))
    assert gaps.wait(1)[0].cause == "rejoin"
    assert channel.is_subscribed
    assert server.connections_total == 1


def test_without_auto_reconnect_a_loss_is_told_once_and_nothing_is_tried(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, statuses = make_pool(auto_reconnect=False), Recorder()
    pool.on_status(statuses)
    channel = pool.channel("room").subscribe()
    server.connections[0].abort()
    change = statuses.wait_for(lambda events: events[-1].status == "error")[-1]
    assert isinstance(change.error, rtpool.ConnectionFailed)
    assert channel.state is rtpool.ChannelState.ERRORED
    assert pool.health().reasons
    pool.connect()
    wait_until(lambda: channel.is_subscribed)


def test_the_health_check_goes_on_after_the_quick_attempts(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, statuses = make_pool(max_retries=1, health_check_interval=0.05), Recorder()
    pool.on_status(statuses)
    channel = pool.channel("room").subscribe()
    server.on_connect = lambda request: Refusal(503)
    server.connections[0].abort()
    statuses.wait_for(lambda events: events[-1].status == "error")
    server.on_connect = None
    wait_until(lambda: channel.is_subscribed)


def test_a_users_tenacity_strategies_decide_and_run_on_a_dial_thread(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    import threading

    from tenacity import retry_always, stop_after_attempt, wait_fixed

    asked: list[tuple[str, int]] = []

    def wait(state: object) -> float:
        asked.append((threading.current_thread().name, state.attempt_number))  # type: ignore[attr-defined]
        return wait_fixed(0.01)(state)  # type: ignore[arg-type]

    policy = rtpool.ReconnectPolicy(wait=wait, stop=stop_after_attempt(2), retry=retry_always)
    pool = make_pool(reconnect=policy)
    server.on_connect = lambda request: Refusal(401)
    with pytest.raises(rtpool.HandshakeRefused):
        pool.channel("room").subscribe()
    assert [number for _, number in asked] == [1, 2]
    assert all("-dial-" in name for name, _ in asked)


def test_a_restarted_feed_is_a_gap(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    gaps = Recorder()
    pool.channel("db").on_postgres_changes("*", print, table="cars").on_gap(gaps).subscribe()
    message = {"extension": "postgres_changes", "status": "ok", "message": "Subscribed to PostgreSQL", "channel": "db"}
    server.push("db", "system", message)
    assert gaps.wait(1)[0].cause == "feed restart"
    assert len(server.joins("db")) == 1


def test_joins_are_paced_over_the_pool(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(max_joins_per_second=10)
    stamps: list[float] = []
    server.on_join = lambda *_: stamps.append(server.call(lambda: pool._engine.loop.clock()))
    channels = [pool.channel(f"topic-{n}").subscribe(wait=False) for n in range(25)]
    for channel in channels:
        channel.subscribe(timeout=30)
    for start in range(len(stamps) - 10):
        assert stamps[start + 10] - stamps[start] > 0.9, "eleven joins within a second"


def test_a_token_callable_runs_on_a_dial_thread_and_its_token_reaches_the_join(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    import threading

    names, token = Recorder(), server.token(sub="me")

    def provide() -> str:
        names(threading.current_thread().name)
        return token

    pool = make_pool(access_token=provide)
    for number in range(3):
        pool.channel(f"topic-{number}").subscribe()
    assert {j.payload["access_token"] for j in server.joins()} == {token}
    assert len(names.events) == 1, "one answer serves every join of a connection"
    assert "-dial-" in names.events[0]


def test_a_token_callable_that_fails_is_asked_again_and_its_error_told(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    answers: list[object] = [RuntimeError("offline"), 7, server.token()]

    def provide() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    statuses = Recorder()
    pool = make_pool(access_token=provide)
    channel = pool.channel("room").on_status(statuses).subscribe()
    assert channel.is_subscribed
    errors = [e.error for e in statuses.events if e.status == "refused"]
    assert [type(e) for e in errors] == [rtpool.JoinRefused] * 2
    assert str(errors[0].__cause__) == "offline"


def test_a_filter_the_server_refuses_is_told_in_its_words(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    with pytest.raises(rtpool.JoinRefused, match=r'malformed array literal: "\{\{,\}"') as caught:
        # Arrays within arrays are the server's to judge, not the call's.
        pool.channel("db").on_postgres_changes("*", print, table="cars", filter="id=in.({,)").subscribe()
    assert not caught.value.retryable
    assert pool.stats().total_subscriptions == 0
    server.wait_for(lambda s: s.members("db") == 0)


def test_a_feed_in_trouble_is_told_and_waited_for(server: RealtimeServer, make_pool: MakePool) -> None:
    with RealtimeServer(postgres_delay=0.3) as slow:
        pool, statuses = make_pool(slow.url, api_key=slow.api_key), Recorder()
        channel = pool.channel("db").on_postgres_changes("*", print, table="cars").on_status(statuses)
        channel.subscribe(wait=False)
        slow.wait_for(lambda s: s.members("db") == 1)
        words = '{:error, "Too many database timeouts"}'
        slow.push("db", "system", {"extension": "postgres_changes", "status": "error", "message": words})
        error = statuses.wait_for(lambda seen: seen and seen[-1].status == "refused")[-1].error
        assert words in str(error)
        assert error.retryable
        channel.subscribe(timeout=10)
        assert len(slow.joins("db")) == 1
