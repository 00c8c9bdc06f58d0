"""Paced pushes under an injected clock: in one order, never over the rate, and what ends costs nobody a turn."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from rtpool.engine.io_loop import Timer
from rtpool.engine.logs import Log
from rtpool.engine.outgoing import Outgoing
from rtpool.engine.push_queue import PushQueue
from rtpool.protocol.messages import JsonBody
from rtpool.registry import ShareKey, Subscriber


class Joined:
    """A join, as far as the queue looks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.joined = True
        self.buffer: list[Outgoing] = []
        self.subscriber = Subscriber(name, ShareKey(name))


class World:
    """A loop, a clock and the pushes in one."""

    def __init__(self, per_second: float | None = 2) -> None:
        self.now = 1_000.0
        self.timers: list[tuple[float, Timer]] = []
        self.sent: list[str] = []
        self.queue = PushQueue(self, per_second, self.send, Log(logging.getLogger("rtpool.io")))  # type: ignore[arg-type]

    def clock(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[[], None]) -> Timer:
        self.timers.append((at, Timer(call)))
        return self.timers[-1][1]

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := sorted(at for at, timer in self.timers if not timer.cancelled and at <= end):
            self.now = max(self.now, due[0])
            ready = [timer for at, timer in self.timers if at <= self.now and not timer.cancelled]
            self.timers = [(at, timer) for at, timer in self.timers if at > self.now]
            for timer in ready:
                timer.cancelled = True
                timer.call()
        self.now = end

    def send(self, join: Joined) -> None:
        self.sent.append(join.buffer.pop(0).event)

    def push(self, join: Joined, event: str) -> Outgoing:
        outgoing = Outgoing(join.subscriber, event, JsonBody(b"{}"), False, 10.0, self.now + 10)
        if not join.joined:
            join.buffer.append(outgoing)
        elif not join.buffer and self.queue.passes():
            self.sent.append(event)
        else:
            join.buffer.append(outgoing)
            self.queue.line_up(join, (outgoing,))  # type: ignore[arg-type]
        return outgoing

    def expire(self, join: Joined, outgoing: Outgoing) -> None:
        join.buffer.remove(outgoing)
        outgoing.outcome = None, None

    def flush(self, join: Joined) -> None:
        join.joined = True
        self.queue.line_up(join, tuple(join.buffer))  # type: ignore[arg-type]

    def taken(self) -> str:
        sent, self.sent = "".join(self.sent), []
        return sent


def test_without_the_option_everything_passes_and_nothing_is_kept() -> None:
    world, room = World(per_second=None), Joined("a")
    for event in "abcdef":
        world.push(room, event)
    assert world.taken() == "abcdef"
    assert world.queue.per_second is None
    assert world.queue.delayed == 0


def test_over_the_rate_they_wait_in_one_order_over_all_channels() -> None:
    world, one, two = World(per_second=8), Joined("one"), Joined("two")  # two at once, and two in every 0.325 s
    for index, event in enumerate("abcdefg"):
        world.push((one, two)[index % 2], event)
    assert world.taken() == "ab"
    world.advance(0.32)
    assert world.taken() == ""
    world.advance(0.006)
    assert world.taken() == "cd"
    world.push(one, "h")
    world.advance(0.65)
    assert world.taken() == "efgh"
    assert world.queue.delayed == 6
    world.advance(0.325)
    world.push(two, "i")
    assert world.taken() == "i"
    assert world.queue.delayed == 6


def test_who_comes_when_there_is_room_again_overtakes_nobody() -> None:
    world, one, two = World(per_second=1), Joined("one"), Joined("two")
    world.push(one, "a")
    world.push(one, "b")
    world.now += 1.3  # and the timer has not run yet
    world.push(two, "c")
    assert world.taken() == "ab"
    world.advance(1.3)
    assert world.taken() == "c"


