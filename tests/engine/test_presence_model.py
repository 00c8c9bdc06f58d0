"""Presence over joins, rejoins and late Channels: in any order of its parts, everybody ends where the server is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rtpool.engine.joins import Join
from rtpool.engine.logs import Log
from rtpool.engine.routing import Router
from rtpool.engine.tokens import TokenSource
from rtpool.protocol.messages import WireMessage
from rtpool.protocol.presence import PresenceCalls
from rtpool.registry import Binding, JoinConfig, Registry, ShareKey, Subscriber

TOPIC = "realtime:lobby"


class Desk:
    """In the dispatcher's place: hands everything over at once."""

    def deliver(self, batch: list[tuple[Callable[[Any], None], list[Any]]]) -> list[Any]:
        for mailbox, deliveries in batch:
            for delivery in deliveries:
                mailbox(delivery.event)
        return []


class Viewer:
    """A Channel that builds who is present from joins and leaves alone, and checks each sync against that."""

    def __init__(self, registry: Registry) -> None:
        self.view: dict[str, dict[str, Any]] = {}
        self.subscriber = Subscriber("lobby", ShareKey(TOPIC))
        self.subscriber.mailbox = self.heard
        registry.bind(self.subscriber, Binding("presence", "*", print))
        registry.attach(self.subscriber)

    def heard(self, event: Any) -> None:
        refs = {meta["phx_ref"]: meta for meta in event.metas}
        if event.type == "join":
            before = {meta["phx_ref"]: meta for meta in event.current}
            assert before == self.view.get(event.key, {})
            self.view[event.key] = {**before, **refs}
        elif event.type == "leave":
            remaining = {ref: meta for ref, meta in self.view[event.key].items() if ref not in refs}
            assert remaining == {meta["phx_ref"]: meta for meta in event.current}
            self.view[event.key] = remaining
            if not remaining:
                del self.view[event.key]
        else:
            state = {key: {meta["phx_ref"]: meta for meta in metas} for key, metas in event.state.items()}
            assert state == self.view


class World:
    """A server with its own idea of presence, a line that keeps diffs in order, and the client's Router at its end."""

    def __init__(self) -> None:
        self.truth: dict[str, dict[str, Any]] = {}
        self.refs = 0
        self.line: list[tuple[str, Any]] = []
        self.registry = Registry()
        self.viewers = [Viewer(self.registry)]
        share = self.registry.share(ShareKey(TOPIC))
        assert share is not None
        desk: Any = Desk()
        log = Log(logging.getLogger("rtpool.session"))
        self.router = Router(desk, lambda: datetime.now(timezone.utc), supabase=True, log=log)
        self.join = Join(share, TokenSource(None), PresenceCalls(5, 30.0), config=JoinConfig(presence=True))
        self.connected = True
        self.rejoin(0)

    def state(self) -> dict[str, Any]:
        return {key: {"metas": list(metas.values())} for key, metas in self.truth.items()}

    def track(self, key: str, owner: int) -> None:
        """A device of `key` appears, or says something else of itself."""
        self.refs += 1
        name = f"{key}-{owner}"
        old = self.truth.get(key, {}).get(name)
        new = {"phx_ref": f"r{self.refs}", "n": self.refs}
        self.truth.setdefault(key, {})[name] = new
        leaves = {key: {"metas": [old]}} if old else {}
        self.say("presence_diff", {"joins": {key: {"metas": [new]}}, "leaves": leaves})

    def untrack(self, key: str, owner: int) -> None:
        old = self.truth.get(key, {}).pop(f"{key}-{owner}", None)
        if old is not None:
            if not self.truth[key]:
                del self.truth[key]
            self.say("presence_diff", {"joins": {}, "leaves": {key: {"metas": [old]}}})

    def say(self, event: str, payload: Any) -> None:
        if self.connected:
            self.line.append((event, payload))

    def lose(self) -> None:
        """The line breaks: what is on it, and what is said until the rejoin, is lost."""
        self.connected = False
        self.line.clear()

    def rejoin(self, late_by: int) -> None:
        """A new join. Its state is taken now, and overtakes up to `late_by` of the diffs just before."""
        self.connected = True
        self.join.presence.rejoined()
        self.join.answered = True
        self.line.insert(max(0, len(self.line) - late_by), ("presence_state", self.state()))

    def arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.line))):
            event, payload = self.line.pop(0)
            self.router.route(self.join, WireMessage(None, None, TOPIC, event, payload))
        self.router.flush()

    def come(self) -> None:
        """Another Channel on the same join."""
        viewer = Viewer(self.registry)
        self.viewers.append(viewer)
        self.join.members = self.join.share.subscribers
        self.router.welcome(self.join, viewer.subscriber, told=False)
        self.router.flush()

    def play(self, step: tuple[Any, ...]) -> None:
        what, *values = step
        self.join.members = self.join.share.subscribers
        if what == "rejoin" and self.connected:
            self.lose()
        getattr(self, what)(*values)


keys, owners = st.sampled_from(["ann", "bob", "cid"]), st.integers(0, 1)
steps = st.one_of(
    st.tuples(st.just("track"), keys, owners),
    st.tuples(st.just("untrack"), keys, owners),
    st.tuples(st.just("arrive"), st.integers(1, 4)),
    st.tuples(st.just("lose")),
    st.tuples(st.just("rejoin"), st.integers(0, 3)),
    st.tuples(st.just("come")),
)


@settings(max_examples=400)
@given(st.lists(steps, max_size=60))
def test_any_interleaving_of_state_and_diffs_ends_equal_to_the_server(script: list[tuple[Any, ...]]) -> None:
    world = World()
    for step in script:
        world.play(step)
    world.play(("rejoin", 0) if not world.connected else ("arrive", 1_000))
    world.play(("arrive", 1_000))
    truth = {key: {meta["phx_ref"]: meta for meta in metas.values()} for key, metas in world.truth.items()}
    synced = {key: {meta["phx_ref"]: meta for meta in metas} for key, metas in world.join.presence.snapshot().items()}
    assert synced == truth
    for viewer in world.viewers:
        assert viewer.view == truth
    assert dict(world.join.share.presence) == world.join.presence.snapshot()


changes = st.lists(st.tuples(st.sampled_from(["track", "untrack"]), keys, owners), max_size=20)


@settings(max_examples=200)
@given(changes, st.data())
def test_a_state_may_come_anywhere_among_the_diffs_around_it(changes: list[Any], data: st.DataObject) -> None:
    """Channel and fan-out are different processes on the server: diffs the state holds already may come after it."""
    world = World()
    world.arrive(1)
    world.lose()
    taken_at = data.draw(st.integers(0, len(changes)))
    world.connected = True
    world.join.presence.rejoined()
    world.join.answered = True
    state: Any = None
    for index, change in enumerate([*changes, None]):
        if index == taken_at:
            state = world.state()
        if change is not None:
            world.play(change)
    world.line.insert(data.draw(st.integers(0, len(world.line))), ("presence_state", state))
    world.arrive(1_000)
    truth = {key: {meta["phx_ref"]: meta for meta in metas.values()} for key, metas in world.truth.items()}
    assert world.viewers[0].view == truth
