"""The queue of joins under an injected clock: paced, healthy first, and what fails one at a time, each in its turn."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from rtpool.engine.io_loop import Timer
from rtpool.engine.join_queue import JoinQueue
from rtpool.engine.joins import Join
from rtpool.engine.tokens import TokenSource
from rtpool.errors import ConnectionFailed, HandshakeRefused, JoinRefused, RtpoolError
from rtpool.events import ChannelState
from rtpool.protocol.presence import PresenceCalls
from rtpool.registry import Share, ShareKey

#: What a failing join takes on a real server.
FAILING = 5.0


class Socket:
    """A connection and its session in one: it holds joins and answers none of its own accord."""

    def __init__(self, in_flight: int = 5) -> None:
        self.is_open, self.epoch, self.max_in_flight = True, 1, in_flight
        self.states: dict[str, ChannelState] = {}
        self.joins: dict[str, Join] = {}
        self.looked = 0
        self.session = self._Session(self)

    class _Session:
        def __init__(self, socket: Socket) -> None:
            self._socket = socket

        def state(self, topic: str) -> ChannelState:
            return self._socket.states.get(topic, ChannelState.CLOSED)

        @property
        def joins_available(self) -> int:
            self._socket.looked += 1
            return self._socket.max_in_flight - len(self._socket.joining) if self._socket.is_open else 0

    @property
    def state(self) -> str:
        return "open" if self.is_open else "waiting"

    @property
    def joining(self) -> list[str]:
        return [topic for topic, state in self.states.items() if state is ChannelState.JOINING]

    def reconnect(self) -> None:
        self.is_open, self.epoch = True, self.epoch + 1
        self.states.clear()


class World:
    """A loop, a clock and a coordinator in one: nothing happens before `advance` or `answer`."""

    def __init__(self, per_second: float = 10_000) -> None:
        self.now = 1_000.0
        self.timers: list[tuple[float, Timer]] = []
        self.sent: list[str] = []
        self.queue = JoinQueue(self, per_second, self.send)  # type: ignore[arg-type]

    def say(self, join: Join, state: ChannelState) -> None:
        assert join.connection is not None
        join.connection.states[join.topic] = state  # type: ignore[attr-defined]

    def clock(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[[], None]) -> Timer:
        self.timers.append((at, Timer(call)))
        return self.timers[-1][1]

    @property
    def due(self) -> list[float]:
        return sorted(at for at, timer in self.timers if not timer.cancelled)

    def advance(self, seconds: float) -> None:
        """Let time pass, every timer at its turn."""
        end = self.now + seconds
        while self.due and self.due[0] <= end:
            self.now = max(self.now, self.due[0])
            ready = [timer for at, timer in self.timers if at <= self.now and not timer.cancelled]
            self.timers = [(at, timer) for at, timer in self.timers if at > self.now and not timer.cancelled]
            for timer in ready:
                timer.cancelled = True
                timer.call()
        self.now = end

    def send(self, join: Join) -> None:
        join.requested = False
        self.sent.append(join.topic)
        self.say(join, ChannelState.JOINING)

    def ask(self, topic: str | Join, socket: Socket | None = None) -> Join:
        join = topic if isinstance(topic, Join) else make_join(topic)
        if socket is not None:
            join.connection = socket  # type: ignore[assignment]
            socket.joins[join.topic] = join
        join.requested = True
        self.queue.add(join)
        return join

    def answer(self, join: Join, *, ok: bool) -> None:
        """The server answers; as the coordinator does, what failed is tried again."""
        self.say(join, ChannelState.JOINED if ok else ChannelState.ERRORED)
        if ok:
            self.queue.succeeded(join)
            join.attempts, join.suspect = 0, False
        else:
            self.queue.failed(join)
            join.attempts, join.suspect = join.attempts + 1, True
        self.queue.run()

    def taken(self) -> list[str]:
        sent, self.sent = self.sent, []
        return sent


def make_join(topic: str) -> Join:
    return Join(Share(ShareKey(topic)), TokenSource(None), PresenceCalls(5, 30.0))


def refusal() -> JoinRefused:
    return JoinRefused("no", topic="x", code="ClientJoinRateLimitReached", reason="Too many joins per second")


def failed(world: World, socket: Socket, *topics: str) -> list[Join]:
    """Joins that have failed once, all of them at once, and wait to ask again."""
    joins = [world.ask(topic, socket) for topic in topics]
    for join in joins:
        world.answer(join, ok=False)
    world.taken()
    return joins


def test_the_pace_is_the_pools_and_the_oldest_goes_first_whatever_its_socket() -> None:
    world, one, two = World(per_second=13), Socket(), Socket()  # three at once, and 0.3 s until the next three
    for number in range(8):
        world.ask(f"t{number}", (one, two)[number % 2])
    assert world.taken() == ["t0", "t1", "t2"]
    world.advance(0.29)
    assert world.taken() == []
    world.advance(0.011)
    assert world.taken() == ["t3", "t4", "t5"]
    world.advance(0.301)
    assert world.taken() == ["t6", "t7"]
    assert world.due == []


def test_a_socket_without_room_holds_up_no_other() -> None:
    world, full, free = World(), Socket(in_flight=1), Socket(in_flight=1)
    first = world.ask("a", full)
    world.ask("b", full)
    world.ask("c", free)
    assert world.taken() == ["a", "c"]
    world.answer(first, ok=True)
    assert world.taken() == ["b"]


def test_after_a_failure_a_socket_has_one_join_in_flight_until_one_succeeds() -> None:
    world, socket = World(), Socket(in_flight=3)
    joins = {topic: world.ask(topic, socket) for topic in "abcdefg"}
    assert world.taken() == ["a", "b", "c"]
    world.answer(joins["a"], ok=False)
    assert world.taken() == []
    world.answer(joins["b"], ok=False)
    assert world.taken() == []
    world.answer(joins["c"], ok=False)
    assert world.taken() == ["d"]
    world.answer(joins["d"], ok=False)
    assert world.taken() == ["e"]
    world.answer(joins["e"], ok=True)
    assert world.taken() == ["f", "g"]


def test_another_socket_is_in_no_doubt() -> None:
    world, bad, good = World(), Socket(), Socket()
    failed(world, bad, "x")
    for topic in "abc":
        world.ask(topic, good)
    assert world.taken() == ["a", "b", "c"]


def test_what_has_failed_goes_after_what_has_not_and_one_at_a_time() -> None:
    world, socket = World(), Socket(in_flight=5)
    x, y = failed(world, socket, "x", "y")
    world.answer(world.ask("ok", socket), ok=True)
    world.taken()
    socket.max_in_flight = 0
    world.ask(x)
    world.ask(y)
    a, b = world.ask("a", socket), world.ask("b", socket)
    socket.max_in_flight = 5
    world.queue.run()
    assert world.taken() == ["a", "b", "x"]
    world.answer(a, ok=True)
    world.answer(b, ok=True)
    assert world.taken() == [], "one that has failed is in flight already"
    world.answer(x, ok=True)
    assert world.taken() == ["y"]


def test_what_has_failed_lets_those_of_other_sockets_go_first() -> None:
    world, one, two = World(per_second=1), Socket(), Socket()
    (x,) = failed(world, one, "x")
    world.ask(x)
    world.ask("a", two)
    world.ask("b", two)
    world.advance(3.9)
    assert world.taken() == ["a", "b", "x"]


def test_failing_joins_take_in_the_end_a_fifth_of_a_sockets_time_and_each_has_its_turn() -> None:
    world, socket = World(), Socket()
    world.answer(world.ask("healthy", socket), ok=True)
    joins = {join.topic: join for join in failed(world, socket, "x", "y", "z")}
    for join in joins.values():
        world.ask(join)
    world.taken()
    order, rests = ["x"], []
    for _ in range(15):
        (topic,) = socket.joining
        world.advance(FAILING)
        world.answer(joins[topic], ok=False)
        world.ask(joins[topic])  # it would like to go at once
        assert socket.joining == []
        (rest,) = world.due
        rests.append((rest - world.now) / FAILING)
        world.advance(rest - world.now - 0.001)
        assert socket.joining == []
        world.advance(0.001)
        order += socket.joining
    assert order == ["x", "y", "z"] * 5 + ["x"]
    assert rests == pytest.approx([1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4])


def test_who_failed_least_often_goes_first() -> None:
    world, socket = World(), Socket()
    often, once = failed(world, socket, "often", "once")
    often.attempts = 7
    socket.max_in_flight = 0
    world.ask(often)
    world.ask(once)
    socket.max_in_flight = 5
    world.queue.run()
    assert world.taken() == ["once"]
    world.answer(once, ok=True)
    world.advance(100.0)
    assert world.taken() == ["often"]


def test_what_has_never_failed_does_not_wait_for_a_socket_to_rest() -> None:
    world, socket = World(), Socket()
    world.answer(world.ask("healthy", socket), ok=True)
    (x,) = failed(world, socket, "x")
    world.ask(x)
    world.taken()
    world.advance(FAILING)
    world.answer(x, ok=False)
    world.ask(x)
    world.ask("new", socket)
    assert world.taken() == ["new"]
    world.answer(socket.joins["new"], ok=True)
    assert world.taken() == []
    world.advance(4 * FAILING)
    assert world.taken() == ["x"]


def test_a_socket_with_nothing_to_hold_up_does_not_rest() -> None:
    world, socket = World(), Socket()
    x = world.ask("x", socket)
    world.advance(FAILING)
    world.answer(x, ok=False)
    world.taken()
    world.ask(x)
    assert world.taken() == ["x"]


def test_the_time_a_join_waited_for_others_is_not_its_own() -> None:
    world, socket = World(), Socket()
    world.answer(world.ask("healthy", socket), ok=True)
    slow, quick = world.ask("slow", socket), world.ask("quick", socket)
    world.taken()
    world.advance(10.0)
    world.answer(slow, ok=True)
    world.advance(1.0)
    world.answer(quick, ok=False)
    world.ask(quick)
    assert world.due == [world.now + 1.0]


def test_a_new_socket_is_in_no_doubt_and_rests_from_nothing() -> None:
    world, socket = World(), Socket()
    world.answer(world.ask("healthy", socket), ok=True)
    x = world.ask("x", socket)
    world.advance(FAILING)
    world.answer(x, ok=False)
    world.ask(x)
    world.taken()
    socket.reconnect()
    for topic in "abc":
        world.ask(topic, socket)
    world.queue.run()
    assert sorted(world.taken()) == ["a", "b", "c", "x"]


def test_a_join_that_is_lost_with_its_channel_holds_up_nobody() -> None:
    world, socket = World(), Socket(in_flight=2)
    world.answer(world.ask("healthy", socket), ok=True)
    failed(world, socket, "x")
    left = world.ask("left", socket)
    waits = world.ask("waits", socket)
    assert world.taken()[-1] == "left"
    socket.states[left.topic] = ChannelState.LEAVING
    world.queue.run()
    assert world.taken() == ["waits"]
    assert waits.topic in socket.joining


def test_answers_to_what_was_not_asked_here_change_nothing() -> None:
    world, socket = World(), Socket()
    world.answer(world.ask("healthy", socket), ok=True)
    stranger = make_join("stranger")
    world.queue.failed(stranger)
    world.queue.succeeded(stranger)
    stranger.connection = socket  # type: ignore[assignment]
    world.queue.failed(stranger)
    for topic in "abc":
        world.ask(topic, socket)
    assert world.taken()[1:] == ["a", "b", "c"]


def test_a_join_whose_sending_came_to_nothing_holds_up_nobody() -> None:
    world, socket = World(), Socket()
    (x,) = failed(world, socket, "x")

    def refuse(join: Join) -> None:
        join.requested = False

    world.queue._send = refuse
    world.ask(x)
    world.queue._send = world.send
    world.ask("next", socket)
    assert world.taken() == ["next"]


def test_a_turn_is_lost_when_the_connection_is_not_open_and_when_nobody_asks_any_more() -> None:
    world, socket = World(per_second=1), Socket()
    world.ask("first", socket)
    world.ask("early", socket)
    world.ask("given up", socket).requested = False
    world.ask("late", socket)
    world.advance(2.6)
    assert world.taken() == ["first", "early", "late"]
    waits = [world.ask("waits", socket)]
    socket.is_open = False
    world.advance(1.3)
    waits.append(world.ask("homeless"))
    waits.append(world.ask("too late", socket))
    assert world.taken() == []
    assert not any(join.requested for join in waits), "what opens the connection asks again"


def test_joins_may_be_asked_for_while_another_is_sent() -> None:
    world, open_, closed = World(), Socket(), Socket()
    closed.is_open = False
    asked: list[Join] = []

    def send(join: Join) -> None:
        world.send(join)
        if not asked:
            asked.extend((world.ask("b", open_), world.ask("c", closed)))

    world.queue._send = send
    world.ask("a", open_)
    assert world.taken() == ["a", "b"]
    assert not asked[1].requested


def test_a_waiting_join_that_moves_goes_where_it_lives() -> None:
    world, old, new = World(), Socket(in_flight=1), Socket()
    world.ask("a", old)
    join = world.ask("b", old)
    join.connection = new  # type: ignore[assignment]
    world.queue.run()
    assert new.joining == ["b"]


def test_a_thousand_that_wait_are_looked_at_by_their_sockets_alone() -> None:
    world, sockets = World(per_second=1), [Socket() for _ in range(10)]
    for number in range(1_000):
        world.ask(f"t{number}", sockets[number % 10])
    for socket in sockets:
        socket.looked = 0
    for _ in range(100):
        world.queue.run()
    assert sum(socket.looked for socket in sockets) <= 100 * 2 * len(sockets)
    assert len(world.due) == 1
    assert len(world.timers) == 1, "the same timer over and over"


def test_a_refusal_of_joins_slows_the_pool_down_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    world, socket = World(per_second=50), Socket(in_flight=1_000)
    with caplog.at_level(logging.WARNING, "rtpool.io"):
        world.queue.heed(refusal())
        world.queue.heed(refusal())
    assert world.queue.per_second == 25
    (line,) = caplog.messages
    assert "Too many joins per second" in line
    assert "25 a second from now on, instead of 50" in line
    for number in range(60):
        world.ask(f"t{number}", socket)
    assert len(world.taken()) == 6  # a quarter of them at once
    world.advance(0.32)
    assert len(world.taken()) == 6
    world.advance(60.0)
    assert world.queue.per_second == 50


@pytest.mark.parametrize(
    ("error", "pace"),
    [
        (HandshakeRefused("x", status=429, body='{"error":"Too many joins per second"}'), 25),
        (HandshakeRefused("x", status=429, body='{"error":"Too many connected users"}'), 50),
        (JoinRefused("Too many joins per second", topic="x", reason="Too many channels"), 50),
        (ConnectionFailed("Too many joins per second"), 50),
    ],
)
def test_only_the_servers_word_about_joins_slows_joins_down(error: RtpoolError, pace: float) -> None:
    world = World(per_second=50)
    world.queue.heed(error)
    assert world.queue.per_second == pace


def test_a_stopped_queue_sends_nothing() -> None:
    world, socket = World(), Socket()
    world.queue.stop()
    assert not world.ask("a", socket).requested
    assert world.taken() == []


def test_a_join_that_can_wait_goes_when_no_other_wants_to() -> None:
    world, one, other = World(per_second=8), Socket(), Socket()
    assert world.queue.spare(one)  # type: ignore[arg-type]
    join = world.ask("a", other)
    assert world.sent == ["a"]
    world.advance(10.0)
    assert not world.queue.spare(one), "one is in flight"  # type: ignore[arg-type]
    world.answer(join, ok=True)
    assert world.queue.spare(one)  # type: ignore[arg-type]
    assert world.queue.spare(one)  # type: ignore[arg-type]
    assert not world.queue.spare(one), "it counts"  # type: ignore[arg-type]
    world.ask("b", other)
    world.advance(0.1)
    assert not world.queue.spare(one), "one waits for the pace"  # type: ignore[arg-type]


def test_a_join_that_can_wait_needs_room_and_a_queue_that_goes_on() -> None:
    world, full, free = World(), Socket(in_flight=0), Socket()
    assert not world.queue.spare(full)  # type: ignore[arg-type]
    assert world.queue.spare(free)  # type: ignore[arg-type]
    world.queue.stop()
    assert not world.queue.spare(free)  # type: ignore[arg-type]


def test_what_was_lost_with_a_socket_or_left_holds_up_nobody_that_can_wait() -> None:
    world, one, other = World(), Socket(), Socket()
    world.ask("a", other)
    other.reconnect()
    assert world.queue.spare(one)  # type: ignore[arg-type]
    join = world.ask("b", other)
    world.say(join, ChannelState.LEAVING)
    assert world.queue.spare(one)  # type: ignore[arg-type]


def test_any_number_of_topics_that_fail_lets_the_newcomers_have_their_turn() -> None:
    world, socket = World(), Socket(in_flight=5)
    bad = [world.ask(f"bad{number}", socket) for number in range(8)]
    good = [world.ask(f"good{number}", socket) for number in range(40)]
    joined: list[str] = []
    for _ in range(200):
        if not socket.joining:
            world.advance(1.0)
        for topic in list(socket.joining):
            world.advance(FAILING)
            join = next(join for join in (*bad, *good) if join.topic == topic)
            world.answer(join, ok=join in good)
            if join in good:
                joined.append(topic)
            else:
                world.ask(join)
        if len(joined) == 40:
            break
    assert len(joined) == 40
    assert sum(join.attempts for join in bad) <= 40


def test_one_that_failed_is_not_put_off_for_ever_by_newcomers() -> None:
    world, socket = World(per_second=4), Socket()
    (x,) = failed(world, socket, "x")
    world.ask(x)
    world.taken()
    order: list[str] = []
    for number in range(100):
        for extra in range(3):
            world.ask(f"new{number}-{extra}", socket)
        world.advance(0.4)
        for join in list(socket.joins.values()):
            if join.topic in socket.joining:
                world.answer(join, ok=True)
        order += world.taken()
        if "x" in order:
            break
    assert "x" in order
    assert order.index("x") >= 4