def test_what_ended_meanwhile_takes_no_turn_from_others() -> None:
    world, one, two = World(per_second=1), Joined("one"), Joined("two")
    world.push(one, "a")
    expired = world.push(one, "b")
    assert expired in world.queue
    world.push(two, "c")
    world.push(one, "d")
    world.expire(one, expired)
    world.advance(1.3)
    assert world.taken() == "ac"
    world.advance(1.3)
    assert world.taken() == "d"


def test_pushes_of_a_lost_channel_line_up_anew_in_their_order_when_it_is_joined_again() -> None:
    world, one, two = World(per_second=1), Joined("one"), Joined("two")
    for join, event in ((one, "a"), (one, "b"), (two, "c"), (one, "d"), (two, "e")):
        world.push(join, event)
    one.joined = False
    world.push(one, "f")
    world.advance(1.3)
    assert world.taken() == "ac", "who is not joined holds up nobody"
    world.flush(one)
    for _ in range(4):
        world.advance(1.3)
    assert world.taken() == "ebdf"


def test_a_channel_that_comes_back_before_its_turn_keeps_its_order() -> None:
    world, one = World(per_second=1), Joined("one")
    for event in "abcd":
        world.push(one, event)
    one.joined = False
    world.flush(one)
    for _ in range(4):
        world.advance(1.3)
    assert world.taken() == "abcd"


def test_it_is_told_once_for_as_long_as_pushes_wait(caplog: pytest.LogCaptureFixture) -> None:
    world, room = World(per_second=1), Joined("room")
    with caplog.at_level(logging.WARNING, "rtpool.io"):
        for _ in range(20):
            world.push(room, "a")
            world.push(room, "b")
            world.advance(2.6)
        assert len(caplog.messages) == 1
        assert "more than 1 pushes a second" in caplog.messages[0]
        assert "max_events_per_second" in caplog.messages[0]
        world.advance(10.0)
        world.push(room, "a")
        world.push(room, "b")
        assert len(caplog.messages) == 2


def test_draining_ends_with_the_last_push_or_at_its_time() -> None:
    for seconds, sent, ended_at in ((10.0, "abc", 1_002.6), (2.0, "ab", 1_002.0)):
        world, room = World(per_second=1), Joined("room")
        ends: list[float] = []
        for event in "abc":
            world.push(room, event)
        world.queue.drain(world.now + seconds, lambda world=world, ends=ends: ends.append(world.now))  # type: ignore[misc]
        assert ends == []
        world.advance(seconds)
        assert world.taken() == sent
        assert ends == pytest.approx([ended_at])


def test_draining_what_is_empty_ends_at_once_and_a_stopped_queue_never_ends_it() -> None:
    world = World()
    ends: list[str] = []
    world.queue.drain(2_000.0, lambda: ends.append("empty"))
    assert ends == ["empty"]
    world, room = World(per_second=1), Joined("room")
    world.push(room, "a")
    world.push(room, "b")
    world.queue.drain(1_002.0, lambda: ends.append("stopped"))
    world.queue.stop()
    world.advance(10.0)
    assert ends == ["empty"]
    assert world.taken() == "a"


def test_the_servers_word_halves_the_pace_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    world = World(per_second=8)
    with caplog.at_level(logging.WARNING, "rtpool.io"):
        world.queue.heed("Too many presence messages per second")
        assert world.queue.per_second == 8
        world.queue.heed("Too many messages per second")
        world.queue.heed("Too many messages per second")
        assert world.queue.per_second == 4
        (line,) = caplog.messages
        assert "at most 4 pushes a second from now on, instead of 8" in line
    world.advance(60.0)
    assert world.queue.per_second == 8


def test_without_the_option_the_servers_word_tells_that_there_is_one(caplog: pytest.LogCaptureFixture) -> None:
    world = World(per_second=None)
    with caplog.at_level(logging.WARNING, "rtpool.io"):
        for _ in range(50):  # each channel of the project is ended
            world.queue.heed("Too many messages per second")
        assert len(caplog.messages) == 1
        assert "max_events_per_second" in caplog.messages[0]
        world.advance(60.0)
        world.queue.heed("Too many messages per second")
        assert len(caplog.messages) == 2
