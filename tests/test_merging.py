"""Sparse sockets become fewer, and no Channel notices: every message once and in order, no Gap, no status, no leave."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

import rtpool
from rtpool.engine import mover
from rtpool.testing import JoinRefusal, JoinReply, RealtimeServer, Refusal
from tests.conftest import MakePool
from tests.support.merging import (
    STAY,
    Heard,
    Laggard,
    Publishers,
    at_step,
    guest_joins,
    hurry,
    is_resting,
    make_sparse_pool,
    merge,
    merge_until_one_is_left,
    one_channel_each,
    sparse,
)
from tests.support.recorder import Recorder
from tests.support.wait import wait_until


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.mark.parametrize("protocol", ["1.0.0", "2.0.0"])
def test_three_sparse_sockets_become_one_while_everybody_talks(
    server: RealtimeServer, make_pool: MakePool, protocol: str
) -> None:
    pool, other = make_sparse_pool(make_pool, protocol=protocol), make_pool(max_channels_per_connection=20)
    heard = sparse(pool)
    topics = list(heard)
    elsewhere = {topic: other.channel(topic).subscribe() for topic in topics}
    publishers = Publishers(topics)
    publishers.add("server", server.broadcast, 0.003)
    publishers.add("text", lambda t, e, p: server.broadcast(t, e, p, as_text=True), 0.007)
    publishers.add("tick", server.broadcast, 0.15)
    publishers.add("pool", lambda t, e, p: elsewhere[t].send_broadcast(e, p), 0.005)
    publishers.add("tick too", lambda t, e, p: elsewhere[t].send_broadcast(e, p), 0.21)
    with publishers:
        merge_until_one_is_left(server, pool)
    for topic, each in heard.items():
        each.messages.wait(publishers.said[topic].total())
        each.until_end(server)
        for who, count in publishers.said[topic].items():
            assert each.of(who) == ([0] * count if who.startswith("tick") else list(range(count))), (topic, who)
        assert not each.gaps.events
        assert not each.statuses.events
        assert each.channel.is_subscribed
    assert pool._engine.coordinator.mover.moved == 2 * STAY
    assert pool.stats().gaps == 0
    assert pool.stats().reconnect_attempts == 0
    one_channel_each(server, topics, others=1)
    assert len(server.connections) == 2


@pytest.mark.parametrize("slow", ["old", "new"])
def test_whichever_socket_is_ahead_each_message_comes_once(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, slow: str
) -> None:
    caplog.set_level("INFO", "rtpool.io")
    with Laggard(server.port, slow) as proxy:
        pool = make_sparse_pool(make_pool, url=f"http://127.0.0.1:{proxy.port}")
        heard = sparse(pool)
        publishers = Publishers(list(heard))
        publishers.add("server", server.broadcast, 0.004)
        publishers.add("other", server.broadcast, 0.006)
        publishers.add("tick", server.broadcast, 0.3)
        with publishers:
            merge_until_one_is_left(server, pool)
        for topic, each in heard.items():
            each.messages.wait(publishers.said[topic].total())
            each.until_end(server)
            for who, count in publishers.said[topic].items():
                assert each.of(who) == ([0] * count if who == "tick" else list(range(count))), (topic, who)
            assert not each.gaps.events
            assert not each.statuses.events
        assert pool.close(10)
    words = re.compile(r"moved from .*; (\d+) messages came there first, (\d+) later")
    moves = [match for record in caplog.records if (match := words.search(record.message))]
    first, later = (sum(int(move[n]) for move in moves) for n in (1, 2))
    print(f"{len(moves)} moves, the {slow} socket slow: by the new one {first} messages came first, {later} later")
    assert len(moves) == 2 * STAY
    assert (first if slow == "old" else later) > 0


@pytest.mark.parametrize("settings", [{}, {"ack": True}])
def test_what_is_said_by_the_old_socket_arrives_before_what_is_said_by_the_new(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
) -> None:
    caplog.set_level("INFO", "rtpool.io")
    with Laggard(server.port, "old", up=True) as proxy:
        pool, other = make_sparse_pool(make_pool, url=f"http://127.0.0.1:{proxy.port}"), make_pool()
        heard = sparse(pool, **settings)
        strangers = {topic: Heard(other.channel(topic).subscribe()) for topic in heard}
        publishers = Publishers(list(heard))
        publishers.add("mine", lambda t, e, p: heard[t].channel.send_broadcast(e, p), 0.01)
        with publishers:
            merge_until_one_is_left(server, pool)
        for topic, stranger in strangers.items():
            stranger.messages.wait(publishers.said[topic]["mine"])
            assert stranger.of("mine") == list(range(publishers.said[topic]["mine"]))
        assert pool.close(10)
    assert not [record.message for record in caplog.records if "stays on" in record.message], "no move was in vain"


@pytest.mark.parametrize("settings", [{}, {"ack": True}, {"receive_own": True}, {"private": True}])
def test_what_a_moving_join_says_itself_is_heard_once_by_its_siblings_and_by_others(
    server: RealtimeServer, make_pool: MakePool, settings: dict[str, Any]
) -> None:
    pool, other = make_sparse_pool(make_pool), make_pool(max_channels_per_connection=20)
    heard = sparse(pool, **settings)
    topics, private = list(heard), settings.get("private", False)
    siblings = {topic: Heard(pool.channel(topic, private=private).subscribe()) for topic in topics}
    strangers = {topic: Heard(other.channel(topic, private=private).subscribe()) for topic in topics}
    publishers = Publishers(topics)
    publishers.add("mine", lambda t, e, p: heard[t].channel.send_broadcast(e, p), 0.004)
    publishers.add("tick", lambda t, e, p: heard[t].channel.send_broadcast(e, p), 0.15)
    publishers.add("server", lambda t, e, p: server.broadcast(t, e, p, private=private), 0.005)
    with publishers:
        merge_until_one_is_left(server, pool)
    for topic in topics:
        said = publishers.said[topic]
        own = {"mine", "tick"} if not settings.get("receive_own") else set()
        for each, unheard in ((heard[topic], own), (siblings[topic], set()), (strangers[topic], set())):
            each.messages.wait(sum(count for who, count in said.items() if who not in unheard))
        for each, unheard in ((heard[topic], own), (siblings[topic], set()), (strangers[topic], set())):
            each.until_end(server, private=private)
            for who, count in said.items():
                expected = [0] * count if who == "tick" else list(range(count))
                assert each.of(who) == ([] if who in unheard else expected), (topic, who)
            assert not each.gaps.events
        assert not heard[topic].statuses.events
    one_channel_each(server, topics, others=1)


def test_every_change_comes_once(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_sparse_pool(make_pool)
    changes: dict[str, Recorder] = {}

    def listen(channel: rtpool.Channel) -> None:
        channel.on_postgres_changes("*", changes.setdefault(channel.topic, Recorder()), table="cars")

    heard = sparse(pool, listen)
    count, stop = 0, threading.Event()

    def change() -> None:
        nonlocal count
        while not stop.wait(0.004):
            server.change("public", "cars", "UPDATE", {"id": count}, {"id": count})
            count += 1
            if count % 20 == 0:  # the same row, twice in one transaction
                for _ in range(2):
                    server.change(
                        "public", "cars", "INSERT", {"id": -count}, commit_timestamp="2026-01-01T00:00:00.000Z"
                    )

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    merge_until_one_is_left(server, pool)
    stop.set()
    thread.join(10)
    server.change("public", "cars", "DELETE", None, {"id": 0})
    for topic, each in heard.items():
        events = changes[topic].wait_for(lambda events: events[-1].type == "DELETE")
        updates = [c.record["id"] for c in events if c.type == "UPDATE"]
        inserts = [c.record["id"] for c in events if c.type == "INSERT"]
        assert updates == list(range(count)), topic
        assert inserts == [-number for number in range(20, count + 1, 20) for _ in range(2)]
        assert not each.gaps.events
        assert not each.statuses.events


def test_a_restart_of_the_feed_meanwhile_is_one_gap(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_sparse_pool(make_pool)
    heard = sparse(pool, lambda channel: channel.on_postgres_changes("*", lambda change: None, table="cars"))
    restarted = at_step(monkeypatch, "_watch", lambda move: server.restart_changes_feed())
    merge(pool)
    assert restarted.wait(10)
    merge_until_one_is_left(server, pool)
    for each in heard.values():
        assert [gap.cause for gap in each.gaps.wait(1)] == ["feed restart"]
        assert not each.statuses.events


def test_who_is_present_is_told_as_if_nothing_had_moved(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, other = make_sparse_pool(make_pool), make_pool(max_presence_calls=1_000_000)
    told: dict[str, Recorder] = {}

    def listen(channel: rtpool.Channel) -> None:
        recorder = told.setdefault(channel.topic, Recorder())
        channel.on_presence_join(recorder).on_presence_leave(recorder)

    heard = sparse(pool, listen)
    for topic in heard:
        other.channel(topic, presence_key="fixed").subscribe().track({"n": 0}).result()
        told[topic].wait(1)
    stop, rounds = threading.Event(), 0

    def come_and_go() -> None:
        nonlocal rounds
        guests = {topic: other.channel(topic, presence_key="guest").subscribe() for topic in heard}
        while not stop.wait(0.01):
            for guest in guests.values():
                guest.track({"n": rounds}).result()
                guest.untrack().result()
            rounds += 1

    thread = threading.Thread(target=come_and_go, daemon=True)
    thread.start()
    merge_until_one_is_left(server, pool)
    stop.set()
    thread.join(30)
    for topic, each in heard.items():
        events = told[topic].wait(1 + 2 * rounds)
        expected = [("join", "fixed")] + [("join", "guest"), ("leave", "guest")] * rounds
        assert [(e.type, e.key) for e in events] == expected
        assert [e.metas[0]["n"] for e in events if e.type == "join"] == [0, *range(rounds)]
        assert list(each.channel.presence_state()) == ["fixed"]
        assert not each.gaps.events
        assert not each.statuses.events


def test_stored_messages_are_neither_asked_for_nor_told_again(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_sparse_pool(make_pool)
    for number in range(30):
        server.database_send(f"topic-{number}", "stored", {"n": -1})
    heard = sparse(pool, private=True, replay={"since": 0})
    before = len(server.joins())
    publishers = Publishers(list(heard))
    publishers.add("stored", server.database_send, 0.005)
    with publishers:
        merge_until_one_is_left(server, pool)
    for topic, each in heard.items():
        each.messages.wait(1 + publishers.said[topic].total())
        each.until_end(server, private=True)
        assert each.of("stored") == list(range(-1, publishers.said[topic]["stored"]))
        assert [m.replayed for m in each.messages.events if m.event == "stored"].count(True) == 1
        assert not each.gaps.events
    guests = server.joins()[before:]
    assert len(guests) == 2 * STAY
    assert not any("replay" in guest.payload["config"]["broadcast"] for guest in guests)


# What is not moved


def stays(server: RealtimeServer, pool: rtpool.RealtimePool, connections: int) -> bool:
    """Whether an audit leaves everything where it is; the one after it too."""
    answers, engine = Recorder(), pool._engine
    for _ in range(2):
        engine.post(lambda: answers(engine.coordinator.mover.merge()))
    return answers.wait(2) == [False, False] and len(server.connections) == connections


def test_a_join_that_is_present_stays_and_so_does_its_socket(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_sparse_pool(make_pool)
    heard = sparse(pool)
    for each in heard.values():
        each.channel.track({"n": 1}).result(10)
    assert stays(server, pool, 3)
    for each in heard.values():
        each.channel.untrack().result(10)
    merge_until_one_is_left(server, pool)


def test_nothing_is_moved_while_a_socket_is_young_or_away(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_sparse_pool(make_pool)
    sparse(pool)
    monkeypatch.setattr(mover, "CALM_SECONDS", 3_600.0)
    assert stays(server, pool, 3)
    monkeypatch.setattr(mover, "CALM_SECONDS", 0.0)
    server.on_connect = lambda request: Refusal(503)
    server.connections[0].abort()
    wait_until(lambda: pool.stats().active_connections == len(server.connections) == 2)
    assert stays(server, pool, 2)
    server.on_connect = None
    merge_until_one_is_left(server, pool)


def test_nothing_is_moved_where_a_join_may_do_anything(make_pool: MakePool) -> None:
    with RealtimeServer(plain_phoenix=True) as phoenix:
        pool = make_sparse_pool(make_pool, url=phoenix.url, topic_prefix="", api_key=None)
        kept = [pool.channel(f"topic-{number}").subscribe() for number in range(20)]
        for channel in kept[3:10] + kept[13:]:
            channel.unsubscribe()
        wait_until(lambda: [d.joins for d in pool.stats().connection_details] == [3, 3])
        assert stays(phoenix, pool, 2)


def test_sockets_that_are_full_enough_stay(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_sparse_pool(make_pool, max_channels_per_connection=3)
    for number in range(6):
        pool.channel(f"topic-{number}").subscribe()
    assert stays(server, pool, 2)


def test_after_a_failure_it_is_tried_again_ever_more_slowly(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "RETRY_SECONDS", 3_600.0)
    pool = make_sparse_pool(make_pool)
    heard = sparse(pool)
    is_guest = guest_joins(server, list(heard))
    server.on_join = lambda topic, payload, connection: JoinRefusal("join crashed") if is_guest(topic) else None
    before = len(server.joins())
    merge(pool)
    server.wait_for(lambda s: len(s.joins()) == before + 1)
    wait_until(lambda: is_resting(pool))
    assert stays(server, pool, 3)
    assert len(server.joins()) == before + 1


def test_joins_that_somebody_waits_for_come_first(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_sparse_pool(make_pool)
    heard = sparse(pool)
    is_guest, early = guest_joins(server, list(heard)), Recorder()
    asked = Recorder()

    def on_join(topic: str, payload: Any, connection: Any) -> Any:
        asked(topic)
        if is_guest(topic) and not any("realtime:urgent-4" in c.topics for c in server.connections):
            early(topic)
        return JoinReply(delay=0.05) if topic.startswith("urgent") else None

    server.on_join = on_join
    urgent = [pool.channel(f"urgent-{number}").subscribe(wait=False) for number in range(5)]
    asked.wait(1)
    wait_until(lambda: merge(pool) or pool._engine.coordinator.mover.moved > 0)
    assert not early.events
    assert all(channel.is_subscribed for channel in urgent)
