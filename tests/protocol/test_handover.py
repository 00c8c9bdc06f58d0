"""Handing a topic over: whatever the timing, the Channel gets what one uninterrupted channel could have had."""

from __future__ import annotations

import random
from collections import Counter, deque
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtpool.protocol.handover import Handover, refs_of
from rtpool.protocol.messages import WireMessage

TOPIC = "realtime:room"


def message(content: Any, event: str = "broadcast") -> WireMessage:
    return WireMessage(None, None, TOPIC, event, content)


def meta(*refs: str) -> dict[str, Any]:
    return {"metas": [{"phx_ref": ref} for ref in refs]}


def diff(joins: dict[str, Any], leaves: dict[str, Any]) -> WireMessage:
    return message({"joins": joins, "leaves": leaves}, "presence_diff")


class World:
    """
    A server, two sockets, and a client that moves a topic from one to the other.

    Args:
        rng: every choice.
        publishers: what each says, in its order.
        cluster: whether the sockets are on different nodes, so that each has delays of its own for each publisher;
            otherwise a publisher puts a message into one socket, then into the other.
    """

    def __init__(self, rng: random.Random, publishers: list[list[str]], *, cluster: bool) -> None:
        self.rng, self.cluster = rng, cluster
        self.waiting = [deque((who, content) for content in said) for who, said in enumerate(publishers)]
        self.sending: list[deque[tuple[str, str]]] = [deque() for _ in publishers]  # (socket, content), on their way
        self.streams: dict[str, deque[str | None]] = {"live": deque(), "guest": deque()}  # None is a fence
        self.joined = {"live": True, "guest": False}
        self.handover = Handover()
        self.received: list[str] = []
        self.asked = self.answered = False
        self.fence: str | None = None
        self.fences = 0
        self.swallowed_by_end = 0

    def publish(self, who: int) -> None:
        if not self.waiting[who] or (self.sending[who] and not self.cluster):
            return
        _, content = self.waiting[who].popleft()
        sockets = [socket for socket in ("live", "guest") if self.joined[socket]]
        self.rng.shuffle(sockets)
        self.sending[who].extend((socket, content) for socket in sockets)

    def deliver(self, who: int) -> None:
        """A message arrives at a socket's process: the next, or in a cluster the next for either socket."""
        pending = self.sending[who]
        if not pending:
            return
        chosen = pending[0][0] if not self.cluster else self.rng.choice(pending)[0]
        first = next(item for item in pending if item[0] == chosen)
        pending.remove(first)
        self.streams[chosen].append(first[1])

    def settle(self) -> None:
        """So long a time that all that was said has arrived."""
        while any(self.sending):
            self.deliver(self.rng.randrange(len(self.sending)))

    def join(self) -> None:
        self.asked = self.joined["guest"] = True

    def begin_fence(self) -> None:
        if not self.asked or self.fence is not None or self.handover.is_cut:
            return
        self.settle()
        self.fence = "guest" if self.fences % 2 else "live"
        if self.fence == "live":
            self.handover.live_fence_begun()
        self.streams[self.fence].append(None)

    def read(self, socket: str) -> None:
        stream = self.streams[socket]
        if not stream:
            return
        content = stream.popleft()
        if content is None:
            self.fence, self.fences = None, self.fences + 1
            (self.handover.live_fenced if socket == "live" else self.handover.guest_fenced)()
        elif socket == "guest":
            news = self.handover.guest(message(content))
            if news is not None:
                self.received.append(news.payload)
        elif not self.handover.is_cut:
            self.received.append(content)
            if self.asked:
                self.handover.live(message(content))

    def cut(self) -> None:
        if self.handover.ready:
            self.received += [kept.payload for kept in self.handover.cut(())]

    def step(self) -> None:
        publisher = self.rng.randrange(len(self.waiting))
        choice = self.rng.randrange(12)
        if choice < 3:
            self.publish(publisher)
        elif choice < 6:
            self.deliver(publisher)
        elif choice < 8:
            self.read("live")
        elif choice < 10:
            self.read("guest")
        elif choice == 10:
            self.begin_fence()
        else:
            self.cut()

    def finish(self) -> None:
        """Nothing more is said than is waiting; the client goes on until the guest has taken over."""
        for _ in range(20):
            for who in range(len(self.waiting)):
                self.publish(who)
            self.settle()
            self.begin_fence()
            while self.streams["live"] or self.streams["guest"]:
                self.read(self.rng.choice(["live", "guest"]))
            self.cut()


