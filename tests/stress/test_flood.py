"""
A flood from a process of its own, as fast as the socket takes it, for a callback that is stuck or slow: what each
overflow policy promises holds, and nothing else suffers.

Three Channels on two sockets: the flooded one, a neighbour on its socket, and one on the other socket. The callback has
one message in hand when the flood begins, so that what the mailbox does with the first of it is no matter of time.
"""

from __future__ import annotations

import itertools
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rtpool
from rtpool.engine.dispatcher import BATCH
from rtpool.engine.transport import READ_SIZE
from tests.benchmarks.processes import server
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until

#: Of the flood: bytes of a payload, and messages until the numbers begin anew.
SIZE, MESSAGES = 200, 50_000
#: More than a full mailbox, and than what the kernel keeps, come many times over.
LIMIT, MANY = 2_000, 20_000
#: Messages of one read; a frame has SIZE bytes of payload and more around them.
READ = READ_SIZE // SIZE
#: Of the paced messages on the other Channels: how many, seconds from one to the next.
PACED, EVERY = 100, 0.002
DROPPING = ["drop_oldest", "drop_newest"]
POLICIES = [*DROPPING, "block", "close"]
FLOODED, SAME, APART = "flood", "same", "apart"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of the process that floods."""
    with server("flood", {"size": SIZE, "messages": MESSAGES}) as told:
        yield told["port"]


class Gate:
    """What a callback waits at; it lets through as many calls as it was told to, or all."""

    def __init__(self) -> None:
        self._permits = 0.0
        self._changed = threading.Condition()

    def let(self, calls: float) -> None:
        with self._changed:
            self._permits += calls
            self._changed.notify_all()

    def open(self) -> None:
        self.let(float("inf"))

    def __call__(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._permits >= 1, 4 * CAP)
            self._permits -= 1


class Scene:
    """The three Channels, and what they heard."""

    def __init__(self, port: int, make_pool: MakePool, policy: str) -> None:
        self.pool = make_pool(
            f"http://127.0.0.1:{port}", overflow=policy, mailbox_limit=LIMIT, max_channels_per_connection=2,
            heartbeat_interval=0.1, heartbeat_timeout=0.5 if policy == "block" else 10.0,
        )  # fmt: skip
        self.policy = policy
        self.gate = Gate()
        #: What the flooded Channel was told of the flood, in order: numbers of messages, gaps, statuses.
        self.story: list[int | rtpool.Gap | rtpool.StatusChange] = []
        self.same, self.apart, self.told = Recorder(), Recorder(), Recorder()
        self.stands = threading.Event()  # at the gate, with a message of before the flood
        self.beats: Counter[tuple[int, str]] = Counter()
        self.pool.on_heartbeat(lambda beat: self.beats.update([(beat.connection_id, beat.status)]))
        self.flooded = self.pool.channel(FLOODED).on_broadcast("x", self._hear).on_gap(self.story.append).subscribe()
        self.flooded.on_status(lambda change: self.story.append(change) if change.status == "closed" else None)
        self.pool.channel(SAME).on_broadcast("x", self.same).subscribe()
        self.control = self.pool.channel(APART).on_broadcast("x", self.apart).on_broadcast("told", self.told)
        self.control.subscribe()
        assert [d.joins for d in self.pool.stats().connection_details] == [2, 1]
        self.pace(FLOODED, 1)
        assert self.stands.wait(CAP), "the first message has come"

    def _hear(self, message: rtpool.Broadcast) -> None:
        if self.stands.is_set():
            self.story.append(message.payload["n"])
        self.stands.set()
        self.gate()

    @property
    def numbers(self) -> list[int]:
        return [part for part in list(self.story) if isinstance(part, int)]

    @property
    def gaps(self) -> list[rtpool.Gap]:
        return [part for part in list(self.story) if isinstance(part, rtpool.Gap)]

    @property
    def details(self) -> rtpool.SubscriptionDetails:
        """The flooded Channel's own."""
        return next(d for d in self.pool.stats().subscription_details if d.topic == FLOODED)

    @property
    def flood_received(self) -> int:
        """Messages of the flood that have come."""
        return self.details.received - 1

    def ask(self, what: str, **payload: Any) -> None:
        self.control.send_broadcast(what, payload).result()

    def flood(self, messages: int | None = None) -> None:
        self.ask("flood", topic=f"realtime:{FLOODED}", messages=messages)

    def pace(self, topic: str, messages: int = PACED) -> None:
        self.ask("pace", topic=f"realtime:{topic}", every=EVERY, messages=messages)

    def tell(self) -> dict[str, Any]:
        """What the process that floods knows."""
        told = len(self.told.events)
        self.ask("tell")
        payload: dict[str, Any] = self.told.wait(told + 1)[told].payload
        return payload

    def until(self, predicate: Callable[[], object], what: str) -> None:
        """Wait, and see meanwhile that the mailbox never holds more than it may."""
        dispatcher, mailbox = self.pool._engine.dispatcher, self.flooded._subscriber.mailbox
        most = LIMIT + (READ if self.policy == "block" else 0)

        def bounded() -> object:
            with dispatcher._lock:
                waiting, in_hand = mailbox.ordinary, len(mailbox.hand)
            assert waiting <= most, f"{waiting} wait, for {LIMIT} at the most"
            assert in_hand <= BATCH
            return predicate()

        wait_until(bounded, what, cap=4 * CAP)

    def is_served(self, recorder: Recorder) -> bool:
        return len(recorder.events) >= PACED

    def beats_go_on(self) -> Callable[[], object]:
        """Whether each socket's heartbeats have been answered three times from now on, none in vain."""
        before = Counter(self.beats)

        def answered() -> object:
            assert not [beat for beat in self.beats if beat[1] == "timeout"]
            connections = [d.connection_id for d in self.pool.stats().connection_details]
            return all(self.beats[number, "ok"] >= before[number, "ok"] + 3 for number in connections)

        return answered

    def books_balance(self) -> bool:
        stats = self.pool.stats()
        assert stats.callback_errors == 0
        return stats.events_received == stats.messages_delivered + stats.messages_dropped

    def nothing_else_suffered(self) -> None:
        """The others heard all there was in order, on the sockets there were at first, and no gap but the flood's."""
        assert self.same.numbers == self.apart.numbers == list(range(PACED))
        stats = self.pool.stats()
        assert [d.epoch for d in stats.connection_details] == [1, 1]
        assert stats.gaps == len(self.gaps)
        assert stats.messages_unheard == 0 or self.policy not in DROPPING


