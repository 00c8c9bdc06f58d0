"""What a session says: values that are told apart by their kind, and that compare by what they say."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest

from rtpool.protocol import session_events
from rtpool.protocol.messages import Broadcasts, WireMessage
from rtpool.protocol.session_events import (
    ChannelEvent,
    ChannelLost,
    Fenced,
    HeartbeatLost,
    HeartbeatReplied,
    HeartbeatSent,
    Joined,
    JoinFailed,
    Left,
    PushSettled,
    SessionEvent,
)

MESSAGE = WireMessage(None, None, "t", "e", {})
#: One of each kind, with equal contents where the kinds allow it.
EVENTS: list[Any] = [
    Joined("t", None),
    JoinFailed("t", None, False),
    ChannelLost("t", "phx_close", None),
    Left("t", False),
    PushSettled("token", "reply", "ok", None, True),
    MESSAGE,
    Broadcasts("t", [{}]),
    Fenced("1"),
    HeartbeatSent(),
    HeartbeatReplied(0.5),
    HeartbeatLost(0.5),
]


def test_every_kind_is_a_session_event_and_public() -> None:
    kinds = {type(event) for event in EVENTS}
    assert set(get_args(SessionEvent)) == kinds
    named = {kind.__name__ for kind in kinds - {WireMessage, Broadcasts}}  # messages stand for themselves
    assert named | {"ChannelEvent", "SessionEvent"} == set(session_events.__all__)


def test_events_of_a_channel_name_their_topic_first() -> None:
    of_channels = [event for event in EVENTS if isinstance(event, get_args(ChannelEvent))]
    assert [event.topic for event in of_channels] == ["t"] * 4
    assert all(event[0] == "t" for event in of_channels)


@pytest.mark.parametrize(
    ("one", "other"), list(itertools.combinations(EVENTS, 2)), ids=lambda event: type(event).__name__
)
def test_each_kind_is_told_apart_by_its_type(one: Any, other: Any) -> None:
    assert not isinstance(one, type(other))
    assert not isinstance(other, type(one))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_equal_to_another_that_says_the_same_and_cannot_be_changed(event: Any) -> None:
    assert event == type(event)(*event)
    for name in event._fields:
        with pytest.raises(AttributeError):
            setattr(event, name, None)
