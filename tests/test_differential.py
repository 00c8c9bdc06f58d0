"""Promise 1, by comparison: a session played through shared joins, and through one socket per Channel, sounds alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import attrs
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import rtpool
from rtpool.testing import RealtimeServer
from tests.support.recorder import Recorder

#: On "talk" the Channels differ in what they ask for; on "lobby" they follow who is present.
TOPICS = ("talk", "lobby")
FILTERS = (None, "id=gt.2", "status=eq.new", "status=in.(old,new)")
MARK = "mark"
#: What can happen, the frequent more often.
STEPS = (*["subscribe", "send", "outside", "change"] * 2, "unsubscribe", "track", "untrack", "bytes")


class Wish(NamedTuple):
    """What one Channel is made with."""

    topic: str
    receive_own: bool
    broadcasts: tuple[str, ...]
    changes: tuple[tuple[str, str | None], ...]


class Step(NamedTuple):
    """One thing that happens; `who` is taken modulo the number of Channels."""

    what: str
    who: int
    value: int


wishes = st.builds(
    Wish,
    st.sampled_from(TOPICS),
    st.booleans(),
    st.lists(st.sampled_from(["*", "a", "b"]), min_size=1, max_size=2, unique=True).map(tuple),
    st.lists(st.tuples(st.sampled_from(["*", "INSERT", "UPDATE", "DELETE"]), st.sampled_from(FILTERS)), max_size=2).map(
        tuple
    ),
)
steps = st.builds(
    Step,
    st.sampled_from(STEPS),
    st.integers(0, 9),
    st.integers(0, 5),
)


@attrs.define
class Listener:
    """A Channel and what it heard, kind by kind, without what differs by nature (refs, keys the server made up)."""

    wish: Wish
    channel: rtpool.Channel
    seen: Recorder = attrs.field(factory=Recorder)
    rows: list[Any] = attrs.field(factory=list)
    presences: list[Any] = attrs.field(factory=list)
    subscribed: bool = False

    @classmethod
    def make(cls, pool: rtpool.RealtimePool, wish: Wish) -> Listener:
        on_talk = wish.topic == "talk"
        channel = pool.channel(wish.topic, receive_own=wish.receive_own and on_talk, ack=True)
        listener = cls(wish, channel)
        channel.on_broadcast(MARK, listener.seen)
        for event in wish.broadcasts:
            channel.on_broadcast(event, listener._broadcast)
        for event, filter_ in wish.changes if on_talk else ():
            channel.on_postgres_changes(event, listener._change, table="cars", filter=filter_)
        if not on_talk:
            channel.on_presence_join(listener._presence).on_presence_leave(listener._presence)
            channel.on_presence_sync(listener._presence)
        return listener

    def _broadcast(self, message: rtpool.Broadcast) -> None:
        if message.event != MARK:
            self.rows.append((message.event, message.payload))

    def _change(self, change: rtpool.PostgresChange) -> None:
        self.rows.append((change.type, dict(change.record), dict(change.old_record)))

    def _presence(self, presence: rtpool.Presence) -> None:
        state = sorted(str(_plain(metas)) for metas in presence.state.values()) if presence.state is not None else None
        self.presences.append((presence.type, _plain(presence.metas), _plain(presence.current), state))


def _plain(metas: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in meta.items() if not name.startswith("phx_ref")} for meta in metas]


class Play:
    """Plays steps on a server; each has had all its effects before the next begins."""

    def __init__(self, server: RealtimeServer, listeners: list[Listener]) -> None:
        self.server = server
        self.listeners = listeners
        self.marks = 0
        self.tracker: Listener | None = None

    def play(self, step: Step) -> None:
        listener = self.listeners[step.who % len(self.listeners)]
        getattr(self, f"_{step.what}")(listener, step.value)
        self.marks += 1
        for topic in TOPICS:
            self.server.broadcast(topic, MARK, {"n": self.marks})
        for other in self.listeners:
            if other.subscribed:
                other.seen.wait_for(lambda events: bool(events) and events[-1].payload["n"] == self.marks)

    def _subscribe(self, listener: Listener, value: int) -> None:
        listener.channel.subscribe()
        listener.subscribed = True

    def _unsubscribe(self, listener: Listener, value: int) -> None:
        listener.channel.unsubscribe()
        listener.subscribed = False
        if self.tracker is listener:
            self.tracker = None
            self.server.wait_for(lambda s: not s.presence("lobby"))

    def _send(self, listener: Listener, value: int) -> None:
        if listener.subscribed:
            listener.channel.send_broadcast("ab"[value % 2], {"n": value}).result()

    def _bytes(self, listener: Listener, value: int) -> None:
        if listener.subscribed:
            listener.channel.send_broadcast("a", bytes([value])).result()

    def _outside(self, listener: Listener, value: int) -> None:
        self.server.broadcast(listener.wish.topic, "ab"[value % 2], {"n": value})

    def _change(self, listener: Listener, value: int) -> None:
        row = {"id": value, "status": ("old", "new", "gone")[value % 3]}
        if value % 2:
            self.server.change("public", "cars", "INSERT", row)
        else:
            self.server.change("public", "cars", "DELETE", None, row)

    def _track(self, listener: Listener, value: int) -> None:
        # One at a time: on a shared join there is one presence, on sockets of their own there would be two.
        if listener.subscribed and listener.wish.topic == "lobby" and self.tracker in (None, listener):
            listener.channel.track({"n": value}).result()
            self.tracker = listener

    def _untrack(self, listener: Listener, value: int) -> None:
        if self.tracker is listener:
            listener.channel.untrack().result()
            self.tracker = None


@contextmanager
def pools(server: RealtimeServer, count: int, *, shared: bool) -> Iterator[list[rtpool.RealtimePool]]:
    """One pool for all, or one for each."""
    with ExitStack() as stack:
        made = [
            stack.enter_context(
                rtpool.RealtimePool(
                    server.url, api_key=server.api_key, max_joins_per_second=10_000, max_presence_calls=10_000
                )
            )
            for _ in range(1 if shared else count)
        ]
        yield made * count if shared else made


def play(wanted: list[Wish], script: list[Step], *, shared: bool) -> tuple[list[tuple[list[Any], list[Any]]], int]:
    with RealtimeServer() as server, pools(server, len(wanted), shared=shared) as made:
        listeners = [Listener.make(pool, wish) for pool, wish in zip(made, wanted, strict=True)]
        player = Play(server, listeners)
        for step in script:
            player.play(step)
        heard = [(list(listener.rows), list(listener.presences)) for listener in listeners]
        sockets = server.connections_total
    return heard, sockets


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(wishes, min_size=2, max_size=5), st.lists(steps, min_size=5, max_size=25))
def test_shared_joins_and_sockets_of_ones_own_give_every_channel_the_same(
    wanted: list[Wish], script: list[Step]
) -> None:
    everybody = [Step("subscribe", index, 0) for index in range(len(wanted))]
    script = [*everybody[: len(wanted) // 2 + 1], *script]
    together, sockets = play(wanted, script, shared=True)
    apart, _ = play(wanted, script, shared=False)
    assert sockets == 1
    for wish, one, other in zip(wanted, together, apart, strict=True):
        note(f"{wish}")
        assert one == other