def can_be_merged(received: list[str], publishers: list[list[str]]) -> bool:
    """Whether `received` holds every publisher's messages, each in its order, and nothing else."""

    @cache
    def fits(done: tuple[int, ...]) -> bool:
        count = sum(done)
        if count == len(received):
            return all(n == len(said) for n, said in zip(done, publishers, strict=True))
        return any(
            n < len(said) and said[n] == received[count] and fits((*done[:who], n + 1, *done[who + 1 :]))
            for who, (n, said) in enumerate(zip(done, publishers, strict=True))
        )

    return fits((0,) * len(publishers))


def run(seed: int, publishers: list[list[str]], *, cluster: bool, before: int, during: int) -> World:
    world = World(random.Random(seed), publishers, cluster=cluster)
    for _ in range(before):
        world.step()
    world.join()
    for _ in range(during):
        world.step()
    world.finish()
    assert not world.handover.trouble
    assert world.handover.is_cut
    assert not world.handover.owed
    return world


said = st.lists(st.lists(st.sampled_from("abc"), max_size=7), min_size=1, max_size=3)
steps = st.integers(0, 60)


@settings(max_examples=400)
@given(seed=st.integers(0, 2**32), publishers=said, before=steps, during=st.integers(0, 200))
def test_each_message_comes_once_and_each_publishers_in_order(
    seed: int, publishers: list[list[str]], before: int, during: int
) -> None:
    world = run(seed, publishers, cluster=False, before=before, during=during)
    assert can_be_merged(world.received, publishers)


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32), publishers=said, before=steps, during=st.integers(0, 200))
def test_over_two_nodes_each_message_comes_once(
    seed: int, publishers: list[list[str]], before: int, during: int
) -> None:
    """Of equal ones of two publishers that overtake each other at the cut, nobody can tell which was had."""
    world = run(seed, publishers, cluster=True, before=before, during=during)
    assert Counter(world.received) == Counter(content for said in publishers for content in said)


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32), counts=st.lists(st.integers(0, 8), min_size=1, max_size=4), before=steps, during=steps
)
def test_over_two_nodes_different_messages_keep_their_publishers_order(
    seed: int, counts: list[int], before: int, during: int
) -> None:
    publishers = [[f"{who}-{number}" for number in range(count)] for who, count in enumerate(counts)]
    world = run(seed, publishers, cluster=True, before=before, during=during)
    assert can_be_merged(world.received, publishers)


@pytest.mark.parametrize(
    ("received", "fits"),
    [("acb", True), ("cab", True), ("bac", False), ("ab", False), ("abcc", False)],
)
def test_the_model_knows_what_one_channel_could_have_had(received: str, fits: bool) -> None:
    assert can_be_merged(list(received), [["a", "b"], ["c"]]) is fits


# One by one


def live_fence(handover: Handover) -> None:
    handover.live_fence_begun()
    handover.live_fenced()


def fenced(handover: Handover, rounds: int = 2) -> Handover:
    live_fence(handover)
    for _ in range(rounds - 1):
        handover.guest_fenced()
        live_fence(handover)
    return handover


def test_what_the_guest_had_more_is_delivered_in_its_order() -> None:
    handover = fenced(Handover())
    for content in "abcabc":
        assert handover.guest(message(content)) is None
    for content in "ab":
        handover.live(message(content))
    assert [kept.payload for kept in handover.cut(())] == list("cabc")


def test_what_the_guest_had_less_is_dropped_when_it_comes() -> None:
    handover = fenced(Handover())
    for content in "aab":
        handover.live(message(content))
    assert handover.cut(()) == []
    assert handover.owed == 3
    assert [handover.guest(message(c)) is not None for c in "caaab"] == [True, False, False, True, False]
    assert handover.owed == 0


