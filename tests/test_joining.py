"""Joins in trouble: none is forgotten, none is given up for another's reason, none costs its neighbours their place."""

from __future__ import annotations

import socket
import threading
from datetime import datetime, timezone
from typing import Any

import pytest

import rtpool
from rtpool.engine import joining
from rtpool.testing import JoinRefusal, PushReply, RealtimeServer, Refusal, faults
from rtpool.testing.refusals import Join
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until


def test_joins_that_wait_go_on_when_a_late_heartbeat_is_answered(make_pool: MakePool) -> None:
    with RealtimeServer(join_latency=0.3) as server:
        server.inject(faults.Delay(0.02), on=faults.Replying("heartbeat"), times=None)
        pool = make_pool(
            server.url, api_key=server.api_key, heartbeat_interval=0.2, heartbeat_timeout=0.25, health_check_interval=60
        )
        channels = [pool.channel(f"room-{number}").subscribe(wait=False) for number in range(12)]
        wait_until(lambda: all(channel.is_subscribed for channel in channels))
        assert server.connections_total == 1
        pool.close()


def test_a_join_is_judged_by_how_often_it_failed_just_so_not_by_all_that_failed_before(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    answers = [Join.INITIALIZING(), *[JoinRefusal("QueryCanceled: slow")] * 5, JoinRefusal("Unknown Error on Channel")]
    server.on_join = lambda *_: answers.pop(0) if answers else None
    pool = make_pool(base_delay=0.01, max_delay=0.02)
    channel = pool.channel("room").subscribe(wait=False)
    wait_until(lambda: channel.is_subscribed)
    assert len(server.joins("room")) == 8


def test_words_nobody_understands_are_tried_again_for_ever_but_slowly(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "LONG_BACK_OFF", 0.1)
    seen, answers = Recorder(), [Join.UNKNOWN()] * 9
    server.on_join = lambda *_: answers.pop(0) if answers else None
    channel = make_pool(base_delay=0.001, max_delay=0.001).channel("room").on_status(seen).subscribe(wait=False)
    wait_until(lambda: channel.is_subscribed)
    actions = [change.error.action for change in seen.events if change.status == "refused"]
    assert actions == [rtpool.Action.BACK_OFF] * 5 + [rtpool.Action.BACK_OFF_LONG] * 4


@pytest.mark.parametrize("how", ["unsubscribe", "unsubscribe and subscribe"])
@pytest.mark.parametrize("reader", ["a callback", "a loop"])
def test_a_channel_that_blocked_its_socket_lets_go_of_it_when_it_leaves(
    server: RealtimeServer, make_pool: MakePool, how: str, reader: str
) -> None:
    pool, heard, go_on = make_pool(overflow="block", mailbox_limit=10), Recorder(), threading.Event()
    pool.channel("other").on_broadcast("*", heard).subscribe()
    channel = pool.channel("room")
    if reader == "a callback":
        channel.on_broadcast("*", lambda message: go_on.wait(10))
    channel.subscribe()
    try:
        for number in range(200):
            server.broadcast("room", "x", {"n": number})
        (connection,) = pool._engine.coordinator.connections.all
        wait_until(lambda: connection.paused_by)
        channel.unsubscribe(timeout=0)
        if how != "unsubscribe":
            channel.subscribe(wait=False)
            go_on.set()
            threading.Thread(target=lambda: list(channel.events())).start()
        server.broadcast("other", "y", {"n": 1})
        heard.wait(1)
        channel.unsubscribe()
    finally:
        go_on.set()


def test_a_node_that_goes_away_costs_its_socket_no_place_for_later(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(max_connections=1, base_delay=0.01)
    server.inject(faults.RefuseJoin("RealtimeRestarting: Realtime is restarting, please standby"))
    pool.channel("a").subscribe()
    pool.channel("b").subscribe()
    assert server.connections_total == 1


def test_who_found_no_room_is_given_it_when_another_socket_has_some(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, told = make_pool(max_connections=1, max_channels_per_connection=1), Recorder()
    first = pool.channel("a").subscribe()
    second = pool.channel("b").on_status(told).subscribe(wait=False)
    told.wait_for(lambda events: any(isinstance(e.error, rtpool.PoolExhausted) for e in events))
    first.unsubscribe()
    wait_until(lambda: second.is_subscribed)


def test_a_join_that_waited_for_a_lost_socket_is_not_forgotten_though_the_one_before_it_fails(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    calls: list[int] = []

    def token() -> str:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("the auth server is down")
        return server.token()

    pool = make_pool(max_joins_in_flight=1, heartbeat_timeout=5, health_check_interval=60)
    hold = server.inject(faults.Drop(), on=faults.Receiving("phx_join", topic="a"))
    pool.channel("a", access_token=token).subscribe(wait=False)
    hold.wait()
    second = pool.channel("b").subscribe(wait=False)
    wait_until(lambda: pool.stats().total_joins == 2)
    server.connections[0].abort()
    wait_until(lambda: second.is_subscribed)


def test_changes_that_never_flow_are_told_and_asked_for_anew(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "CHANGES_SECONDS", 0.2)
    lost = server.inject(faults.Drop(), on=faults.Sending("system", topic="room"))
    pool, seen = make_pool(), Recorder()
    channel = pool.channel("room").on_postgres_changes("*", print, table="cars").on_status(seen).subscribe(wait=False)
    lost.wait()
    wait_until(lambda: channel.is_subscribed)
    late = seen.first(lambda change: change.status == "timed_out")
    assert "changes of 'room' do not flow" in str(late.error)
    assert len(server.joins("room")) == 2


def test_a_channel_that_the_server_ends_as_soon_as_it_is_joined_is_joined_ever_more_slowly(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, seen = make_pool(stable_after=10.0, base_delay=0.02, max_delay=60), Recorder()

    def crash(change: rtpool.StatusChange) -> None:
        seen(change)
        if change.status == "joined":
            server.crash_channel("room")

    channel = pool.channel("room").on_status(crash)
    channel.subscribe(wait=False)
    wait_until(lambda: len(server.joins("room")) >= 6)
    (join,) = pool._engine.coordinator.joins.values()
    assert join.attempts >= 5


def test_a_callable_that_hangs_is_called_again_and_keeps_no_other_from_being_called(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    go_on, calls = threading.Event(), Recorder()

    def hang() -> str:
        calls(1)
        go_on.wait(30)
        return server.token()

    pool, told = make_pool(join_timeout=0.1, base_delay=0.01, max_delay=0.01), Recorder()
    stuck = pool.channel("a", access_token=hang).on_status(told).subscribe(wait=False)
    told.wait_for(lambda events: sum(e.status == "refused" for e in events) >= 12)
    pool.channel("b", access_token=lambda: server.token()).subscribe()
    assert len(calls.events) >= 3  # it may have been that one call
    go_on.set()
    wait_until(lambda: stuck.is_subscribed)


def test_a_dial_that_hangs_is_given_up_and_told_and_its_late_socket_is_closed(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtpool.engine.connections.DIAL_GRACE", 0.1)
    go_on, first = threading.Event(), [True]

    def dial(host: str, port: int, seconds: float) -> socket.socket:
        if first:
            first.clear()
            go_on.wait(30)
        return socket.create_connection((host, port))

    pool, seen = make_pool(dial=dial, connection_timeout=0.2), Recorder()
    channel = pool.on_status(seen).channel("room").subscribe(wait=False)
    change = seen.wait_for(lambda events: any(e.error for e in events))[-1]
    assert "did not end within" in str(next(e.error for e in seen.events if e.error))
    assert change is not None
    wait_until(lambda: channel.is_subscribed)
    go_on.set()
    server.wait_for(lambda s: len(s.connections) == 1)


def test_what_the_users_policy_gave_up_stays_given_up(server: RealtimeServer, make_pool: MakePool) -> None:
    knocks: list[Any] = []
    server.on_connect = lambda request: knocks.append(request) or Refusal(503)
    pool = make_pool(reconnect=rtpool.ReconnectPolicy(retry=lambda state: False), health_check_interval=0.02)
    seen = Recorder()
    pool.on_status(seen).channel("room").subscribe(wait=False)
    seen.wait_for(lambda events: events and events[-1].status == "error")
    audit = pool._engine.coordinator.audit
    for _ in range(3):
        done = threading.Event()
        pool._engine.post(lambda done=done: (audit.run(), done.set()))
        assert done.wait(5)
    assert len(knocks) == 1
    assert pool.stats().repairs == 0


def test_a_gap_covers_what_was_published_behind_a_message_that_was_cut_off(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, gaps = make_pool(), Recorder()
    pool.channel("room").on_gap(gaps).on_broadcast("*", print).subscribe()
    cut = server.inject(faults.Freeze(after=1_000), on=faults.Sending("broadcast", topic="room"))
    before = datetime.now(timezone.utc)
    server.broadcast("room", "big", {"data": "x" * 100_000})
    cut.wait()
    (connection,) = pool._engine.coordinator.connections.all
    wait_until(lambda: connection._all_received > connection._sure_bytes)
    connection.proof_of_life += 100  # as if more of it had trickled in, ever since
    server.connections[0].abort()
    (gap,) = gaps.wait(1)
    assert gap.lost_from <= before


@pytest.mark.parametrize("again", ["another Channel", "the same Channel"])
def test_a_new_wish_is_a_new_attempt_also_for_a_topic_that_is_wanted_already(
    server: RealtimeServer, make_pool: MakePool, again: str
) -> None:
    server.inject(faults.Refuse(404))
    pool, seen = make_pool(), Recorder()
    channel = pool.on_status(seen).channel("room").subscribe(wait=False)
    seen.wait_for(lambda events: events and events[-1].status == "error")
    (pool.channel("room") if again == "another Channel" else channel).subscribe()
    wait_until(lambda: channel.is_subscribed)


def test_a_server_that_restarts_is_asked_on_one_more_socket_not_on_ever_more(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, busy = make_pool(base_delay=0.02, max_delay=0.1), [True]
    words = "RealtimeRestarting: Realtime is restarting, please standby"
    server.on_join = lambda *_: JoinRefusal(words) if busy else None
    channels = [pool.channel(f"room-{number}").subscribe(wait=False) for number in range(20)]
    wait_until(lambda: len(server.joins()) >= 60)
    assert server.connections_total == 2
    busy.clear()
    wait_until(lambda: all(channel.is_subscribed for channel in channels))
    assert not any(c.joins for c in pool._engine.coordinator.connections.all if c.draining)


def test_a_channel_subscribed_while_another_thread_unsubscribes_it_hears(
    server: RealtimeServer, pool: rtpool.RealtimePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Recorder()
    channel = pool.channel("room").on_broadcast("*", heard).subscribe()
    dispatcher = pool._engine.dispatcher
    end, reached, go_on = dispatcher.end, threading.Event(), threading.Event()

    def slow_end(*args: Any, **options: Any) -> None:
        reached.set()
        go_on.wait(5)
        end(*args, **options)

    monkeypatch.setattr(dispatcher, "end", slow_end)
    leaving = threading.Thread(target=lambda: channel.unsubscribe(timeout=0))
    leaving.start()
    assert reached.wait(5)
    channel.subscribe(wait=False)  # between the detaching and the end of the mailbox
    go_on.set()
    leaving.join()
    wait_until(lambda: channel.is_subscribed)
    server.broadcast("room", "x", {"n": 1})
    heard.wait(1)


def test_two_threads_that_subscribe_and_unsubscribe_leave_a_channel_that_hears_or_none(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    heard = Recorder()
    channel = pool.channel("room").on_broadcast("*", heard)

    def coming_and_going() -> None:
        for _ in range(100):
            channel.subscribe(wait=False)
            channel.unsubscribe(timeout=0)

    threads = [threading.Thread(target=coming_and_going) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    channel.subscribe()
    server.broadcast("room", "x", {"n": 1})
    heard.wait(1)


def test_a_topic_the_server_keeps_forgetting_is_joined_at_once_only_the_first_time(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    server.on_push = lambda topic, event, payload, connection: PushReply({"reason": "unmatched topic"}, "error")
    pool = make_pool(stable_after=10.0, base_delay=60, max_delay=60)
    channel = pool.channel("room", presence_key="me")
    channel.subscribe()
    channel.track({"n": 1})
    wait_until(lambda: len(server.joins("room")) == 2)
    (join,) = pool._engine.coordinator.joins.values()
    wait_until(lambda: join.retry is not None)
    assert join.attempts == 2


@pytest.mark.parametrize("where", ["of a live channel", "of a join"])
def test_a_token_that_comes_while_the_one_before_is_being_refused_is_tried(
    server: RealtimeServer, make_pool: MakePool, where: str
) -> None:
    pool = make_pool(access_token=server.token(sub="me", n=1))
    channel = pool.channel("room")
    if where == "of a join":
        server.inject(faults.RefuseJoin("InvalidJWTToken: Token has expired 1 seconds ago"))
        with server.inject(faults.Delay(3_600), on=faults.Replying("phx_join")) as slow:
            channel.subscribe(wait=False)
            slow.wait()
            pool.set_auth(server.token(sub="me", n=2))
    else:
        channel.subscribe()
        with server.inject(faults.Delay(3_600), on=faults.Sending("system")) as slow:
            server.expire_tokens("room")
            slow.wait()
            pool.set_auth(server.token(sub="me", n=2))
            server.wait_for(lambda s: any(message.event == "access_token" for message in s.received))
    wait_until(lambda: channel.is_subscribed and len(server.joins("room")) == 2)


def test_a_sibling_whose_wish_is_refused_for_good_takes_nobody_along_when_it_leaves(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    def guard(topic: str, payload: Any, connection: object) -> JoinRefusal | None:
        wanted = payload["config"]["postgres_changes"]
        return JoinRefusal("RealtimeDisabledForConfiguration: no changes here") if wanted else None

    server.on_join = guard
    pool = make_pool()
    first = pool.channel("room").on_broadcast("*", print).subscribe()
    with pytest.raises(rtpool.JoinRefused, match="no changes here"):
        pool.channel("room").on_postgres_changes("*", print, table="cars").subscribe()
    wait_until(lambda: first.is_subscribed)


def test_a_new_token_ends_the_wait_of_who_had_none(server: RealtimeServer, make_pool: MakePool) -> None:
    def broken() -> str:
        raise RuntimeError("the auth server is down")

    pool, told = make_pool(access_token=broken, base_delay=3_600, max_delay=3_600), Recorder()
    channel = pool.channel("room").on_status(told).subscribe(wait=False)
    told.wait_for(lambda events: any(e.status == "refused" for e in events))
    pool.set_auth(server.token())
    wait_until(lambda: channel.is_subscribed)


def test_what_was_whole_before_a_bad_frame_is_delivered(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, heard = make_pool(), Recorder()
    pool.channel("room").on_broadcast("*", heard).on_gap(heard).subscribe()
    text = '[null,null,"realtime:room","broadcast",{"type":"broadcast","event":"x","payload":{"n":%d}}]'
    frames = b"".join(bytes([0x81, len(body)]) + body for body in ((text % n).encode() for n in range(10)))
    server.connections[0].send_raw(frames + b"\xff\xff\xff\xff")
    events = heard.wait(11)
    assert [event.payload["n"] for event in events[:10]] == list(range(10))
    assert isinstance(events[10], rtpool.Gap)


def test_a_gap_covers_what_the_server_could_not_send_because_nothing_was_read(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, gaps, go_on = make_pool(overflow="block", mailbox_limit=2), Recorder(), threading.Event()
    channel = pool.channel("room").on_broadcast("*", lambda message: go_on.wait(10))
    channel.on_gap(gaps).subscribe()
    (connection,) = pool._engine.coordinator.connections.all
    before = datetime.now(timezone.utc)
    try:
        for number in range(300):
            server.broadcast("room", "x", {"n": number, "pad": "x" * 50_000})
        wait_until(lambda: connection._paused)
        connection.proof_of_life += 100  # as if a little had been read, now and then, ever since
        server.connections[0].abort()
    finally:
        go_on.set()
    assert gaps.wait(1)[0].lost_from <= before


def test_a_channel_that_was_refused_for_good_hears_nothing_of_its_sockets_troubles(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, told, of_sibling = make_pool(), Recorder(), Recorder()
    server.on_join = lambda topic, *_: JoinRefusal("PrivateOnly: no") if topic == "refused" else None
    pool.channel("refused").on_status(told).subscribe(wait=False)
    pool.channel("room").on_status(of_sibling).subscribe()
    told.wait_for(lambda events: events[-1].status == "refused")
    server.connections[0].abort()
    of_sibling.wait_for(lambda events: sum(e.status == "joined" for e in events) == 2)
    assert [change.status for change in told.events] == ["joining", "refused"]


def test_a_busy_connection_knows_ever_anew_what_has_arrived(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, heard, beats = make_pool(heartbeat_interval=3.0), Recorder(), Recorder()
    pool.on_heartbeat(beats).channel("room").on_broadcast("*", heard).subscribe()
    (connection,) = pool._engine.coordinator.connections.all
    opened_at = connection._sure_at
    number = 0

    def more() -> bool:
        nonlocal number
        server.broadcast("room", "x", {"n": number})
        number += 1
        return connection._sure_at >= opened_at + 1.2  # the second time

    wait_until(more)
    assert beats.events == []  # those in between are nobody's business


def test_who_is_put_out_for_its_token_again_and_again_asks_ever_more_slowly(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    given: list[str] = []

    def fresh() -> str:
        given.append(server.token(n=len(given)))
        return given[-1]

    def put_out(change: rtpool.StatusChange) -> None:
        if change.status == "joined":
            server.expire_tokens("room")

    pool = make_pool(access_token=fresh, stable_after=10.0, base_delay=3_600, max_delay=3_600)
    pool.channel("room").on_status(put_out).subscribe(wait=False)
    wait_until(lambda: len(server.joins("room")) == 2)  # the first time at once
    (join,) = pool._engine.coordinator.joins.values()
    wait_until(lambda: join.retry is not None)
    assert len(server.joins("room")) == 2


def test_who_falls_behind_before_it_is_ready_is_told_so_at_once(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, go_on = make_pool(overflow="close", mailbox_limit=3), threading.Event()
    server.table("cars", {"id": "int8"})
    lost = server.inject(faults.Drop(), on=faults.Sending("system", topic="room"))  # so it is never ready
    channel = pool.channel("room").on_broadcast("*", lambda message: go_on.wait(10))
    channel.on_postgres_changes("*", print, table="cars")
    outcome = Recorder()

    def subscribe() -> None:
        try:
            channel.subscribe(timeout=CAP)
        except rtpool.RtpoolError as error:
            outcome(error)

    thread = threading.Thread(target=subscribe)
    thread.start()
    lost.wait()
    for number in range(200):
        server.broadcast("room", "x", {"n": number})
    try:
        assert isinstance(outcome.wait(1)[0], rtpool.MailboxOverflow)
    finally:
        go_on.set()
    thread.join()
