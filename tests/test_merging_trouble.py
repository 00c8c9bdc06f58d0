"""Whatever happens while a join moves, at whichever step: it stays, or it comes back, or it does as it was told."""

from __future__ import annotations

from typing import Any

import pytest

import rtpool
from rtpool.engine import mover
from rtpool.testing import NO_REPLY, JoinRefusal, RealtimeServer
from rtpool.testing.connection import ServerConnection
from rtpool.testing.refusals import System
from rtpool.testing.wire import ServerMessage
from tests.conftest import MakePool
from tests.support.merging import (
    STEPS,
    Heard,
    Publishers,
    at_step,
    guest_joins,
    hurry,
    is_resting,
    make_sparse_pool,
    merge,
    merge_until_one_is_left,
    one_channel_each,
    server_side,
    sparse,
)
from tests.support.recorder import Recorder
from tests.support.wait import wait_until


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def stuck_at_the_cut(
    server: RealtimeServer, pool: rtpool.RealtimePool, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, ServerConnection]:
    """Merge, and have the server stop reading the old socket as the first join is cut: its topic, and that socket."""
    moving = Recorder()

    def hold_up(move: Any) -> None:
        stuck = server_side(server, move.source)
        stuck.pause_reading()
        moving((move.topic.removeprefix("realtime:"), stuck))

    at_step(monkeypatch, "_cut", hold_up)
    merge(pool)
    ((topic, stuck),) = moving.wait(1)
    return topic, stuck


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("end", ["source", "target", "both"])
def test_a_socket_lost_at_any_step_is_an_outage_like_any_other(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, step: str, end: str
) -> None:
    pool = make_sparse_pool(make_pool)
    heard = sparse(pool)
    topics = list(heard)

    def kill(move: Any) -> None:
        for connection in {"source": [move.source], "target": [move.target]}.get(end, [move.source, move.target]):
            server_side(server, connection).abort()

    killed = at_step(monkeypatch, step, kill)
    publishers = Publishers(topics)
    publishers.add("server", server.broadcast, 0.004)
    publishers.add("mine", lambda t, e, p: heard[t].channel.send_broadcast(e, p, timeout=30), 0.01)
    with publishers:
        merge(pool)
        assert killed.wait(10)
        one_channel_each(server, topics)
        wait_until(lambda: all(each.channel.is_subscribed for each in heard.values()))
        merge_until_one_is_left(server, pool)
    wait_until(lambda: is_resting(pool))
    for topic, each in heard.items():
        each.until_end(server)
        numbers = each.of("server")
        assert numbers == sorted(set(numbers)), "in order, and none twice"
        assert each.of("mine") == []
        if not each.gaps.events:
            assert numbers == list(range(publishers.said[topic]["server"])), "nothing is lost without a word"
        assert len(each.gaps.events) <= 1
    one_channel_each(server, topics)


@pytest.mark.parametrize(
    "answer",
    [
        JoinRefusal("ChannelRateLimitReached: Too many channels"),
        JoinRefusal("Unauthorized: You do not have permissions to read from this Channel topic: x"),
        JoinRefusal("join crashed"),
        NO_REPLY,
    ],
    ids=["full", "unauthorized", "crashed", "silent"],
)
def test_a_refused_guest_leaves_everything_as_it_is(server: RealtimeServer, make_pool: MakePool, answer: Any) -> None:
    pool = make_sparse_pool(make_pool, join_timeout=0.3)
    heard = sparse(pool)
    topics, asked = list(heard), Recorder()
    is_guest = guest_joins(server, topics)

    def on_join(topic: str, payload: Any, connection: Any) -> Any:
        if is_guest(topic):
            asked(topic)
            return answer
        return None

    server.on_join = on_join
    publishers = Publishers(topics)
    publishers.add("server", server.broadcast, 0.004)
    with publishers:
        merge(pool)
        asked.wait(1)
        wait_until(lambda: is_resting(pool))
        server.on_join = None
        merge_until_one_is_left(server, pool) if not isinstance(answer, JoinRefusal) else None
    for topic, each in heard.items():
        each.until_end(server)
        assert each.of("server") == list(range(publishers.said[topic]["server"]))
        assert not each.gaps.events
        assert not each.statuses.events
    one_channel_each(server, topics)


