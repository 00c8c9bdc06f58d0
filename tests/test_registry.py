"""Who shares what with whom, and what each asks for: dictionary work, without a thread, a socket or a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rtpool.errors import ConfigConflict, NotSubscribed
from rtpool.events import Broadcast, ChannelState
from rtpool.protocol.messages import WireMessage
from rtpool.protocol.postgres import ChangeBinding
from rtpool.protocol.replay import ReplayRequest
from rtpool.registry import (
    Attachment,
    Binding,
    Delivery,
    JoinConfig,
    Registry,
    ShareKey,
    Subscriber,
    event_of,
    identity_of,
    merge_configs,
)
from tests.support.guard import watched

KEY = ShareKey("realtime:room")
CARS, BIKES = ChangeBinding("*", "public", "cars"), ChangeBinding("*", "public", "bikes")
EVENT = Broadcast("room", "moved", {}, None, False)


@pytest.fixture(autouse=True)
def nothing_but_arguments() -> Iterator[None]:
    """Fails a test that opens a socket, starts a thread, reads a clock, sleeps or draws an unseeded random number."""
    with watched() as found:
        yield
    assert not found, "\n".join(["a test of the registry", *found])


@pytest.fixture
def registry() -> Registry:
    return Registry()


def member(key: ShareKey = KEY, **options: Any) -> Subscriber:
    return Subscriber("room", key, **options)


def attached(registry: Registry, subscriber: Subscriber) -> Attachment:
    attachment = registry.attach(subscriber)
    assert attachment is not None
    return attachment


def binding(kind: str, name: str = "*", callback: Callable[[Any], object] = print, **options: Any) -> Binding:
    return Binding(kind, name, callback, **options)


# Share keys


@pytest.mark.parametrize(
    "other",
    [
        ShareKey("realtime:hall"),
        ShareKey("realtime:room", private=True),
        ShareKey("realtime:room", token="theirs"),
        ShareKey("realtime:room", presence_key="ann"),
        ShareKey("realtime:room", replay=ReplayRequest(5)),
        ShareKey("realtime:room", params=b'{"a":1}'),
    ],
    ids=str,
)
def test_whoever_differs_in_anything_the_server_tells_apart_has_a_share_of_his_own(
    registry: Registry, other: ShareKey
) -> None:
    one, two = attached(registry, member()), attached(registry, member(other))
    assert one.share is not two.share
    assert set(registry.share_keys()) == {KEY, other}


def test_equal_keys_share_one_join(registry: Registry) -> None:
    first, second = member(), member(ShareKey("realtime:room"))
    share = attached(registry, first).share
    assert attached(registry, second).share is share is registry.share(KEY)
    assert share.subscribers == registry.subscribers() == (first, second)
    assert registry.share_keys() == (KEY,)


def test_a_key_never_shows_a_token() -> None:
    assert "secret" not in repr(ShareKey("realtime:room", token="secret", params=b"secret"))


def test_a_callable_is_the_same_only_as_itself_and_is_never_asked() -> None:
    class Provider:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise AssertionError("user code")

        def __call__(self) -> str:
            return "token"

        def token(self) -> str:
            return "token"

        def other_token(self) -> str:
            return "token"

    one, two = Provider(), Provider()
    assert identity_of(one) == identity_of(one)
    assert hash(identity_of(one)) == hash(identity_of(one))
    assert identity_of(one) != identity_of(two)
    assert identity_of(one.token) == identity_of(one.token), "a bound method is made anew at each look-up"
    assert identity_of(one.token) not in (identity_of(two.token), identity_of(one.other_token), identity_of(one))
    assert identity_of(one) != "token"
    items: list[Any] = []
    assert identity_of(items.append) == identity_of(items.append)
    assert identity_of(items.append) not in (identity_of([].append), identity_of(items.extend), identity_of(items))
    assert identity_of(items.__len__) == identity_of(items.__len__)
    assert identity_of(items.__len__) not in (identity_of([].__len__), identity_of(items.__iter__))
    assert identity_of(one).given is one
    assert identity_of("token") == "token"


# Attaching and detaching


def test_a_channel_is_attached_once_at_a_time_and_later_attachments_have_higher_numbers(registry: Registry) -> None:
    one = member()
    first = attached(registry, one)
    assert registry.attach(one) is None
    assert one.attachment is first
    assert registry.detach(one) is first
    assert attached(registry, one).number > first.number


def test_a_share_is_forgotten_with_its_last_channel(registry: Registry) -> None:
    one, two = member(), member()
    share = attached(registry, one).share
    attached(registry, two)
    registry.detach(one)
    assert share.subscribers == (two,)
    assert registry.share(KEY) is share
    registry.detach(two)
    assert registry.share(KEY) is None
    assert registry.subscribers() == registry.share_keys() == ()


def test_who_is_over_is_attached_no_more(registry: Registry) -> None:
    one = member()
    attached(registry, one)
    one.over = "is over"
    assert registry.detach(one) is not None
    with pytest.raises(NotSubscribed, match="'room' is over"):
        registry.attach(one)
    assert not registry.subscribers()


def test_who_is_not_attached_or_not_by_that_is_not_detached(registry: Registry) -> None:
    one = member()
    assert registry.detach(one) is None
    earlier = attached(registry, one)
    registry.detach(one)
    present = attached(registry, one)
    assert registry.detach(one, only=earlier) is None
    assert one.attachment is present
    assert registry.detach(one, only=present) is present


def test_after_a_clear_everybody_is_detached_and_a_late_one_harms_no_share_that_came_since(registry: Registry) -> None:
    one, two, other = member(), member(), member(ShareKey("realtime:hall"))
    attachments = [attached(registry, subscriber) for subscriber in (one, two, other)]
    assert registry.clear() == attachments
    assert [s.attachment for s in (one, two, other)] == [None] * 3
    assert [a.share.subscribers for a in attachments] == [()] * 3
    assert registry.subscribers() == ()
    assert registry.detach(one) is None
    assert attached(registry, one).share is not attachments[0].share


def test_a_channel_is_in_the_state_of_its_join_then_leaving_then_closed(registry: Registry) -> None:
    one = member()
    assert one.state is ChannelState.CLOSED
    share = attached(registry, one).share
    assert one.state is ChannelState.JOINING
    share.state = ChannelState.ERRORED
    assert one.state is ChannelState.ERRORED
    registry.detach(one)
    assert one.state is ChannelState.LEAVING
    registry.left(one)
    assert one.state is ChannelState.CLOSED


def test_who_comes_back_while_he_leaves_is_not_leaving_when_he_goes_on(registry: Registry) -> None:
    one = member()
    attached(registry, one)
    registry.detach(one)
    attached(registry, one)
    assert not one.leaving


def test_events_flow_to_a_channel_that_is_joined_and_was_let_in(registry: Registry) -> None:
    one = member()
    assert not one.is_ready
    attachment = attached(registry, one)
    attachment.flowing = True
    assert not one.is_ready, "its join is not joined"
    attachment.share.state = ChannelState.JOINED
    assert one.is_ready
    attachment.flowing = False
    assert not one.is_ready


def test_who_was_refused_waits_anew_and_who_still_waits_or_was_let_in_does_not(registry: Registry) -> None:
    one = member()
    assert registry.ask_again(one) is None
    attachment = attached(registry, one)
    waiting = attachment.ready
    assert registry.ask_again(one) is attachment
    assert attachment.ready is waiting
    waiting.set_exception(ConfigConflict("refused"))
    assert registry.ask_again(one) is attachment
    anew = attachment.ready
    assert not anew.done()
    anew.set_result(None)
    registry.ask_again(one)
    assert attachment.ready is anew, "who was let in does not"


def test_whatever_is_asked_of_a_share_is_news_to_who_looked_before(registry: Registry) -> None:
    one, other = member(), member()
    share = attached(registry, one).share
    attached(registry, other)
    for ask in (
        lambda: registry.bind(one, binding("system")),
        lambda: registry.detach(other),
    ):
        share.news = False
        ask()
        assert share.news
    share.news = False
    registry.bind(other, binding("system"))
    assert not share.news, "it is not of the share any more"


def test_channels_that_share_a_join_share_what_is_equal(registry: Registry) -> None:
    one, other = member(ShareKey("realtime:room")), member(ShareKey("realtime:room"))
    attached(registry, one)
    attached(registry, other)
    assert one.key is other.key
    assert one.config is other.config


# Callbacks


def test_a_callback_is_added_at_any_time_and_matters_to_a_join_once_the_channel_is_attached(registry: Registry) -> None:
    one = member()
    first, second = binding("broadcast"), binding("system")
    assert not registry.bind(one, first)
    attached(registry, one)
    assert registry.bind(one, second)
    assert one.bindings == (first, second)


def test_every_registration_of_a_callback_is_removed_and_no_other(registry: Registry) -> None:
    heard: list[Any] = []
    one, kept = member(), binding("system")
    for kind in ("broadcast", "presence"):
        registry.bind(one, binding(kind, callback=heard.append))
    registry.bind(one, kept)
    assert registry.unbind(one, heard.append)
    assert one.bindings == (kept,)
    assert not registry.unbind(one, heard.append)
    assert not registry.unbind(one, [].append)


def test_the_first_presence_callback_is_still_to_be_told_who_is_present_and_the_next_is_not(registry: Registry) -> None:
    one = member()
    attachment = attached(registry, one)
    attachment.sees_presence = True
    registry.bind(one, binding("broadcast"))
    assert attachment.sees_presence
    registry.bind(one, binding("presence", "sync"))
    assert not attachment.sees_presence
    attachment.sees_presence = True
    registry.bind(one, binding("presence", "join"))
    assert attachment.sees_presence


WIRE = WireMessage(None, None, "realtime:room", "broadcast", {})


@pytest.mark.parametrize(
    ("wanted", "delivery", "is_for_it"),
    [
        (binding("broadcast", "moved"), Delivery("broadcast", "moved", EVENT), True),
        (binding("broadcast", "*"), Delivery("broadcast", "moved", EVENT), True),
        (binding("broadcast", "parked"), Delivery("broadcast", "moved", EVENT), False),
        (binding("presence", "moved"), Delivery("broadcast", "moved", EVENT), False),
        (binding("raw", "broadcast"), Delivery("broadcast", "moved", EVENT, WIRE), True),
        (binding("raw", "*"), Delivery("broadcast", "moved", EVENT, WIRE), True),
        (binding("raw", "moved"), Delivery("broadcast", "moved", EVENT, WIRE), False),
        (binding("raw", "*"), Delivery("gap", "", EVENT), False),
        (
            binding("postgres_changes", "*", change=CARS),
            Delivery("postgres_changes", "UPDATE", EVENT, WIRE, frozenset({CARS})),
            True,
        ),
        (
            binding("postgres_changes", "*", change=CARS),
            Delivery("postgres_changes", "UPDATE", EVENT, WIRE, frozenset({BIKES})),
            False,
        ),
    ],
)
def test_a_callback_gets_what_it_was_registered_for(wanted: Binding, delivery: Delivery, is_for_it: bool) -> None:
    assert wanted.wants(delivery) is is_for_it


def test_callbacks_live_as_long_as_a_handle_or_the_pool_of_an_attached_channel_holds_them(registry: Registry) -> None:
    one, kept = member(), registry.entrust()
    registry.bind(one, binding("system"))
    handle = one.entrust()
    attached(registry, one)
    assert kept == {handle}
    del handle
    assert len(one.bindings) == 1, "the pool holds them"
    registry.detach(one)
    assert (kept, one.bindings, one.held()) == (set(), (), None)
    attached(registry, one)
    registry.bind(one, binding("system"))
    assert (kept, one.bindings) == (set(), ()), "there is nothing any more to hold them"
    registry.detach(one)


def test_a_channel_may_come_and_go_when_its_pool_is_gone(registry: Registry) -> None:
    one = member()
    registry.entrust()  # and nobody holds it
    registry.bind(one, binding("system"))
    attachment = attached(registry, one)
    assert registry.detach(one) is attachment
    attached(registry, one)
    assert len(registry.clear()) == 1
    assert len(one.bindings) == 1


# In a forked child


def test_a_forked_child_begins_anew_with_the_callbacks_it_had_and_mailboxes_of_its_own(registry: Registry) -> None:
    one = member()
    registry.bind(one, binding("system"))
    parents = attached(registry, one)
    one.unsettled, one.leaving = 3, True
    lock = registry._lock
    registry.after_fork()
    assert registry._lock is not lock, "whoever held it is not here"
    assert one.inherit("mailbox", "stream") is parents
    assert (one.attachment, one.unsettled, one.leaving) == (None, 0, False)
    assert one.sinks == ("mailbox", "stream")
    assert registry.clear() == [], "it is attached no more"
    assert attached(registry, one) is not parents


# What a join asks for


def test_a_channel_asks_for_what_its_callbacks_need_and_for_nothing_twice(registry: Registry) -> None:
    one = member()
    assert one.config == JoinConfig()
    for change in (CARS, BIKES, CARS):
        registry.bind(one, binding("postgres_changes", change=change))
    registry.bind(one, binding("presence", "sync"))
    assert one.config == JoinConfig(presence=True, changes=(CARS, BIKES))


@pytest.mark.parametrize(
    ("channel", "asked"),
    [
        (member(receive_own=True), JoinConfig(receive_own=True)),
        (member(ack=True), JoinConfig(ack=True)),
        (member(ShareKey("realtime:room", private=True)), JoinConfig(ack=True)),
        (member(ShareKey("realtime:room", presence_key="ann")), JoinConfig(presence=True)),
        (member(ShareKey("realtime:room", presence_key="")), JoinConfig(presence=True)),
    ],
)
def test_options_of_a_channel_are_part_of_what_it_asks(channel: Subscriber, asked: JoinConfig) -> None:
    assert channel.config == asked
    assert channel.receive_own is asked.receive_own


def test_a_join_asks_for_all_that_its_channels_ask() -> None:
    parts = [JoinConfig(changes=(CARS,)), JoinConfig(ack=True, changes=(BIKES, CARS)), JoinConfig(presence=True)]
    assert merge_configs(parts) == JoinConfig(ack=True, presence=True, changes=(CARS, BIKES))
    assert merge_configs([JoinConfig(receive_own=True)]) == JoinConfig(receive_own=True)
    assert merge_configs([]) == JoinConfig()


@pytest.mark.parametrize(
    "more",
    [
        JoinConfig(receive_own=True),
        JoinConfig(ack=True),
        JoinConfig(presence=True),
        JoinConfig(changes=(CARS,)),
        JoinConfig(changes=(BIKES, CARS)),
    ],
)
def test_a_join_covers_what_it_gives_already_and_nothing_more(more: JoinConfig) -> None:
    plain = JoinConfig()
    assert more.covers(plain)
    assert more.covers(more)
    assert not plain.covers(more)
    everything = JoinConfig(True, True, True, (CARS, BIKES))
    assert everything.covers(more)
    assert not more.covers(everything)


# Where events go


def test_events_go_to_the_callbacks_to_the_iterator_or_to_both(registry: Registry) -> None:
    one = member()
    one.mailbox = "mailbox"
    assert one.sinks == ("mailbox",)
    one.stream = "stream"
    assert one.sinks == ("stream",), "nobody would empty the other"
    registry.bind(one, binding("broadcast"))
    assert one.sinks == ("mailbox", "stream")


# Being present


def test_a_join_is_present_while_one_of_its_channels_is(registry: Registry) -> None:
    one, two = member(), member()
    share = attached(registry, one).share
    attached(registry, two)
    registry.track(one, b'{"a":1,"b":2}')
    registry.track(two, b'{"b":2, "a":1}')
    assert (share.wish, share.trackers) == (b'{"a":1,"b":2}', (one, two)), "it says the same, and is not said again"
    registry.untrack(one)
    assert (share.wish, share.trackers) == (b'{"a":1,"b":2}', (two,))
    registry.detach(two)
    assert (share.wish, share.trackers) == (None, ())


def test_a_channel_changes_its_own_presence_but_not_a_siblings(registry: Registry) -> None:
    one, two = member(), member()
    share = attached(registry, one).share
    attached(registry, two)
    registry.track(one, b'{"a":1}')
    registry.track(one, b'{"a":2}')
    assert (share.wish, share.trackers) == (b'{"a":2}', (one,))
    with pytest.raises(ConfigConflict, match="presence_key"):
        registry.track(two, b'{"a":3}')
    assert (share.wish, share.trackers) == (b'{"a":2}', (one,))


def test_who_is_not_attached_is_present_on_nothing(registry: Registry) -> None:
    one = member()
    registry.track(one, b"{}")
    registry.untrack(one)
    share = attached(registry, one).share
    assert (share.wish, share.trackers) == (None, ())


def test_what_the_server_cannot_take_nobody_wishes_any_more(registry: Registry) -> None:
    one = member()
    share = attached(registry, one).share
    registry.track(one, b"{}")
    registry.refuse_tracking(share)
    assert (share.wish, share.trackers) == (None, ())


def test_a_broadcast_goes_alone_or_in_a_delivery_and_is_the_event_of_both() -> None:
    broadcast = Broadcast("room", "x", {})
    assert event_of(broadcast) is event_of(Delivery("broadcast", "x", broadcast)) is broadcast


@pytest.mark.parametrize("error", [RuntimeError, RecursionError])
def test_who_is_attached_is_told_though_somebody_comes_meanwhile_and_not_for_ever(
    registry: Registry, error: type[RuntimeError]
) -> None:
    subscriber = member(KEY)
    attached(registry, subscriber)

    class Changing(dict[ShareKey, Any]):
        looks = 0

        def values(self) -> Any:
            self.looks += 1
            if self.looks == 1:
                raise error("it changed")
            return super().values()

    registry._shares = Changing(registry._shares)
    if error is RecursionError:
        with pytest.raises(RecursionError):
            registry.subscribers()
    else:
        assert registry.subscribers() == (subscriber,)
