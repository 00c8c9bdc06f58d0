"""Sparse sockets become fewer, and no Channel notices: every message once and in order, no Gap, no status, no leave."""

from __future__ import annotations

import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import rtpool
from rtpool.engine import mover
from rtpool.engine.mover import Mover
from rtpool.testing import NO_REPLY, JoinRefusal, JoinReply, RealtimeServer, Refusal
from rtpool.testing.connection import ServerConnection
from rtpool.testing.refusals import System
from rtpool.testing.wire import ServerMessage
from tests.conftest import MakePool
from tests.support.proxy import Proxy
from tests.support.recorder import Recorder
from tests.support.wait import wait_until

#: Topics on each of three sockets that stay, of ten.
STAY = 3


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """On loopback everything has arrived within a moment."""
    monkeypatch.setattr(mover, "CALM_SECONDS", 0.0)
    monkeypatch.setattr(mover, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(mover, "CHANGES_SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(mover, "MARGIN_SECONDS", 0.02)
    monkeypatch.setattr(mover, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(mover, "RETRY_SECONDS", 0.0)


class Heard:
    """What one Channel was told."""

    def __init__(self, channel: rtpool.Channel) -> None:
        self.messages, self.gaps, self.statuses, self.system = Recorder(), Recorder(), Recorder(), Recorder()
        self.channel = channel.on_broadcast("*", self.messages).on_gap(self.gaps)

    def listen_for_trouble(self) -> None:
        """From now on nothing is to be told but messages."""
        self.channel.on_status(self.statuses)

    def of(self, who: str) -> list[int]:
        return [m.payload["n"] for m in list(self.messages.events) if m.event == who]

    def until_end(self, server: RealtimeServer, *, private: bool = False) -> None:
        server.broadcast(self.channel.topic, "end", {"n": -1}, private=private)
        self.messages.wait_for(lambda events: any(m.event == "end" for m in events))


def sparse(
    pool: rtpool.RealtimePool, prepare: Callable[[rtpool.Channel], object] = lambda channel: None, **settings: Any
) -> dict[str, Heard]:
    """Nine Channels on three sockets that once had ten each."""
    names = [f"topic-{number}" for number in range(30)]
    heard = {name: Heard(pool.channel(name, **settings)) for name in names}
    for each in heard.values():
        prepare(each.channel)
        each.channel.subscribe()
    for number, name in enumerate(names):
        if number % 10 >= STAY:
            heard.pop(name).channel.unsubscribe()
    wait_until(lambda: sorted(d.joins for d in pool.stats().connection_details) == [STAY] * 3)
    for each in heard.values():
        each.listen_for_trouble()
    return heard


def make_sparse_pool(make_pool: MakePool, **options: Any) -> rtpool.RealtimePool:
    return make_pool(
        **{
            "max_channels_per_connection": 10,
            "cleanup_interval": 0.05,
            "heartbeat_interval": 1.0,
            "enable_health_check": False,
            **options,
        }
    )


def merge(pool: rtpool.RealtimePool) -> None:
    """What the audit does."""
    engine = pool._engine
    engine.post(engine.coordinator.mover.merge)


def merge_until_one_is_left(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    def one_is_left() -> bool:
        merge(pool)
        return pool.stats().total_connections == 1

    wait_until(one_is_left, "one socket is left", cap=60)


def is_resting(pool: rtpool.RealtimePool) -> bool:
    it: Mover = pool._engine.coordinator.mover
    return it._move is None and it._source is None


class Publishers:
    """Threads that talk on every topic until they are told to stop; what each said, by topic."""

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.said: dict[str, Counter[str]] = {topic: Counter() for topic in topics}
        self.failures: list[BaseException] = []

    def add(self, who: str, say: Callable[[str, str, dict[str, Any]], object], every: float) -> None:
        """`say(topic, event, payload)` again and again; ticks say the same each time."""

        def run() -> None:
            try:
                number = 0
                while not self._stop.wait(every):
                    for topic in self._topics:
                        say(topic, who, {"n": 0 if who.startswith("tick") else number})
                        self.said[topic][who] += 1
                    number += 1
            except BaseException as error:
                self.failures.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))

    def __enter__(self) -> Publishers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not self.failures


def one_channel_each(server: RealtimeServer, topics: list[str], others: int = 0) -> None:
    server.wait_for(lambda s: all(s.members(topic) == 1 + others for topic in topics), 15)


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


class Laggard(Proxy):
    """
    Holds up what goes down to the client, or up to the server, by times that differ.

    Args:
        slow: ``new`` is the first connection, to which joins are moved; ``old`` is every other.
        up: whether it is what the client says.
    """

    def __init__(self, target: int, slow: str, *, up: bool = False) -> None:
        super().__init__(target)
        self._slow, self._upwards = slow, up

    def _relay(self, source: socket.socket, sink: socket.socket, size: int) -> None:
        index = self._sockets.index(source)
        slow = (index % 2 == 0) is self._upwards and ("new" if index < 2 else "old") == self._slow
        lags = random.Random(index)
        try:
            while data := source.recv(65_536):
                if slow:
                    self._released.wait(lags.uniform(0.01, 0.03))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


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


# Trouble, at each step


def at_step(monkeypatch: pytest.MonkeyPatch, step: str, do: Callable[[Any], None]) -> threading.Event:
    """Have `do(move)` called on the I/O thread the first time a move has taken a step."""
    done, original = threading.Event(), getattr(Mover, step)

    def wrapper(self: Mover, *args: Any) -> Any:
        move = self._move
        result = original(self, *args)
        move = move or self._move
        if move is not None and not done.is_set():
            done.set()
            do(move)
        return result

    monkeypatch.setattr(Mover, step, wrapper)
    return done


def server_side(server: RealtimeServer, connection: Any) -> ServerConnection:
    """The same socket as the server sees it."""
    port = connection.transport.sock.getsockname()[1]
    return next(c for c in server.connections if c.peer[1] == port)


STEPS = ["_begin", "_invite", "_watch", "_fenced", "_cut_when_answered", "_cut", "_left_source"]


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


def guest_joins(server: RealtimeServer, topics: list[str]) -> Callable[[str], bool]:
    """Says whether a join is that of a guest: the topic is joined on another socket."""
    return lambda topic: topic in topics and any(f"realtime:{topic}" in c.topics for c in server.connections)


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
    moving, stuck = Recorder(), Recorder()

    def hold_up(move: Any) -> None:
        stuck(server_side(server, move.source))
        stuck.events[0].pause_reading()
        moving(move.topic.removeprefix("realtime:"))

    at_step(monkeypatch, "_cut", hold_up)
    merge(pool)
    (topic,) = moving.wait(1)
    second, told = Heard(pool.channel(topic, presence_key="second")), Recorder()
    second.channel.on_status(told).subscribe(wait=False)
    assert isinstance(told.wait(1)[0].error, rtpool.PoolExhausted)
    stuck.events[0].resume_reading()
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
    moving, stuck = Recorder(), Recorder()

    def hold_up(move: Any) -> None:
        stuck(server_side(server, move.source))
        stuck.events[0].pause_reading()
        moving(move.topic.removeprefix("realtime:"))

    at_step(monkeypatch, "_cut", hold_up)
    merge(pool)
    (topic,) = moving.wait(1)
    push = heard[topic].channel.send_broadcast("held", {"n": 0})
    if then == "unsubscribe":
        heard[topic].channel.unsubscribe()
    elif then == "close":
        pool.close(10)
    push.result(10)
    strangers[topic].messages.wait(1)
    stuck.events[0].resume_reading()
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
    wait_until(lambda: pool.stats().active_connections == 2)
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