def test_what_came_by_the_live_channel_alone_swallows_nothing() -> None:
    """Sent before the guest was in: an equal message of later is another one."""
    handover = Handover()
    handover.live(message("a"))
    assert not fenced(handover, 1).ready
    handover.guest_fenced()
    live_fence(handover)
    assert handover.ready
    handover.cut(())
    assert handover.guest(message("a")) == message("a")


def test_nothing_is_certain_before_the_first_fence() -> None:
    handover = Handover()
    assert not handover.ready
    handover.guest_fenced()
    assert not handover.ready
    live_fence(handover)
    assert handover.ready


def test_the_same_message_again_and_again_leaves_it_uncertain_until_it_pauses() -> None:
    handover = Handover()
    handover.live(message("tick"))  # before the guest was in
    for _ in range(5):
        live_fence(handover)
        handover.live(message("tick"))
        handover.guest(message("tick"))
        handover.guest_fenced()
        handover.live(message("tick"))
        handover.guest(message("tick"))
        assert not handover.ready
        assert not handover.trouble
    live_fence(handover)
    handover.guest_fenced()
    live_fence(handover)
    assert handover.ready
    assert handover.cut(()) == []
    assert handover.guest(message("tick")) is not None


def test_what_we_say_while_a_fence_is_on_its_way_may_come_after_it() -> None:
    handover = fenced(Handover())
    handover.live_fence_begun()
    handover.live(message("mine"))
    handover.live_fenced()
    handover.guest_fenced()
    assert handover.ready
    assert handover.cut(()) == []
    assert handover.owed == 1


def test_a_message_that_only_one_channel_gets_is_trouble() -> None:
    only_live = fenced(Handover())
    only_live.live(message("a"))
    live_fence(only_live)
    only_live.guest_fenced()
    only_guest = fenced(Handover())
    only_guest.guest(message("a"))
    only_guest.guest_fenced()
    live_fence(only_guest)
    for handover in (only_live, only_guest):
        assert "same messages" in handover.trouble
        assert not handover.ready


@pytest.mark.parametrize("over", [False, True])
def test_what_is_kept_is_bounded_in_number_and_in_bytes(over: bool) -> None:
    few, small = Handover(max_messages=10), Handover(max_bytes=1_000)
    for number in range(10 + over):
        few.guest(message(number))
        small.guest(message("x" * (90 if over else 60)))
    assert bool(few.trouble) is over
    assert bool(small.trouble) is over


def test_what_both_had_is_not_kept() -> None:
    handover = fenced(Handover(max_messages=3, max_bytes=1_000))
    for number in range(5_000):
        first, second = (handover.live, handover.guest) if number % 2 else (handover.guest, handover.live)
        first(message(number))
        second(message(number))
    assert not handover.trouble
    assert handover.ready


@pytest.mark.parametrize("channel", ["live", "guest"])
def test_what_is_counted_is_bounded(channel: str) -> None:
    handover = Handover(max_messages=100_000, max_bytes=10**9)
    for number in range(20_001):
        getattr(handover, channel)(message(number))
    assert "20000" in handover.trouble


def test_equal_is_what_says_the_same() -> None:
    def same(one: Any, other: Any, event: str = "broadcast") -> bool:
        handover = fenced(Handover())
        handover.live(message(one, event))
        handover.guest(message(other, event))
        return handover.cut(()) == []

    assert same({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1})
    assert not same({"a": 1}, {"a": True})
    assert same({"event": "x", "payload": b"\x00\xff"}, {"event": "x", "payload": b"\x00\xff"})
    assert not same({"event": "x", "payload": b"a"}, {"event": "x", "payload": "b'a'"})
    assert not same({"event": "x", "payload": b"a"}, {"event": "x", "payload": b"b"})
    assert not same(b"a", "a")
    assert same({"ids": [2, 1, 1], "data": {}}, {"ids": [1, 2], "data": {}}, "postgres_changes")
    assert not same({"ids": [1], "data": {}}, {"ids": [2], "data": {}}, "postgres_changes")


