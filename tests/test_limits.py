"""The server's limits, kept before it must: sizes to the byte, joins, channels, presence calls, events a second."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import rtpool
from rtpool.events import ChannelState
from rtpool.protocol.json_engine import dumps
from rtpool.testing import JoinRefusal, JoinReply, RealtimeServer, Refusal, ServerOptions
from rtpool.testing.refusals import Handshake, Join
from rtpool.testing.wire import size_of
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.wait import wait_until
from tests.test_sharing import in_threads

THREADS = 8
BELOW_AT_ABOVE = pytest.mark.parametrize("extra", [-1, 0, 1])


@pytest.fixture
def real() -> Iterator[RealtimeServer]:
    """A server with the limits of a real one, a join rate as low as the default of the option, a short window."""
    options = {**ServerOptions.real(), "max_joins_per_second": 50, "presence_window": 1.0}
    with RealtimeServer(**options) as server:
        yield server


def events_of(server: RealtimeServer, event: str) -> list[Any]:
    return [message for message in server.received if message.event == event]


def refusals(server: RealtimeServer) -> list[str | None]:
    return [join.reason for join in server.joins() if not join.accepted]


# Sizes


@BELOW_AT_ABOVE
@pytest.mark.parametrize("kind", ["broadcast", "track", "bytes"])
def test_a_payload_over_the_limit_is_refused_at_the_call_and_the_server_enforces_the_same(
    kind: str, extra: int, make_pool: MakePool
) -> None:
    with RealtimeServer(max_payload_kb=1) as small:
        ended = Recorder()
        careful, careless = (
            make_pool(small.url, api_key=small.api_key, max_payload_size=limit)
            .channel("room", ack=True)
            .on_system(ended)
            .subscribe()
            for limit in (small.max_payload, None)
        )
        around = {
            "broadcast": size_of({"type": "broadcast", "event": "e", "payload": {"d": ""}}),
            "track": size_of({"d": ""}),
            "bytes": 64 + len("e"),
        }[kind]
        text = "x" * (small.max_payload - around + extra)

        def send(channel: rtpool.Channel) -> rtpool.Push:
            if kind == "track":
                return channel.track({"d": text})
            return channel.send_broadcast("e", text.encode() if kind == "bytes" else {"d": text})

        sent = len(small.received)
        if extra <= 0:
            assert send(careful).result() == {}
            return
        with pytest.raises(rtpool.MessageTooBig) as caught:
            send(careful)
        assert (caught.value.size, caught.value.limit) == (small.max_payload + 1, small.max_payload)
        assert careful.state is ChannelState.JOINED
        assert len(small.received) == sent
        if kind == "bytes":
            return  # of these the client counts a few bytes too many
        with pytest.raises((rtpool.PushRefused, rtpool.JoinRefused), match=r"payload_size_exceeded|size exceeded"):
            send(careless).result()


@BELOW_AT_ABOVE
def test_a_frame_over_the_limit_is_refused_at_the_call_and_costs_no_socket(extra: int, make_pool: MakePool) -> None:
    with RealtimeServer(max_frame_size=20_000) as small:
        pool = make_pool(small.url, api_key=small.api_key, max_frame_size=20_000)
        channel = pool.channel("room", ack=True).subscribe()
        body = dumps({"type": "broadcast", "event": "e", "payload": {"d": ""}}).decode()
        around = len(f'["{"9" * 10}","{"9" * 10}","realtime:room","broadcast",{body}]')
        payload = {"d": "x" * (20_000 - around + extra)}
        if extra <= 0:
            assert channel.send_broadcast("e", payload).result() == {}
        else:
            with pytest.raises(rtpool.MessageTooBig) as caught:
                channel.send_broadcast("e", payload)
            assert (caught.value.size, caught.value.limit) == (20_001, 20_000)
        assert channel.send_broadcast("e", {}).result() == {}
        assert small.connections_total == 1


def test_a_frame_the_server_would_not_take_costs_the_socket_where_the_limit_is_off(make_pool: MakePool) -> None:
    with RealtimeServer(max_frame_size=20_000) as small:
        channel = make_pool(small.url, api_key=small.api_key, max_frame_size=None).channel("room", ack=True).subscribe()
        with pytest.raises(rtpool.ConnectionFailed):
            channel.send_broadcast("e", {"d": "x" * 20_000}).result()


def test_plain_phoenix_has_the_limit_of_a_frame_alone(make_pool: MakePool) -> None:
    with RealtimeServer(plain_phoenix=True, max_frame_size=20_000) as phoenix:
        pool = make_pool(f"{phoenix.url}/socket", topic_prefix="", max_payload_size=600, max_frame_size=20_000)
        channel = pool.channel("room").subscribe()
        channel.push("broadcast", {"d": "x" * 19_000})
        phoenix.wait_for(lambda s: events_of(s, "broadcast"))
        with pytest.raises(rtpool.MessageTooBig, match="max_frame_size"):
            channel.push("shout", {"d": "x" * 20_000})


# Joins, channels and presence


def test_three_hundred_channels_from_eight_threads_meet_no_limit_of_a_real_server(
    real: RealtimeServer, make_pool: MakePool
) -> None:
    pool = make_pool(real.url, api_key=real.api_key, max_joins_per_second=50)
    trouble = Recorder()
    pool.on_status(lambda change: trouble(change) if change.error else None)
    channels = [pool.channel(f"topic-{number}") for number in range(300)]

    def subscribe(index: int) -> None:
        for channel in channels[index::THREADS]:
            channel.on_status(lambda change: trouble(change) if change.error else None)
            channel.subscribe(wait=False)
        for channel in channels[index::THREADS]:
            channel.subscribe(timeout=30)

    in_threads(THREADS, subscribe)
    assert refusals(real) == []
    assert trouble.events == []
    assert sorted(len(c.topics) for c in real.connections) == [100, 100, 100]
    assert real.connections_total == 3
    assert pool.stats().joins_per_second == 50


def test_presence_from_eight_threads_at_once_never_makes_the_server_end_the_channel(
    real: RealtimeServer, make_pool: MakePool
) -> None:
    said = Recorder()
    channel = make_pool(real.url, api_key=real.api_key, presence_window=1.0).channel("lobby", presence_key="ann")
    channel.on_system(said).on_gap(said).subscribe()

    def appear(index: int) -> None:
        for number in range(10):
            push = channel.track({"n": number}) if number % 5 else channel.untrack()
            push.result(timeout=30)

    in_threads(THREADS, appear)
    channel.track({"n": "last"}).result(timeout=30)
    assert said.events == []
    assert len(real.joins("lobby")) == 1
    assert [meta["n"] for meta in real.presence("lobby")["ann"]["metas"]] == ["last"]


def test_topics_that_fail_leave_their_socket_the_more_time_the_more_often_they_do_each_in_its_turn(
    make_pool: MakePool,
) -> None:
    held_back, asked = 0.1, []

    def refuse(topic: str, payload: Any, connection: Any) -> JoinRefusal | None:
        if not topic.startswith("bad"):
            return None
        asked.append((topic, time.monotonic()))
        return JoinRefusal("UnknownErrorOnChannel: boom", delay=held_back)

    with RealtimeServer() as server:
        server.on_join = refuse
        pool = make_pool(server.url, api_key=server.api_key, base_delay=0.01, max_delay=0.01)
        good = [pool.channel(f"good-{number}", ack=True).subscribe() for number in range(10)]
        for number in range(3):
            pool.channel(f"bad-{number}").subscribe(wait=False)
        wait_until(lambda: len(asked) >= 12)
        assert [channel.send_broadcast("x", {}).result() for channel in good] == [{}] * 10
        assert all(channel.state is ChannelState.JOINED for channel in good)
        assert server.connections_total == 1
    turns = [topic for topic, _ in asked[3:12]]  # after the first of each, which go together
    assert set(turns[:3]) == {"bad-0", "bad-1", "bad-2"}
    assert turns == turns[:3] * 3
    gaps = [later - earlier for (_, earlier), (_, later) in itertools.pairwise(asked[3:12])]
    for tries, gap in zip([1, 1, 2, 2, 2, 3, 3, 3], gaps, strict=True):
        assert gap >= (1 + tries) * held_back * 0.95, gaps


# What the server refuses all the same


def test_a_refused_join_slows_all_joins_down_and_says_so(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    first = threading.Event()

    def refuse(topic: str, payload: Any, connection: Any) -> JoinRefusal | None:
        if first.is_set():
            return None
        first.set()
        refusal = Join.TOO_MANY_JOINS()
        assert isinstance(refusal, JoinRefusal)
        return refusal

    server.on_join = refuse
    pool = make_pool(max_joins_per_second=40)
    assert pool.stats().joins_per_second == 40
    pool.channel("room").subscribe(wait=False)
    wait_until(lambda: pool.stats().joins_per_second == 20)
    wait_until(lambda: any("20 a second from now on, instead of 40" in line for line in caplog.messages))


@pytest.mark.parametrize(
    ("refusal", "pace"), [(Handshake.TOO_MANY_JOINS(), 20), (Handshake.TOO_MANY_USERS(), 40)], ids=["joins", "users"]
)
def test_a_refused_upgrade_slows_joins_down_when_it_was_for_joins(
    refusal: Refusal, pace: float, server: RealtimeServer, make_pool: MakePool
) -> None:
    server.on_connect = lambda info: refusal
    pool, told = make_pool(max_joins_per_second=40), Recorder()
    pool.on_status(lambda change: told(change) if change.error else None)
    pool.channel("room").on_status(lambda change: told(change) if change.error else None).subscribe(wait=False)
    told.wait(2)
    assert pool.stats().joins_per_second == pace


# Events


def test_broadcasts_over_the_rate_wait_and_every_channel_and_thread_keeps_its_order(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool = make_pool(max_events_per_second=40)
    channels = [pool.channel(f"room-{number}").subscribe() for number in range(3)]

    def send(index: int) -> None:
        pushes = [channels[n % 3].send_broadcast("x", {"thread": index, "n": n}) for n in range(15)]
        for push in pushes:
            push.result()

    in_threads(THREADS, send)
    server.wait_for(lambda s: len(events_of(s, "broadcast")) == 15 * THREADS)
    sent = [message.payload["payload"] for message in events_of(server, "broadcast")]
    for index in range(THREADS):
        assert [p["n"] for p in sent if p["thread"] == index] == list(range(15))
    assert 15 * THREADS - 40 <= pool.stats().pushes_delayed <= 15 * THREADS - 10
    assert pool.stats().pushes_sent == 15 * THREADS


def test_a_real_server_with_the_very_rate_ends_no_channel(make_pool: MakePool) -> None:
    limit = 30
    with RealtimeServer(**{**ServerOptions.real(), "max_events_per_second": limit}) as real:
        said = Recorder()
        # One receiver: each broadcast counts twice.
        channel = make_pool(real.url, api_key=real.api_key, max_events_per_second=limit / 2).channel("room")
        make_pool(real.url, api_key=real.api_key).channel("room").on_broadcast("x", said).on_system(said).subscribe()
        channel.on_system(said).subscribe()
        for number in range(6 * limit // 2):
            channel.send_broadcast("x", {"n": number}, timeout=60)
        said.wait(6 * limit // 2, cap=30)
        assert said.numbers == list(range(6 * limit // 2))


def test_a_push_whose_turn_does_not_come_in_time_was_not_sent_and_says_so(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    channel = make_pool(max_events_per_second=0.01).channel("room").subscribe()
    channel.send_broadcast("x", {"n": 0}).result()
    late = channel.send_broadcast("x", {"n": 1}, timeout=0.1)
    with pytest.raises(rtpool.PushTimeout, match="max_events_per_second") as caught:
        late.result()
    assert caught.value.sent is False
    server.wait_for(lambda s: len(events_of(s, "broadcast")) == 1)


def test_what_keeps_a_pool_alive_is_never_paced(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(max_events_per_second=0.01, send_buffer_limit=1, heartbeat_interval=0.05)
    channel = pool.channel("room").subscribe()
    channel.send_broadcast("x", {}).result()
    waits = channel.send_broadcast("x", {}, timeout=60)
    assert channel.track({"n": 1}).result() == {}
    other = pool.channel("other").subscribe()
    beats = len(events_of(server, "heartbeat"))
    server.wait_for(lambda s: len(events_of(s, "heartbeat")) > beats + 2)
    pool.set_auth(server.token())
    server.wait_for(lambda s: events_of(s, "access_token"))
    other.unsubscribe()
    assert len(server.leaves("other")) == 1
    assert not waits.done()
    channel.unsubscribe()
    with pytest.raises(rtpool.ConnectionFailed, match="unsubscribed before"):
        waits.result()


def test_a_caller_beyond_the_buffer_waits_for_room_and_only_its_own_time(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    channel = make_pool(max_events_per_second=2, send_buffer_limit=3).channel("room").subscribe()
    pushes = [channel.send_broadcast("x", {"n": number}, timeout=30) for number in range(5)]
    with pytest.raises(rtpool.SendBufferFull, match=r"3 pushes wait for their turn") as caught:
        channel.send_broadcast("x", {"n": "never"}, timeout=0.1)
    assert caught.value.limit == 3
    pushes += [channel.send_broadcast("x", {"n": number}, timeout=30) for number in range(5, 8)]
    for push in pushes:
        push.result()
    server.wait_for(lambda s: len(events_of(s, "broadcast")) == 8)
    assert [message.payload["payload"]["n"] for message in events_of(server, "broadcast")] == list(range(8))


def test_what_waited_for_a_join_waits_for_its_turn_too(server: RealtimeServer, make_pool: MakePool) -> None:
    server.on_join = lambda topic, payload, connection: JoinReply({"postgres_changes": []}, delay=0.2)
    pool = make_pool(max_events_per_second=3)
    channel = pool.channel("room").subscribe(wait=False)
    pushes = [channel.send_broadcast("x", {"n": number}, timeout=30) for number in range(8)]
    for push in pushes:
        push.result()
    server.wait_for(lambda s: len(events_of(s, "broadcast")) == 8)
    assert [message.payload["payload"]["n"] for message in events_of(server, "broadcast")] == list(range(8))
    assert pool.stats().pushes_delayed == 7  # of three a second, one goes at once


def test_what_waits_for_its_turn_outlives_the_connection(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(max_events_per_second=3)
    channel = pool.channel("room").subscribe()
    pushes = [channel.send_broadcast("x", {"n": number}, timeout=30) for number in range(9)]
    server.wait_for(lambda s: len(events_of(s, "broadcast")) == 3)
    server.connections[0].abort()
    for push in pushes:
        push.result()
    server.wait_for(lambda s: len(events_of(s, "broadcast")) == 9)
    assert [message.payload["payload"]["n"] for message in events_of(server, "broadcast")] == list(range(9))


def test_close_sends_what_waits_as_far_as_its_time_allows(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(max_events_per_second=4)
    channel = pool.channel("room").subscribe()
    pushes = [channel.send_broadcast("x", {"n": number}, timeout=60) for number in range(10)]
    assert pool.close(20)
    server.wait_for(lambda s: len(events_of(s, "broadcast")) == 10)
    assert all(push.result() is None for push in pushes)

    slow = make_pool(max_events_per_second=0.01)
    channel = slow.channel("room").subscribe()
    first, *rest = (channel.send_broadcast("y", {}, timeout=60) for _ in range(3))
    assert slow.close(1.0)
    assert first.result() is None
    for push in rest:
        with pytest.raises(rtpool.PoolClosed):
            push.result()


def test_the_servers_word_about_messages_slows_broadcasts_down_or_names_the_option(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pools = [make_pool(max_events_per_second=rate) for rate in (20, None)]
    for number, pool in enumerate(pools):
        pool.channel(f"room-{number}").subscribe()
        server.shut_down(f"room-{number}", "Too many messages per second")
    wait_until(lambda: pools[0].stats().events_per_second == 10)
    assert pools[1].stats().events_per_second is None
    wait_until(lambda: any("which is off" in line for line in caplog.messages))
    told = Counter(line for line in caplog.messages if "max_events_per_second" in line)
    assert len(told) == 2
    assert set(told.values()) == {1}


def test_a_push_whose_time_is_over_before_its_turn_comes_is_not_sent(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    channel = pool.channel("room").subscribe()
    begun, release = threading.Event(), threading.Event()
    pool._engine.loop.post(lambda: (begun.set(), release.wait(10)))
    assert begun.wait(10)
    late = channel.send_broadcast("x", {"n": "late"}, timeout=0.01)
    wait_until(lambda: time.monotonic() > late._outgoing.deadline)
    release.set()
    with pytest.raises(rtpool.PushTimeout) as caught:
        late.result()
    assert not caught.value.sent
    channel.send_broadcast("x", {"n": "next"}).result()
    server.wait_for(lambda s: any(m.event == "broadcast" for m in s.received))
    assert [m.payload["payload"]["n"] for m in server.received if m.event == "broadcast"] == ["next"]
