"""What status listeners see, in order, and that they may do anything."""

from __future__ import annotations

import inspect

import pytest

import rtpool
from rtpool.testing import NO_REPLY, JoinRefusal, RealtimeServer, Refusal
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until


def statuses(recorder: Recorder) -> list[str]:
    return [change.status for change in list(recorder.events)]


def test_a_pool_tells_its_life_with_the_attempt_the_delay_and_the_error(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    seen = Recorder()
    pool = make_pool(max_retries=2, health_check_interval=0.2).on_status(seen)
    pool.channel("room").subscribe()
    server.on_connect = lambda request: Refusal(503)
    server.connections[0].abort()
    seen.wait_for(lambda events: events[-1].status == "error")
    server.on_connect = None
    seen.wait_for(lambda events: events[-1].status == "connected" and len(events) > 4)
    pool.close()
    assert statuses(seen) == ["connecting", "connected", "reconnecting", "reconnecting", "error", "connected", "closed"]
    lost, failed, given_up = seen.events[2:5]
    assert [(change.attempt, change.connection_id) for change in (lost, failed, given_up)] == [(1, 1), (2, 1), (2, 1)]
    assert isinstance(lost.error, rtpool.ConnectionFailed)
    assert isinstance(failed.error, rtpool.HandshakeRefused)
    assert given_up.error.status == 503
    assert 0 <= lost.delay <= 0.05
    assert 0 <= failed.delay <= 0.05
    assert 0.1 <= given_up.delay <= 0.2
    assert all(change.topic is None for change in seen.events)
    assert all(change.error is None and change.delay is None for change in (*seen.events[:2], *seen.events[5:]))


def test_a_channel_tells_its_life(server: RealtimeServer, make_pool: MakePool) -> None:
    seen = Recorder()
    channel = make_pool(max_retries=1, health_check_interval=0.2).channel("room").on_status(seen).subscribe()
    server.on_connect = lambda request: Refusal(503)
    server.connections[0].abort()
    seen.wait_for(lambda events: events[-1].status == "error")
    server.on_connect = None
    seen.wait_for(lambda events: events[-1].status == "joined" and len(events) > 4)
    channel.unsubscribe()
    seen.wait_for(lambda events: events[-1].status == "closed")
    assert statuses(seen) == ["joining", "joined", "rejoining", "error", "rejoining", "joined", "closed"]
    assert isinstance(seen.events[3].error, rtpool.HandshakeRefused)
    assert {change.topic for change in seen.events} == {"room"}


def test_a_channel_is_told_of_a_refusal_in_the_servers_words_and_of_its_return(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    seen, answers = Recorder(), [JoinRefusal("QueryCanceled: slow"), NO_REPLY]
    server.on_join = lambda *_: answers.pop(0) if answers else None
    pool.channel("room").on_status(seen).subscribe(wait=False)
    refused = seen.first(lambda change: change.status == "refused").error
    assert isinstance(refused, rtpool.JoinRefused)
    assert (refused.code, refused.reason, refused.retryable) == ("QueryCanceled", "slow", True)


def test_a_join_without_an_answer_is_told_as_timed_out(server: RealtimeServer, make_pool: MakePool) -> None:
    seen, answers = Recorder(), [NO_REPLY]
    server.on_join = lambda *_: answers.pop(0) if answers else None
    make_pool(join_timeout=0.2).channel("room").on_status(seen).subscribe(wait=False)
    seen.wait_for(lambda events: events and events[-1].status == "joined")
    assert statuses(seen) == ["joining", "timed_out", "rejoining", "joined"]
    assert isinstance(seen.events[1].error, rtpool.JoinTimeout)


@pytest.mark.parametrize("reason", ["Unauthorized: no", "QueryCanceled: slow"])
def test_subscribing_anew_in_the_listener_of_a_refusal_never_recurses(
    server: RealtimeServer, make_pool: MakePool, reason: str
) -> None:
    pool, depths, done = make_pool(), [], Recorder()
    server.on_join = lambda *_: JoinRefusal(reason)
    channel = pool.channel("room")

    @channel.on_status()
    def again(change: rtpool.StatusChange) -> None:
        depths.append(len(inspect.stack()))
        if change.status == "refused" and len(server.joins("room")) < 100:
            channel.unsubscribe()
            channel.subscribe(wait=False)
        elif change.status == "refused":
            done(change)

    channel.subscribe(wait=False)
    done.wait(1)
    assert len(server.joins("room")) >= 100
    assert max(depths) == min(depths)


def test_a_listener_may_subscribe_and_unsubscribe_others_and_close_the_pool(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, joined = make_pool(), Recorder()
    channels = [pool.channel(f"room-{n}") for n in range(50)]

    def chain(change: rtpool.StatusChange) -> None:
        number = int(str(change.topic).removeprefix("room-"))
        if change.status == "joined":
            if number + 1 < len(channels):
                channels[number + 1].subscribe(timeout=CAP)
            if number:
                channels[number - 1].unsubscribe()
            joined(number)

    for channel in channels:
        channel.on_status(chain)
    channels[0].subscribe()
    joined.wait(50)
    server.wait_for(lambda s: s.members("room-49") == 1 and not any(s.members(f"room-{n}") for n in range(49)))
    pool.on_status(lambda change: pool.close() if change.status == "reconnecting" else None)
    server.connections[0].abort()
    wait_until(lambda: pool.closed)


def test_a_listener_that_raises_is_logged_and_harms_nobody(
    server: RealtimeServer, pool: rtpool.RealtimePool, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Recorder()

    def broken(change: rtpool.StatusChange) -> None:
        raise LookupError("of the listener")

    pool.on_status(broken).on_status(seen)
    pool.channel("room").on_status(broken).on_status(seen).subscribe()
    wait_until(lambda: {"connected", "joined"} <= set(statuses(seen)))
    assert caplog.text.count("LookupError: of the listener") >= 4
    caplog.clear()