@pytest.mark.parametrize("event", ["broadcast", "presence_diff"])
def test_what_cannot_be_compared_is_trouble(event: str) -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"deep": deep}
    payload = {"joins": {"ann": meta("1")}, "deep": deep} if event == "presence_diff" else deep
    handover = fenced(Handover())
    handover.guest(message(payload, event))
    assert "compared" in handover.trouble
    cut = fenced(Handover())
    cut.cut(())
    assert cut.guest(message(payload, event)) is not None


def test_two_events_of_one_payload_are_different() -> None:
    handover = fenced(Handover())
    handover.live(message({}, "one"))
    handover.guest(message({}, "other"))
    assert [kept.event for kept in handover.cut(())] == ["other"]


def test_nothing_the_live_channel_says_after_the_cut_counts() -> None:
    handover = fenced(Handover())
    handover.cut(())
    handover.live(message("a"))
    assert handover.guest(message("a")) == message("a")


# Presence


def test_presences_the_live_channel_told_are_not_told_again_however_they_are_bundled() -> None:
    handover = fenced(Handover())
    handover.live(diff({"ann": meta("1"), "bob": meta("2")}, {}))
    handover.live(diff({}, {"bob": meta("2")}))
    handover.guest(diff({"ann": meta("1")}, {}))
    handover.guest(diff({"bob": meta("2"), "cid": meta("3")}, {}))
    (news,) = handover.cut(())
    assert news.payload == {"joins": {"cid": meta("3")}, "leaves": {}}
    assert handover.guest(diff({}, {"bob": meta("2")})) is None
    assert handover.guest(diff({}, {"ann": meta("1")})) == diff({}, {"ann": meta("1")})


def test_a_presence_the_live_channel_knew_from_before_is_not_told_again() -> None:
    handover = fenced(Handover())
    handover.guest(diff({"ann": meta("1", "4")}, {}))
    (news,) = handover.cut({"1"})
    assert news.payload["joins"] == {"ann": meta("4")}


def test_a_presence_from_before_that_left_does_not_come_back() -> None:
    handover = fenced(Handover())
    handover.live(diff({}, {"ann": meta("1")}))
    handover.guest(diff({"ann": meta("1")}, {}))
    handover.guest(diff({}, {"ann": meta("1")}))
    assert handover.cut(()) == []


def test_the_guests_presence_state_is_nothing_new() -> None:
    handover = fenced(Handover())
    state = message({"ann": meta("1")}, "presence_state")
    assert handover.guest(state) is None
    assert handover.cut(()) == []


def test_after_the_cut_a_presence_state_is_that_of_another_join() -> None:
    handover = fenced(Handover())
    handover.cut(())
    state = message({"ann": meta("1")}, "presence_state")
    assert handover.guest(state) is state


def test_what_was_owed_is_forgotten_with_the_socket() -> None:
    handover = fenced(Handover())
    handover.live(message("a"))
    handover.cut(())
    handover.forget()
    assert handover.guest(message("a")) == message("a")


def test_presences_and_messages_of_the_guest_keep_their_order() -> None:
    handover = fenced(Handover())
    handover.guest(message("before"))
    handover.guest(diff({"ann": meta("1")}, {}))
    handover.guest(message("after"))
    assert [kept.event for kept in handover.cut(())] == ["broadcast", "presence_diff", "broadcast"]


@pytest.mark.parametrize("odd", [None, 7, [], "x", {"joins": 1, "leaves": []}, {"joins": {"a": 1, "b": {"metas": 2}}}])
def test_an_odd_presence_harms_nothing(odd: Any) -> None:
    handover = fenced(Handover())
    handover.live(message(odd, "presence_diff"))
    assert handover.guest(message(odd, "presence_diff")) is None
    assert handover.cut(()) == []


def test_references_are_read_from_any_map() -> None:
    assert refs_of({"ann": meta("1", "2"), "bob": {"metas": [{"phx_ref": 7}, 3, {}]}, "cid": None}) == {"1", "2"}


def test_presences_are_bounded() -> None:
    handover = Handover()
    handover.live(diff({"ann": meta(*map(str, range(20_001)))}, {}))
    assert "presences" in handover.trouble