def changing(heard: Heard, how: str, server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    if how == "unsubscribe":
        heard.channel.unsubscribe()
    elif how == "config":
        heard.channel.on_presence_sync(lambda state: None)
    elif how == "token":
        pool.set_auth(server.token(role="authenticated", sub="other"))
    elif how == "track":
        heard.channel.track({"n": 1}).result(10)
    elif how == "crash":
        server.crash_channel(heard.channel.topic)
    else:
        heard.channel.unsubscribe(timeout=0)
        heard.channel.subscribe()


@pytest.mark.parametrize("how", ["unsubscribe", "config", "token", "track", "crash", "again"])
@pytest.mark.parametrize("step", STEPS)
def test_a_channel_that_changes_while_it_moves_does_as_it_was_told(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, step: str, how: str
) -> None:
    pool, other = make_sparse_pool(make_pool), make_pool()
    heard = sparse(pool)
    if step == "_watch" and how in ("unsubscribe", "config", "token", "crash"):
        monkeypatch.setattr(mover, "SETTLE_SECONDS", 3_600.0)  # it is not found out at the next step, but at once
    moving: list[str] = []
    reached = at_step(monkeypatch, step, lambda move: moving.append(move.topic.removeprefix("realtime:")))
    merge(pool)
    assert reached.wait(10)
    topic = moving[0]
    left = Recorder()
    if how == "track":
        other.channel(topic).on_presence_leave(left).subscribe()
    changing(heard[topic], how, server, pool)
    wait_until(lambda: is_resting(pool))
    gone = how == "unsubscribe"
    server.wait_for(lambda s: s.members(topic) == (0 if gone else 2 if how == "track" else 1))
    one_channel_each(server, [name for name in heard if name != topic])
    if not gone:
        wait_until(lambda: heard[topic].channel.is_subscribed)
        for number in range(20):
            server.broadcast(topic, "after", {"n": number})
        heard[topic].until_end(server)
        assert heard[topic].of("after") == list(range(20))
    if how == "track":
        assert len(server.presence(topic)) == 1
        assert not left.events


def test_a_channel_that_the_server_ends_is_not_joined_elsewhere_meanwhile(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_sparse_pool(make_pool)
    heard = sparse(pool)
    monkeypatch.setattr(mover, "SETTLE_SECONDS", 3_600.0)
    moving = Recorder()
    at_step(monkeypatch, "_watch", lambda move: moving(move.topic.removeprefix("realtime:")))
    merge(pool)
    (topic,) = moving.wait(1)
    place = heard[topic].channel
    source = next(c for c in server.connections if f"realtime:{topic}" in c.topics and c.id != 1)
    server.call(lambda: source.shut_down(source.members[f"realtime:{topic}"], System.TOO_MANY_MESSAGES()))
    server.wait_for(lambda s: s.members(topic) == 0, 5)  # long before it is joined again
    assert not place.is_subscribed


def test_a_push_whose_answer_is_lost_is_no_strangers_message(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_sparse_pool(make_pool)
    heard = sparse(pool, ack=True)
    siblings = {topic: Heard(pool.channel(topic, ack=True).subscribe()) for topic in heard}
    moving = Recorder()

    def on_push(topic: str, event: str, payload: Any, connection: ServerConnection) -> Any:
        member = connection.members[f"realtime:{topic}"]
        server.rooms.broadcast(ServerMessage(None, None, member.topic, event, payload, True), False, but=member)
        return NO_REPLY

    server.on_push = on_push
    monkeypatch.setattr(mover, "SETTLE_SECONDS", 0.5)
    at_step(monkeypatch, "_watch", lambda move: moving(move.topic.removeprefix("realtime:")))
    merge(pool)
    (topic,) = moving.wait(1)
    with pytest.raises(rtpool.PushTimeout):
        heard[topic].channel.send_broadcast("unanswered", {"n": 0}, timeout=0.1).result(10)
    wait_until(lambda: is_resting(pool))
    for each in (heard[topic], siblings[topic]):
        each.until_end(server)
        assert each.of("unanswered") == []


def test_a_second_join_that_finds_no_socket_gets_the_one_that_is_being_left(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_sparse_pool(make_pool, max_connections=2, join_timeout=20.0)
    heard = {f"topic-{number}": Heard(pool.channel(f"topic-{number}").subscribe()) for number in range(14)}
    for number in range(3, 10):
        heard.pop(f"topic-{number}").channel.unsubscribe()
    topic, stuck = stuck_at_the_cut(server, pool, monkeypatch)
    second, told = Heard(pool.channel(topic, presence_key="second")), Recorder()
    second.channel.on_status(told).subscribe(wait=False)
    assert isinstance(told.wait(1)[0].error, rtpool.PoolExhausted)
    stuck.resume_reading()
    server.wait_for(lambda s: s.members(topic) == 2)
    wait_until(lambda: second.channel.is_subscribed)
    for each in (heard[topic], second):
        each.until_end(server)


def test_a_guest_that_gets_no_changes_is_sent_away(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_sparse_pool(make_pool)
    heard = sparse(pool, lambda channel: channel.on_postgres_changes("*", lambda change: None, table="cars"))
    server.configure(postgres_delay=3_600.0)
    merge(pool)
    server.wait_for(lambda s: any(s.members(topic) == 2 for topic in heard))
    topic = next(topic for topic in heard if server.members(topic) == 2)
    error = {"extension": "postgres_changes", "status": "error", "message": "no", "channel": topic}
    server.connections[0].push(f"realtime:{topic}", "system", error)
    wait_until(lambda: is_resting(pool))
    one_channel_each(server, list(heard))
    assert not heard[topic].statuses.events
    assert all(each.channel.is_subscribed for each in heard.values())


@pytest.mark.parametrize("then", ["stay", "unsubscribe", "close"])
def test_what_is_said_while_the_old_socket_is_stuck_is_not_held_up_for_long(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    monkeypatch.setattr(mover, "HOLD_SECONDS", 0.2 if then == "stay" else 3_600.0)
    pool, other = make_sparse_pool(make_pool, join_timeout=20.0, heartbeat_interval=25.0), make_pool()
    heard = sparse(pool)
    strangers = {topic: Heard(other.channel(topic).subscribe()) for topic in heard}
    topic, stuck = stuck_at_the_cut(server, pool, monkeypatch)
    push = heard[topic].channel.send_broadcast("held", {"n": 0})
    if then == "unsubscribe":
        heard[topic].channel.unsubscribe()
    elif then == "close":
        pool.close(10)
    push.result(10)
    strangers[topic].messages.wait(1)
    stuck.resume_reading()
    wait_until(lambda: pool.closed or is_resting(pool))
    strangers[topic].until_end(server)
    assert strangers[topic].of("held") == [0]


@pytest.mark.parametrize("step", STEPS)
def test_a_second_join_of_the_topic_finds_a_socket_of_its_own_meanwhile(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    pool = make_sparse_pool(make_pool)
    heard = sparse(pool)
    moving = Recorder()
    reached = at_step(monkeypatch, step, lambda move: moving(move.topic.removeprefix("realtime:")))
    merge(pool)
    assert reached.wait(10)
    (topic,) = moving.wait(1)
    second = Heard(pool.channel(topic, presence_key="second").subscribe())
    wait_until(lambda: is_resting(pool))
    server.wait_for(lambda s: s.members(topic) == 2)
    for number in range(20):
        server.broadcast(topic, "after", {"n": number})
    for each in (heard[topic], second):
        each.until_end(server)
        assert each.of("after") == list(range(20))
        assert not each.gaps.events
    assert not heard[topic].statuses.events


def test_a_pool_can_be_closed_in_the_middle_of_a_move(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in STEPS:
        with monkeypatch.context() as patch:
            pool = make_sparse_pool(make_pool)
            sparse(pool)
            reached = at_step(patch, step, lambda move: None)
            merge(pool)
            assert reached.wait(10)
            assert pool.close(10)
        server.wait_for(lambda s: not s.connections)