@pytest.fixture
def make_scene(port: int, make_pool: MakePool) -> Iterator[Callable[[str], Scene]]:
    scenes: list[Scene] = []

    def make(policy: str) -> Scene:
        scenes.append(Scene(port, make_pool, policy))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.gate.open()


MakeScene = Callable[[str], Scene]


def check_gap(gap: rtpool.Gap) -> None:
    assert (gap.topic, gap.cause, gap.certain) == (FLOODED, "overflow", True)
    assert gap.lost_from <= gap.lost_to


@pytest.mark.parametrize("policy", DROPPING)
def test_a_stuck_callback_loses_what_its_policy_says_and_everything_else_is_served(
    policy: str, make_scene: MakeScene
) -> None:
    scene = make_scene(policy)
    scene.flood()
    scene.pace(SAME)
    scene.pace(APART)
    beats = scene.beats_go_on()
    scene.until(lambda: scene.flood_received >= MANY, "the flood comes")
    scene.until(lambda: scene.is_served(scene.same) and scene.is_served(scene.apart), "the others are served")
    scene.until(beats, "heartbeats are answered")
    scene.ask("stop")
    scene.until(lambda: scene.flood_received == scene.tell()["flooded"], "all of it has come")

    came, details = scene.flood_received, scene.details
    assert scene.story == [], "it is stuck with the one before"
    assert (details.queued, details.delivered, details.dropped) == (1 + LIMIT, 0, came - LIMIT)
    scene.gate.open()
    scene.until(scene.books_balance, "all that was kept is delivered")
    wait_until(lambda: scene.gaps)

    (gap,) = scene.gaps
    check_gap(gap)
    if policy == "drop_oldest":
        assert scene.story == [gap, *(number % MESSAGES for number in range(came - LIMIT, came))]
    else:
        assert scene.story == [*range(LIMIT), gap]
    scene.nothing_else_suffered()


def test_a_stuck_callback_that_blocks_stops_its_socket_and_no_other_and_nothing_is_lost(make_scene: MakeScene) -> None:
    scene = make_scene("block")
    beats = scene.beats_go_on()
    scene.until(beats, "heartbeats are answered before")
    scene.flood()
    connection = scene.pool._engine.coordinator.connections.all[0]
    scene.until(lambda: connection.paused_by, "it is read no further")
    received = scene.flood_received
    assert LIMIT <= received <= LIMIT + READ
    scene.pace(SAME)
    scene.pace(APART)
    scene.until(lambda: scene.is_served(scene.apart), "the other socket is served")
    flooded = [scene.tell()["flooded"]]

    def is_pushed_back() -> bool:
        flooded.append(scene.tell()["flooded"])
        return len(flooded) > 10 and len(set(flooded[-10:])) == 1

    scene.until(is_pushed_back, "the sender is made to wait")
    beaten = scene.tell()["heartbeats"]
    scene.until(
        lambda: all(len(t) >= len(beaten[of]) + 3 for of, t in scene.tell()["heartbeats"].items()),
        "heartbeats go out on both sockets, though no answer can be seen on one",
    )
    assert len(beaten) == 2
    assert (scene.flood_received, scene.same.events, scene.story) == (received, [], [])
    scene.gate.open()
    scene.until(lambda: scene.is_served(scene.same), "the neighbour is served when it is read on")
    scene.until(scene.beats_go_on(), "heartbeats are answered again")
    scene.ask("stop")
    scene.until(lambda: len(scene.numbers) == scene.tell()["flooded"] and scene.books_balance(), "all of it has come")
    assert scene.story == [number % MESSAGES for number in range(len(scene.numbers))]
    assert scene.pool.stats().messages_dropped == 0
    scene.nothing_else_suffered()


