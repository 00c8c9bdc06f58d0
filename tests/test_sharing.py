"""Promise 1: sharing is invisible, few sockets carry many channels, and nothing piles up."""

from __future__ import annotations

import gc
import json
import logging
import random
import sys
import threading
import tracemalloc
from typing import Any

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool, _descriptors
from tests.support.recorder import Recorder
from tests.support.wait import wait_until

TOPIC = "car-status-changes"


def in_threads(count: int, call: Any) -> None:
    """Run `call(index)` in that many threads at once; the first exception fails the test."""
    barrier, failures = threading.Barrier(count), []

    def run(index: int) -> None:
        try:
            barrier.wait(10)
            call(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if failures:
        raise failures[0]


def test_nine_threads_with_get_pool_cost_one_socket_and_one_join(server: RealtimeServer) -> None:
    recorders = [Recorder() for _ in range(9)]

    def component(index: int) -> None:
        channel = rtpool.get_pool(server.url, api_key=server.api_key).channel(TOPIC)
        channel.on_broadcast("status", recorders[index]).subscribe()

    in_threads(9, component)
    for number in range(500):
        server.broadcast(TOPIC, "status", {"n": number})
    for recorder in recorders:
        recorder.wait(500)
        assert recorder.numbers == list(range(500))
    assert server.connections_total == 1
    assert len(server.joins(TOPIC)) == 1
    rtpool.get_pool(server.url, api_key=server.api_key).close()


def test_a_thousand_topics_take_exactly_ten_connections(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool()
    channels = [pool.channel(f"topic-{number}").subscribe(wait=False) for number in range(1_000)]
    for channel in channels:
        channel.subscribe(timeout=60)

    assert len(server.connections) == 10
    assert sorted(len(c.topics) for c in server.connections) == [100] * 10
    assert pool.stats().total_connections == 10
    pool.unsubscribe_all(timeout=30)
    assert pool.stats().total_joins == 0, "it waits for the word on every one, whichever socket is the last to answer"
    assert not any(c.topics for c in server.connections)


def test_ten_thousand_subscriptions_from_eight_threads_balance_and_leave_nothing(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    quiet = logging.getLogger("quiet")  # pytest keeps every line
    quiet.setLevel(logging.WARNING)
    pool = make_pool(max_joins_in_flight=50, logger=quiet, recorder_size=0)  # which holds what came last, anew
    pool.connect()
    pool.channel("warm").subscribe().unsubscribe()

    def cycles(index: int, count: int) -> None:
        chance = random.Random(index)
        for _ in range(count):
            channel = pool.channel(f"topic-{chance.randrange(6)}")
            channel.subscribe(timeout=30)
            channel.unsubscribe(timeout=30)

    in_threads(8, lambda index: cycles(index, 250))
    gc.collect()
    tracemalloc.start()
    threads, descriptors, memory = threading.active_count(), _descriptors(), tracemalloc.get_traced_memory()[0]
    in_threads(8, lambda index: cycles(index, 1_000))
    server.wait_for(lambda s: not any(c.topics for c in s.connections), 30)
    server._joins.clear()
    server._leaves.clear()
    server._received.clear()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - memory
    tracemalloc.stop()

    assert pool.stats().total_joins == 0
    assert pool.stats().total_subscriptions == 0
    assert pool._engine.registry.subscribers() == ()
    assert threading.active_count() <= threads
    assert _descriptors() <= descriptors
    assert grown < 400_000, f"{grown} bytes more after 8,000 further cycles"


def test_joins_and_leaves_balance_at_the_server(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    def cycles(index: int) -> None:
        for _ in range(100):
            with pool.channel("room"):
                continue

    in_threads(4, cycles)
    server.wait_for(lambda s: s.members("room") == 0)
    assert len(server.joins("room")) == len(server.leaves("room"))


def test_siblings_hear_each_other_but_not_themselves(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    heard, own = Recorder(), Recorder()
    pool.channel("room").on_broadcast("*", heard).subscribe()
    sender = pool.channel("room").on_broadcast("*", own).subscribe()
    sender.send_broadcast("moved", {"n": 1}).result()
    heard.wait(1)
    server.broadcast("room", "end", {"n": 2})
    own.wait(1)

    assert heard.wait(2)[0] == rtpool.Broadcast("room", "moved", {"n": 1})
    assert own.numbers == [2]
    assert len(server.joins("room")) == 1


@pytest.mark.parametrize("order", ["first", "second"])
def test_each_sibling_hears_its_own_broadcasts_only_if_it_asked(
    server: RealtimeServer, pool: rtpool.RealtimePool, order: str
) -> None:
    wants, wants_not = Recorder(), Recorder()
    echoing = pool.channel("room", receive_own=True).on_broadcast("*", wants)
    silent = pool.channel("room").on_broadcast("*", wants_not)
    for channel in (echoing, silent) if order == "first" else (silent, echoing):
        channel.subscribe()
    wait_until(lambda: echoing.is_subscribed and silent.is_subscribed)
    server.wait_for(lambda s: s.joins("room")[-1].payload["config"]["broadcast"]["self"] is True)
    wait_until(lambda: server.members("room") == 1 and pool.health().ok)

    for number in (1, 1, 2):  # equal messages are told apart by their number alone
        echoing.send_broadcast("e", {"n": number}).result()
        silent.send_broadcast("s", {"n": number}).result()
    silent.send_broadcast("b", b"bytes").result()
    wants.wait(7)
    server.broadcast("room", "end", {"n": 9})
    wants_not.wait_for(lambda events: events and events[-1].event == "end")

    assert [e.event for e in wants_not.events] == ["e", "e", "e", "end"]
    assert sorted(e.event for e in wants.wait(8)) == ["b", "e", "e", "e", "end", "s", "s", "s"]


def test_one_leaving_silences_nobody_and_the_last_one_leaves_the_server(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    stays = Recorder()
    first = pool.channel("room").on_broadcast("*", stays).subscribe()
    second = pool.channel("room").on_broadcast("*", print).subscribe()
    second.unsubscribe()
    server.broadcast("room", "x", {"n": 1})
    stays.wait(1)
    assert server.leaves("room") == []
    first.unsubscribe()
    assert len(server.leaves("room")) == 1
    assert first.state is rtpool.ChannelState.CLOSED


def test_an_idle_socket_is_closed_after_the_cleanup_interval_and_reopened_when_needed(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool = make_pool(cleanup_interval=0.05)
    pool.channel("room").subscribe().unsubscribe()
    server.wait_for(lambda s: not s.connections)
    wait_until(lambda: pool.stats().connection_status == "idle")
    pool.channel("room").subscribe()
    assert server.connections_total == 2


def test_an_idle_socket_that_is_used_again_in_time_stays(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(cleanup_interval=0.2)
    pool.channel("a").subscribe().unsubscribe()
    keep = pool.channel("b").subscribe()
    timer = threading.Event()
    pool._engine.loop.post(lambda: pool._engine.loop.call_later(0.3, timer.set) and None)
    assert timer.wait(10)
    assert keep.is_subscribed
    assert server.connections_total == 1


def test_force_cleanup_closes_idle_sockets_now(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    pool.channel("a").subscribe().unsubscribe()
    assert pool.force_cleanup() == 1
    server.wait_for(lambda s: not s.connections)


@pytest.mark.parametrize(
    "other",
    [{"private": True}, {"presence_key": "ann"}, {"access_token": "theirs"}],
    ids=["private", "presence key", "token"],
)
def test_what_may_not_be_shared_gets_a_socket_of_its_own(
    server: RealtimeServer, pool: rtpool.RealtimePool, other: dict[str, Any]
) -> None:
    if "access_token" in other:
        other = {"access_token": server.token(sub="them")}
    one = pool.channel("room").subscribe()
    two = pool.channel("room", **other).subscribe()
    assert one.is_subscribed
    assert two.is_subscribed
    assert len(server.joins("room")) == 2
    assert server.connections_total == 2


def test_a_topic_is_refused_when_every_connection_holds_it(make_pool: MakePool) -> None:
    pool = make_pool(max_connections=1)
    pool.channel("room").subscribe()
    with pytest.raises(rtpool.PoolExhausted, match="max_connections"):
        pool.channel("room", private=True).subscribe()
    assert pool.stats().total_subscriptions == 1


def test_who_finds_no_room_gets_the_first_that_is_free(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, statuses = make_pool(max_connections=1), Recorder()
    first = pool.channel("room").subscribe()
    waiting = pool.channel("room", private=True).on_status(statuses).subscribe(wait=False)
    error = statuses.wait_for(lambda seen: seen and seen[-1].status == "refused")[-1].error
    assert isinstance(error, rtpool.PoolExhausted)
    first.unsubscribe()
    statuses.wait_for(lambda seen: seen[-1].status == "joined")
    assert waiting.is_subscribed
    assert [s.status for s in statuses.events].count("refused") == 1


def test_a_full_socket_refused_by_the_server_moves_the_topic_to_another(make_pool: MakePool) -> None:
    with RealtimeServer(max_channels_per_client=3) as small:
        pool = make_pool(small.url, api_key=small.api_key)
        for number in range(7):
            pool.channel(f"topic-{number}").subscribe()
        assert sorted(len(c.topics) for c in small.connections) == [1, 3, 3]


def test_a_new_binding_joins_anew_and_an_equal_one_does_not(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    gaps, cars, trucks = Recorder(), Recorder(), Recorder()
    channel = pool.channel("db").on_gap(gaps).on_postgres_changes("*", cars, table="cars").subscribe()
    channel.on_postgres_changes("*", cars, table="cars")
    pool.channel("db").on_postgres_changes("*", cars, table="cars").subscribe()
    assert len(server.joins("db")) == 1

    channel.on_postgres_changes("INSERT", trucks, table="trucks")
    gap = gaps.wait(1)[0]
    assert gap.cause == "rejoin"
    assert gap.lost_from <= gap.lost_to
    assert len(server.joins("db")) == 2
    assert server.change("public", "trucks", "INSERT", {"id": 1}) == 1
    assert trucks.wait(1)[0].record == {"id": 1}
    assert server.change("public", "cars", "UPDATE", {"id": 2}) == 1
    assert len(cars.wait(3)) == 3, "two callbacks of one Channel and one of its sibling"


def test_each_channel_of_a_join_gets_the_changes_it_asked_for(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    rented, everything = Recorder(), Recorder()
    pool.channel("db").on_postgres_changes("UPDATE", rented, table="cars", filter="status=eq.rented").subscribe()
    pool.channel("db").on_postgres_changes("*", everything, table="*").subscribe()
    server.wait_for(lambda s: s.members("db") == 1)
    wait_until(lambda: pool.health().ok)
    server.change("public", "cars", "UPDATE", {"id": 1, "status": "free"})
    server.change("public", "cars", "UPDATE", {"id": 2, "status": "rented"})
    server.change("public", "boats", "DELETE", None, {"id": 3})
    assert [c.type for c in everything.wait(3)] == ["UPDATE", "UPDATE", "DELETE"]
    assert [c.record["id"] for c in rented.wait(1)] == [2]


def test_subscribe_returns_when_changes_flow_and_not_before(make_pool: MakePool) -> None:
    with RealtimeServer(postgres_delay=0.3) as slow:
        pool, changes = make_pool(slow.url, api_key=slow.api_key), Recorder()
        channel = pool.channel("db").on_postgres_changes("*", changes, table="cars").subscribe()
        assert channel.is_subscribed
        slow.change("public", "cars", "INSERT", {"id": 1})
        changes.wait(1)


def test_on_changes_shares_equal_requests(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    one, two, other = Recorder(), Recorder(), Recorder()
    pool.on_changes("cars", one)
    pool.on_changes("cars", two)
    pool.on_changes("cars", other, event="DELETE")
    server.change("public", "cars", "INSERT", {"id": 1})
    one.wait(1)
    two.wait(1)
    assert len(server.joins()) == 2
    assert other.events == []


def test_a_late_channel_gets_the_present_presence_state(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    early, joins, syncs = Recorder(), Recorder(), Recorder()
    first = pool.channel("lobby").on_presence_sync(early).subscribe()
    first.track({"name": "Ann"}).result()
    early.wait_for(lambda events: events and events[-1].state)
    late = pool.channel("lobby").on_presence_join(joins).on_presence_sync(syncs).subscribe()

    assert [m["name"] for m in joins.wait(1)[0].metas] == ["Ann"]
    assert list(syncs.wait(1)[0].state) == list(server.presence("lobby"))
    assert late.presence_state() == first.presence_state()
    assert len(server.joins("lobby")) == 1


def test_two_channels_of_a_join_cannot_be_present_differently(pool: rtpool.RealtimePool) -> None:
    one, two = pool.channel("lobby").subscribe(), pool.channel("lobby").subscribe()
    one.track({"name": "Ann"}).result()
    with pytest.raises(rtpool.ConfigConflict, match="presence_key"):
        two.track({"name": "Bob"})
    two.track({"name": "Ann"}).result()


def test_who_was_present_leaves_with_its_channel_though_siblings_stay(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    one = pool.channel("lobby").subscribe()
    pool.channel("lobby").subscribe()
    one.track({"name": "Ann"}).result()
    server.wait_for(lambda s: s.presence("lobby"))
    one.unsubscribe()
    server.wait_for(lambda s: not s.presence("lobby"))
    assert server.members("lobby") == 1


def test_get_pool_is_one_pool_and_other_options_conflict(server: RealtimeServer) -> None:
    pool = rtpool.get_pool(server.url, api_key=server.api_key, num_workers=2)
    assert rtpool.get_pool(server.url, api_key=server.api_key) is pool
    assert rtpool.get_pool(server.url + "/", api_key=server.api_key, num_workers=2) is pool
    assert rtpool.get_pool(server.url, api_key="another") is not pool
    with pytest.raises(rtpool.ConfigConflict, match="num_workers"):
        rtpool.get_pool(server.url, api_key=server.api_key, num_workers=3)
    with pytest.raises(rtpool.ConfigConflict, match="set_auth"):
        rtpool.get_pool(server.url, api_key=server.api_key, access_token="other")
    pool.close()
    fresh = rtpool.get_pool(server.url, api_key=server.api_key)
    assert fresh is not pool
    fresh.close()
    rtpool.get_pool(server.url, api_key="another").close()


def test_subscribing_again_while_leaving_ends_joined(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        channel = pool.channel("room")
        for _ in range(200):
            channel.subscribe()
            channel.unsubscribe(timeout=0)
        channel.subscribe()
    finally:
        sys.setswitchinterval(interval)
    assert channel.is_subscribed
    assert server.members("room") == 1


@pytest.mark.parametrize(
    ("mine", "theirs", "heard"),
    [
        ([{"x": 1}], [{"x": True}], [{"x": True}]),
        ([{"t": 1}, {"t": 2}], [{"t": 2}, {"t": 3}], [{"t": 3}]),
        ([{"a": 1, "b": 2}], [{"b": 2, "a": 3}], [{"b": 2, "a": 3}]),
    ],
)
def test_an_echo_is_known_by_its_content_whatever_strangers_say_meanwhile(
    server: RealtimeServer, pool: rtpool.RealtimePool, mine: list[Any], theirs: list[Any], heard: list[Any]
) -> None:
    """Equal content is indistinguishable: of two equal messages one is taken for the echo, and one is served."""
    got = Recorder()
    sender = pool.channel("room").on_broadcast("*", got).subscribe()
    pool.channel("room", receive_own=True).on_broadcast("*", lambda m: None).subscribe()
    server.connections[0].pause_reading()
    for payload in mine:
        sender.send_broadcast("x", payload).result()
    for payload in theirs:
        server.broadcast("room", "x", payload)
    server.connections[0].resume_reading()
    server.wait_for(lambda s: [m.event for m in s.received].count("broadcast") == len(mine))
    server.broadcast("room", "end", {})
    events = got.wait_for(lambda events: events and events[-1].event == "end")
    payloads = [m.payload for m in events if m.event == "x"]
    assert [p for p in payloads if json.dumps(p) in map(json.dumps, heard)] == heard
    assert len(payloads) == len(theirs)


def test_an_echo_that_a_rejoin_overtakes_is_still_ones_own(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    got = Recorder()
    sender = pool.channel("room").on_broadcast("*", got).subscribe()
    loud = pool.channel("room", receive_own=True).on_broadcast("*", lambda m: None).subscribe()
    server.connections[0].pause_reading()
    sender.send_broadcast("x", {"n": 1}).result()
    loud.on_postgres_changes("*", lambda c: None, table="cars")
    server.connections[0].resume_reading()
    server.wait_for(lambda s: len(s.joins("room")) == 3)
    server.broadcast("room", "end", {})
    assert [m.event for m in got.wait_for(lambda events: events and events[-1].event == "end")] == ["end"]
