"""
Who wants what, and where it lives: the registry, and placement as the engine asks for it, in any order of things.

Channels come, go and change their minds; sockets fill up, go away, come back and die. The model of the registry is a
list of who is attached to what. That of placement is a search through all there is.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtpool.errors import ConfigConflict, JoinTimeout
from rtpool.events import ChannelState
from rtpool.protocol.placement import FULL_ENOUGH, OPEN, Slot, merge_plan, place
from rtpool.protocol.postgres import ChangeBinding
from rtpool.registry import Attachment, Binding, JoinConfig, Registry, Share, ShareKey, Subscriber, merge_configs

MAX_CHANNELS = 24
#: What keys are made of; the model knows each by its place here.
KEYS: list[dict[str, Any]] = [{"topic": topic} for topic in "abcdefgh"]
KEYS += [{"topic": topic, "token": "another"} for topic in "ab"]
KEYS += [{"topic": "a", "private": True}, {"topic": "a", "presence_key": "me"}, {"topic": "b", "params": b'{"x":1}'}]
CHANGES = [
    ChangeBinding("*", "public"),
    ChangeBinding("INSERT", "public", "cars"),
    ChangeBinding("*", "public", "cars"),
]
PAYLOADS = [b'{"a":1,"b":2}', b'{"b":2,"a":1}', b'{"a":true,"b":2}', b"{}"]
#: Which of the above say the same.
MEANINGS = {payload: index for index, payload in enumerate([*PAYLOADS[:1], *PAYLOADS[2:]])} | {PAYLOADS[1]: 0}


def topic_of(key: int) -> str:
    return str(KEYS[key]["topic"])


class Callbacks:
    """Its methods are made anew at each look."""

    def first(self, event: Any) -> None: ...

    def second(self, event: Any) -> None: ...


OWNER = Callbacks()
keys = st.integers(0, len(KEYS) - 1)


def callback(number: int) -> Any:
    return [print, repr, OWNER.first, OWNER.second][number]


@attrs.define(eq=False)
class Wanted:
    """A Channel as the model knows it."""

    subscriber: Subscriber
    key: int
    receive_own: bool
    ack: bool
    attachment: Attachment | None = None
    leaving: bool = False
    bound: list[tuple[int, str, ChangeBinding | None]] = attrs.field(factory=list)


@attrs.define(eq=False)
class Host:
    """A connection."""

    capacity: int
    keys: set[int] = attrs.field(factory=set)
    is_open: bool = True

    @property
    def topics(self) -> set[str]:
        return {topic_of(key) for key in self.keys}

    def has_room_for(self, topic: str) -> bool:
        return len(self.keys) < self.capacity and topic not in self.topics


class RegistryModel(RuleBasedStateMachine):
    """`shares` is who is attached to each key, oldest first; `homeless` are the keys for which there is no room."""

    @initialize(
        capacity=st.sampled_from([1, 2, 4, 6, 10, 10]),
        max_connections=st.sampled_from([1, 2, 3, 3]),
        first=st.lists(keys, min_size=1, max_size=5),
    )
    def begin(self, capacity: int, max_connections: int, first: list[int]) -> None:
        self.capacity, self.max_connections = capacity, max_connections
        self.registry = Registry()
        self.channels: list[Wanted] = []
        self.shares: dict[int, list[Wanted]] = {}
        self.share_of: dict[int, Share] = {}
        self.present: dict[int, tuple[bytes, list[Wanted]]] = {}
        self.hosts: dict[int, Host] = {}
        self.opened = 0
        self.homeless: list[int] = []
        self.last_number = -1
        self.come(first, False, False)

    def pick(self, data: st.DataObject) -> Wanted:
        attached = [index for index, channel in enumerate(self.channels) if channel.attachment is not None]
        return self.channels[data.draw(st.sampled_from(attached + attached + list(range(len(self.channels)))))]

    # Channels

    @precondition(lambda self: len(self.channels) < MAX_CHANNELS)
    @rule(keys=st.lists(keys, min_size=1, max_size=3), receive_own=st.booleans(), ack=st.booleans())
    def come(self, keys: list[int], receive_own: bool, ack: bool) -> None:
        for key in keys:
            self.make(key, receive_own, ack)
            self.attach(self.channels[-1])

    @precondition(lambda self: self.shares and len(self.channels) < MAX_CHANNELS)
    @rule(data=st.data(), receive_own=st.booleans(), ack=st.booleans(), wanted=st.booleans())
    def share_with_another(self, data: st.DataObject, receive_own: bool, ack: bool, wanted: bool) -> None:
        self.make(data.draw(st.sampled_from(sorted(self.shares))), receive_own, ack)
        if wanted:
            self.attach(self.channels[-1])

    def make(self, key: int, receive_own: bool, ack: bool) -> None:
        subscriber = Subscriber(topic_of(key), ShareKey(**KEYS[key]), receive_own=receive_own, ack=ack)
        assert subscriber.state is ChannelState.CLOSED
        self.channels.append(Wanted(subscriber, key, receive_own, ack))

    @precondition(lambda self: self.channels)
    @rule(data=st.data())
    def subscribe(self, data: st.DataObject) -> None:
        self.attach(self.pick(data))

    def attach(self, channel: Wanted) -> None:
        attachment = self.registry.attach(channel.subscriber)
        if channel.attachment is not None:
            assert attachment is None, "once is enough"
            return
        assert attachment is not None
        assert attachment.number > self.last_number
        self.last_number = attachment.number
        channel.attachment, channel.leaving = attachment, False
        if channel.key in self.shares:
            assert attachment.share is self.share_of[channel.key], "equal share keys share one join"
        else:
            assert attachment.share not in self.share_of.values()
            self.share_of[channel.key] = attachment.share
            self.shares[channel.key] = []
            self.find_home(channel.key)
        self.shares[channel.key].append(channel)

    @precondition(lambda self: self.shares)
    @rule(gone=st.sets(keys, min_size=1, max_size=4))
    def all_go(self, gone: set[int]) -> None:
        for key in sorted(gone & self.shares.keys()):
            for channel in list(self.shares[key]):
                self.detach(channel, "any")
        self.channels = [channel for channel in self.channels if channel.attachment is not None]

    @precondition(lambda self: self.shares)
    @rule(data=st.data(), only=st.sampled_from(["any", "this", "an earlier one"]))
    def unsubscribe(self, data: st.DataObject, only: str) -> None:
        self.detach(self.pick(data), only)

    def detach(self, channel: Wanted, only: str) -> None:
        earlier = Attachment(Share(channel.subscriber.key))
        meant = {"any": None, "this": channel.attachment, "an earlier one": earlier}[only]
        gone = self.registry.detach(channel.subscriber, only=meant)
        if channel.attachment is None or only == "an earlier one":
            assert gone is None
            return
        assert gone is channel.attachment
        key = channel.key
        channel.attachment, channel.leaving = None, True
        self.shares[key].remove(channel)
        self.stop_tracking(channel)
        if not self.shares[key]:
            del self.shares[key], self.share_of[key]
            if key in self.homeless:
                self.homeless.remove(key)
            for host in self.hosts.values():
                host.keys.discard(key)
            self.find_homes()

    @precondition(lambda self: self.channels)
    @rule(data=st.data())
    def be_forgotten_by_the_server(self, data: st.DataObject) -> None:
        channel = self.pick(data)
        channel.leaving = False
        self.registry.left(channel.subscriber)

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), refused=st.booleans(), done=st.booleans())
    def ask_again(self, data: st.DataObject, refused: bool, done: bool) -> None:
        channel = self.pick(data)
        if channel.attachment is not None and not channel.attachment.ready.done():
            if refused:
                channel.attachment.ready.set_exception(JoinTimeout("late", topic="a", timeout=1.0))
            elif done:
                channel.attachment.ready.set_result(None)
        waited = channel.attachment.ready if channel.attachment else None
        failed = waited is not None and waited.error is not None
        assert self.registry.ask_again(channel.subscriber) is channel.attachment
        if channel.attachment is not None:
            assert (channel.attachment.ready is not waited) == failed, "who was refused waits anew, and nobody else"
            assert not (failed and channel.attachment.ready.done())

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), kind=st.sampled_from(["broadcast", "presence", "postgres_changes"]), siblings=st.booleans())
    def listen(self, data: st.DataObject, kind: str, siblings: bool) -> None:
        channel = self.pick(data)
        change = data.draw(st.sampled_from(CHANGES)) if kind == "postgres_changes" else None
        number = data.draw(st.integers(0, 3))
        for one in self.shares.get(channel.key, [channel]) if siblings else [channel]:
            self.bind(one, number, kind, change)

    def bind(self, channel: Wanted, number: int, kind: str, change: ChangeBinding | None) -> None:
        first = kind == "presence" and all(other != "presence" for _, other, _ in channel.bound)
        if channel.attachment is not None:
            channel.attachment.sees_presence = True
        attached = self.registry.bind(channel.subscriber, Binding(kind, "*", callback(number), change))
        assert attached == (channel.attachment is not None)
        if channel.attachment is not None:
            assert channel.attachment.sees_presence != first, "its first presence callback is to be told who is there"
        channel.bound.append((number, kind, change))

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), number=st.integers(0, 3))
    def unbind(self, data: st.DataObject, number: int) -> None:
        channel = self.pick(data)
        kept = [bound for bound in channel.bound if bound[0] != number]
        assert self.registry.unbind(channel.subscriber, callback(number)) == (len(kept) < len(channel.bound))
        channel.bound = kept

    @precondition(lambda self: self.shares)
    @rule(data=st.data(), payload=st.sampled_from(PAYLOADS))
    def track(self, data: st.DataObject, payload: bytes) -> None:
        channel = self.pick(data)
        present, trackers = self.present.get(channel.key, (b"", []))
        others = [other for other in trackers if other is not channel]
        same = bool(trackers) and MEANINGS[present] == MEANINGS[payload]
        if channel.attachment is not None and others and not same:
            with pytest.raises(ConfigConflict):
                self.registry.track(channel.subscriber, payload)
            return
        self.registry.track(channel.subscriber, payload)
        if channel.attachment is not None:
            self.present[channel.key] = present if same else payload, [*others, channel]

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def untrack(self, data: st.DataObject) -> None:
        channel = self.pick(data)
        self.registry.untrack(channel.subscriber)
        self.stop_tracking(channel)

    def stop_tracking(self, channel: Wanted) -> None:
        payload, trackers = self.present.get(channel.key, (b"", []))
        trackers = [other for other in trackers if other is not channel]
        if trackers:
            self.present[channel.key] = payload, trackers
        else:
            self.present.pop(channel.key, None)

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def be_refused_to_track(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.present)))
        self.registry.refuse_tracking(self.share_of[key])
        del self.present[key]

    # Sockets

    def slots(self) -> list[Slot]:
        return [Slot(n, h.topics, len(h.keys), h.capacity, h.is_open) for n, h in self.hosts.items()]

    def find_home(self, key: int) -> None:
        choice = place(topic_of(key), self.slots(), max_connections=self.max_connections)
        usable = {n: host for n, host in self.hosts.items() if host.has_room_for(topic_of(key))}
        usable = {n: host for n, host in usable.items() if host.is_open} or usable
        if choice is None:
            assert not usable, "nothing starves while there is room"
            assert len(self.hosts) >= self.max_connections
            if key not in self.homeless:
                self.homeless.append(key)
            return
        if choice == OPEN:
            assert not usable, "a socket is filled before another is opened"
            assert len(self.hosts) < self.max_connections
            self.opened += 1
            choice = self.opened
            self.hosts[choice] = Host(self.capacity)
        else:
            fullest = max(len(host.keys) for host in usable.values())
            assert choice == min(n for n, host in usable.items() if len(host.keys) == fullest)
        self.hosts[choice].keys.add(key)
        assert len(self.hosts[choice].keys) <= self.hosts[choice].capacity
        if key in self.homeless:
            self.homeless.remove(key)

    def find_homes(self) -> None:
        for key in list(self.homeless):
            self.find_home(key)

    @precondition(lambda self: self.hosts)
    @rule(data=st.data(), how=st.sampled_from(["goes away", "comes back", "comes back", "dies", "is full", "is idle"]))
    def a_socket(self, data: st.DataObject, how: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.hosts)))
        host = self.hosts[number]
        if how in ("goes away", "comes back"):
            host.is_open = how == "comes back"
            host.capacity = self.capacity if host.is_open else host.capacity
        elif how == "dies" or (how == "is idle" and not host.keys):
            del self.hosts[number]
            for key in sorted(host.keys):
                self.find_home(key)
        elif how == "is full":  # so the server says, to the last that came; the next socket in its place has room
            host.capacity = len(host.keys)
        self.find_homes()

    @precondition(lambda self: len(self.channels) < MAX_CHANNELS)
    @rule(
        data=st.data(),
        many=st.lists(st.sets(keys, min_size=3, max_size=6), min_size=2, max_size=3),
        gone=st.sets(keys, max_size=5),
    )
    def leave_sockets_sparse(self, data: st.DataObject, many: list[set[int]], gone: set[int]) -> None:
        """Many come while each socket seems full, many go, and then there is room: what merging is for."""
        for some in many:
            self.come(sorted(some), False, False)
            for host in self.hosts.values():
                host.capacity = len(host.keys)
        self.all_go(gone)
        for host in self.hosts.values():
            host.capacity, host.is_open = self.capacity, True
        self.find_homes()
        if len(self.hosts) > 1:
            self.merge(data, False)

    @precondition(lambda self: len(self.hosts) > 1 and all(host.is_open for host in self.hosts.values()))
    @rule(data=st.data(), some=st.booleans())
    def merge(self, data: st.DataObject, some: bool) -> None:
        movable = data.draw(st.sets(st.sampled_from(sorted(self.hosts)))) if some else set(self.hosts)
        plan = merge_plan(self.slots(), movable)
        ranked = sorted((n for n, h in self.hosts.items() if h.keys), key=lambda n: (len(self.hosts[n].keys), -n))
        could = [number for number in ranked if number in movable and self.fits_elsewhere(number)]
        assert (plan.connection_id if plan else None) == next(iter(could), None), "the emptiest that can be"
        if plan is None:
            return
        source = self.hosts.pop(plan.connection_id)
        assert set(plan.moves) == source.topics, "each topic moves once, and no other"
        for key in source.keys:
            target = self.hosts[plan.moves[topic_of(key)]]
            assert target.has_room_for(topic_of(key))
            target.keys.add(key)
            assert len(target.keys) <= target.capacity * FULL_ENOUGH
        self.find_homes()

    def fits_elsewhere(self, number: int) -> bool:
        """Whether the topics of a socket have places on fuller ones: all ways are tried."""
        source = self.hosts[number]
        rank = len(source.keys), -number
        room = {
            n: int(host.capacity * FULL_ENOUGH) - len(host.keys)
            for n, host in self.hosts.items()
            if host.keys and (len(host.keys), -n) > rank
        }

        def fit(topics: list[str]) -> bool:
            if not topics:
                return True
            for n in room:
                if room[n] > 0 and topics[0] not in self.hosts[n].topics:
                    room[n] -= 1
                    if fit(topics[1:]):
                        return True
                    room[n] += 1
            return False

        return fit(sorted(source.topics))

    # What must hold

    @invariant()
    def each_share_lives_once_and_each_topic_once_per_socket(self) -> None:
        living = Counter(key for host in self.hosts.values() for key in host.keys)
        living.update(self.homeless)
        assert living == Counter(self.shares.keys())
        for host in self.hosts.values():
            assert len(host.topics) == len(host.keys)
        assert len(self.hosts) <= self.max_connections

    @invariant()
    def nothing_starves(self) -> None:
        for key in self.homeless:
            assert len(self.hosts) == self.max_connections
            assert not any(host.has_room_for(topic_of(key)) for host in self.hosts.values())

    @invariant()
    def the_registry_knows_who_wants_what(self) -> None:
        known = [ShareKey(**KEYS[key]) for key in self.shares]
        assert list(self.registry.share_keys()) == known, "who is wanted by nobody is forgotten"
        for key, parts in enumerate(KEYS):
            share = self.registry.share(ShareKey(**parts))
            assert share is self.share_of.get(key)
            if share is not None:
                assert share.subscribers == tuple(channel.subscriber for channel in self.shares[key])
                wish, trackers = self.present.get(key, (None, []))
                assert share.wish == wish
                assert share.trackers == tuple(channel.subscriber for channel in trackers)
        everybody = [channel.subscriber for channels in self.shares.values() for channel in channels]
        assert list(self.registry.subscribers()) == everybody
        for channel in self.channels:
            assert channel.subscriber.attachment is channel.attachment
            state = ChannelState.LEAVING if channel.leaving else ChannelState.CLOSED
            assert channel.subscriber.state is (ChannelState.JOINING if channel.attachment else state)

    @invariant()
    def a_joins_config_is_the_union_of_what_its_channels_ask(self) -> None:
        for channels in self.shares.values():
            merged = merge_configs(channel.subscriber.config for channel in channels)
            asked = [change for c in channels for _, _, change in c.bound if change is not None]
            assert merged.changes == tuple(sorted(set(asked), key=asked.index)), "each once, as they were asked for"
            assert merged.receive_own == any(c.receive_own for c in channels)
            assert merged.ack == any(c.ack or KEYS[c.key].get("private") for c in channels)
            assert merged.presence == any(
                "presence_key" in KEYS[c.key] or any(kind == "presence" for _, kind, _ in c.bound) for c in channels
            )
            for channel in self.channels:
                config = channel.subscriber.config
                both = merge_configs([merged, config])
                grows = (both.receive_own, both.ack, both.presence, set(both.changes)) != (
                    *(merged.receive_own, merged.ack, merged.presence),
                    set(merged.changes),
                )
                assert merged.covers(config) != grows, "what gives all that is asked is not joined anew"
            assert merged.covers(JoinConfig())

    def teardown(self) -> None:
        if not hasattr(self, "registry"):
            return
        attached = [channel.attachment for channels in self.shares.values() for channel in channels]
        assert self.registry.clear() == attached
        assert self.registry.share_keys() == self.registry.subscribers() == ()
        assert all(channel.subscriber.attachment is None for channel in self.channels)


TestRegistryModel = RegistryModel.TestCase
TestRegistryModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