def test_a_stuck_callback_whose_policy_is_close_is_left_and_told_why(make_scene: MakeScene) -> None:
    scene = make_scene("close")
    scene.flood()
    scene.pace(SAME)
    scene.pace(APART)
    beats = scene.beats_go_on()
    scene.until(lambda: scene.flooded.state is rtpool.ChannelState.CLOSED, "it is closed")
    scene.until(lambda: scene.is_served(scene.same) and scene.is_served(scene.apart), "the others are served")
    scene.until(beats, "heartbeats are answered")
    flooded = [scene.tell()["flooded"]]
    scene.until(lambda: flooded.append(scene.tell()["flooded"]) or flooded[-1] == flooded[-2], "the server was told")
    assert scene.story == []
    scene.gate.open()
    wait_until(lambda: len(scene.story) == 2)
    gap, closed = scene.story
    assert isinstance(gap, rtpool.Gap)
    check_gap(gap)
    assert isinstance(closed, rtpool.StatusChange)
    assert isinstance(closed.error, rtpool.MailboxOverflow)
    assert closed.error.limit == LIMIT
    scene.until(scene.books_balance, "what was dropped is counted")
    scene.nothing_else_suffered()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_slow_callback_gets_what_it_gets_in_order_and_hears_of_the_rest(policy: str, make_scene: MakeScene) -> None:
    scene = make_scene(policy)
    # It goes as fast as the other socket is served: ten for one.
    scene.control.on_broadcast("x", lambda message: scene.gate.let(10))
    beats = scene.beats_go_on()
    scene.flood(MESSAGES)
    scene.pace(APART)
    if policy == "close":
        scene.until(lambda: scene.flooded.state is rtpool.ChannelState.CLOSED, "it is closed")
    scene.until(lambda: scene.is_served(scene.apart), "the other socket is served")
    if policy in DROPPING:
        scene.until(lambda: scene.flood_received == MESSAGES, "all of it has come")
    scene.gate.open()
    scene.until(beats, "heartbeats are answered")
    scene.pace(SAME)
    scene.until(lambda: scene.is_served(scene.same), "the neighbour is served")
    if policy == "block":
        scene.until(lambda: scene.flood_received == MESSAGES, "all of it has come")
    scene.until(scene.books_balance, "all that was kept is delivered")
    numbers = scene.numbers
    assert all(earlier < later for earlier, later in itertools.pairwise(numbers))
    holes = [later for earlier, later in itertools.pairwise([-1, *numbers]) if later != earlier + 1]
    told = [after for before, after in itertools.pairwise(scene.story) if isinstance(before, rtpool.Gap)]
    for gap in scene.gaps:
        check_gap(gap)
    if policy == "block":
        assert scene.story == list(range(MESSAGES))
    elif policy == "close":
        wait_until(lambda: len(scene.story) == len(numbers) + 2)
        assert numbers == list(range(len(numbers)))
        assert [type(part).__name__ for part in scene.story[len(numbers) :]] == ["Gap", "StatusChange"]
    elif policy == "drop_oldest":
        assert told == holes
        assert numbers[-1] == MESSAGES - 1
    else:
        wait_until(lambda: scene.gaps)
        assert numbers[:LIMIT] == list(range(LIMIT))
        # What is lost while a gap waits to be announced is part of it, wherever its hole is.
        assert told[:1] == holes[:1]
        assert set(told) <= set(holes)
    scene.nothing_else_suffered()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_flood_takes_no_more_memory_than_a_full_mailbox_and_one_read(policy: str, make_scene: MakeScene) -> None:
    scene = make_scene(policy)
    tracemalloc.start()
    try:
        scene.flood(MESSAGES if policy == "block" else None)
        if policy == "close":
            scene.until(lambda: scene.flooded.state is rtpool.ChannelState.CLOSED, "it is closed")
        elif policy == "block":
            scene.until(lambda: scene.pool._engine.coordinator.connections.all[0].paused_by, "it is read no further")
        else:
            scene.until(lambda: scene.flood_received >= MANY, "the flood comes")
        scene.pace(APART)
        scene.until(lambda: scene.is_served(scene.apart), "the other socket is served")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A message takes 4 KiB at the most, decoded and all; those of a read are first bytes, which are kept once more.
    assert peak <= (LIMIT + BATCH + READ) * 4_096 + 2 * READ_SIZE
