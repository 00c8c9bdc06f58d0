"""What a session does where several things meet: rejoins and leaves, times that overlap, replies to nobody."""

from __future__ import annotations

from typing import Any

import pytest

from rtpool.events import ChannelState
from rtpool.protocol.messages import BinaryBody, Broadcasts, JsonBody, WireMessage
from rtpool.protocol.serializer import SerializerV2
from rtpool.protocol.session import Session
from rtpool.protocol.session_events import (
    ChannelLost,
    Fenced,
    HeartbeatLost,
    HeartbeatReplied,
    HeartbeatSent,
    Joined,
    JoinFailed,
    Left,
    PushSettled,
)
from tests.support.driver import BODY, TOPIC, Driver

UNMATCHED = {"status": "error", "response": {"reason": "unmatched topic"}}


@pytest.fixture(params=["1.0.0", "2.0.0"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return Driver(request.param)


# Joins and leaves


def test_leaving_while_a_rejoin_waits_for_its_turn_leaves_what_the_server_has() -> None:
    driver = Driver(max_joins_in_flight=1)
    joined = driver.joined()
    driver.session.join("realtime:other", BODY, 0.0)
    (other,) = driver.sent()
    driver.session.join(TOPIC, BODY, 0.0)
    driver.session.leave(TOPIC, 0.0)
    (leave,) = driver.sent()
    assert (leave[0], leave[2], leave[3]) == (joined[1], TOPIC, "phx_leave")
    driver.reply(other)
    assert driver.sent() == [], "the rejoin is off"
    driver.reply(leave)
    assert driver.session.events() == [Joined("realtime:other", {}), Left(TOPIC, False)]


def test_what_is_joined_while_there_is_no_connection_goes_out_with_none(driver: Driver) -> None:
    driver.session.disconnected()
    driver.session.join(TOPIC, BODY, 0.0)
    assert driver.sent() == []
    assert driver.session.state(TOPIC) is ChannelState.JOINING
    driver.session.leave(TOPIC, 0.0)
    assert driver.session.events() == [Left(TOPIC, False)]


def test_a_rejoin_that_waited_for_its_turn_is_forgotten_with_the_connection() -> None:
    driver = Driver(max_joins_in_flight=1)
    driver.joined()
    driver.session.join("realtime:other", BODY, 0.0)
    driver.session.join(TOPIC, BODY, 0.0)
    driver.session.disconnected()
    driver.session.connected(driver.now)
    driver.sent()
    driver.joined()
    driver.session.join("realtime:third", BODY, 0.0)
    assert [frame[2] for frame in driver.sent()] == ["realtime:third"]


def test_the_push_of_a_channel_that_is_left_is_lost(driver: Driver) -> None:
    driver.joined("realtime:other")
    driver.joined()
    driver.push()
    driver.session.leave(TOPIC, 0.0)
    _, leave = driver.sent()
    driver.reply(leave)
    assert driver.session.events() == [PushSettled("token", "lost", "ok", None, True), Left(TOPIC, False)]


def test_a_join_that_timed_out_takes_itself_back_with_a_ref_of_its_own(driver: Driver) -> None:
    driver.session.join(TOPIC, BODY, 0.0)
    driver.sent()
    driver.advance(10.0)
    leave, heartbeat = driver.sent()
    assert leave == ["1", "2", TOPIC, "phx_leave", {}]
    assert heartbeat[1] == "3"


def test_the_end_of_a_join_gives_the_next_its_turn_however_it_ends() -> None:
    for end in ("ok", "error", "timeout"):
        driver = Driver(max_joins_in_flight=1)
        driver.session.join("realtime:first", BODY, 0.0)
        driver.session.join(TOPIC, BODY, 0.0)
        (first,) = driver.sent()
        if end == "timeout":
            driver.advance(10.0)
        else:
            driver.reply(first, end)
        assert [frame[2] for frame in driver.sent() if frame[3] == "phx_join"] == [TOPIC]


def test_a_join_that_was_left_before_its_turn_costs_the_next_none() -> None:
    driver = Driver(max_joins_in_flight=1)
    for topic in ("realtime:first", "realtime:left", TOPIC):
        driver.session.join(topic, BODY, 0.0)
    (first,) = driver.sent()
    driver.session.leave("realtime:left", 0.0)
    driver.reply(first)
    assert [frame[2] for frame in driver.sent()] == [TOPIC]


def test_a_session_that_was_never_connected_sends_nothing() -> None:
    session = Session(
        SerializerV2(), heartbeat_interval=25.0, heartbeat_timeout=10.0, join_timeout=10.0, max_joins_in_flight=5
    )
    session.join(TOPIC, BODY, 0.0)
    assert (session.frames_to_send(), session.joins_available, session.next_deadline()) == ([], 0, None)


# Frames


def test_a_frame_says_whether_it_is_binary_and_what_it_is_without_its_payload() -> None:
    driver = Driver()
    driver.joined()
    for body in (JsonBody(b"{}"), BinaryBody(b"secret")):
        driver.session.push(TOPIC, "e", body, token=1, wants_reply=True, deadline=9.0, now=0.0)
    text, binary = driver.session.frames_to_send()
    assert (text.is_binary, text.ref, text.what) == (False, "2", f"{TOPIC} e")
    assert (binary.is_binary, binary.ref, binary.what) == (True, "3", f"{TOPIC} e")


def test_a_binary_frame_is_heard() -> None:
    driver = Driver()
    driver.joined()
    driver.session.receive(bytes((2, len(TOPIC), 1)) + TOPIC.encode() + b"e" + b"bytes", True, 0.0)
    assert driver.session.events() == [WireMessage(None, None, TOPIC, "e", b"bytes")]


# Replies and ends that mean nothing


def test_a_reply_on_a_topic_answers_no_heartbeat(driver: Driver) -> None:
    driver.advance(25.0)
    (beat,) = driver.sent()
    driver.server(None, beat[1], TOPIC, "phx_reply", {"status": "ok", "response": {}})
    assert (driver.session.events(), driver.session.dropped) == ([HeartbeatSent()], 1)


def test_everything_that_is_dropped_is_counted_once(driver: Driver) -> None:
    dropped: list[int] = []
    for _ in range(3):
        driver.session.join(TOPIC, BODY, 0.0)
    for reply in driver.sent()[:2]:
        driver.reply(reply)  # overtaken by the third
        dropped.append(driver.session.dropped)
    for _ in range(2):
        driver.server(None, None, "realtime:nowhere", "broadcast", {})
        dropped.append(driver.session.dropped)
    for _ in range(2):
        driver.server(None, "77", TOPIC, "phx_reply", "no object")
        dropped.append(driver.session.dropped)
    for _ in range(2):
        driver.server(None, "77", TOPIC, "phx_reply", UNMATCHED)
        dropped.append(driver.session.dropped)
    for _ in range(2):
        driver.server(None, "77", TOPIC, "phx_close", {})
        dropped.append(driver.session.dropped)
    driver.server(None, None, TOPIC, "phx_close", {})
    for _ in range(2):
        driver.server(None, None, TOPIC, "broadcast", {})
        dropped.append(driver.session.dropped)
    for _ in range(2):
        driver.server(None, None, TOPIC, "phx_error", {})  # an error of what is no more
        dropped.append(driver.session.dropped)
    assert dropped == list(range(1, 15))
    assert driver.session.events() == [ChannelLost(TOPIC, "phx_close", {})]


def test_a_close_whose_refs_are_empty_is_the_present_channels() -> None:
    driver = Driver()
    driver.joined()
    driver.server("", "", TOPIC, "phx_close", {})
    assert driver.session.events() == [ChannelLost(TOPIC, "phx_close", {})]


def test_a_second_answer_to_a_join_does_not_end_its_channel(driver: Driver) -> None:
    join = driver.joined()
    driver.server(join[0], join[1], TOPIC, "phx_reply", UNMATCHED)
    assert (driver.session.events(), driver.session.dropped) == ([], 1)
    assert driver.session.state(TOPIC) is ChannelState.JOINED


@pytest.mark.parametrize(
    ("status", "response"),
    [("ok", {"reason": "unmatched topic"}), ("error", {"reason": "other"}), ("error", "unmatched topic")],
)
def test_only_an_error_that_says_so_means_that_the_channel_is_gone(driver: Driver, status: str, response: Any) -> None:
    driver.joined()
    driver.push()
    driver.reply(driver.sent()[0], status, response)
    assert driver.session.events() == [PushSettled("token", "reply", status, response, True)]
    assert driver.session.state(TOPIC) is ChannelState.JOINED


# Times


def test_a_leave_may_take_its_time_from_the_moment_it_is_written(driver: Driver) -> None:
    driver.joined()
    driver.session.leave(TOPIC, 0.0)
    (leave,) = driver.sent(written=False)
    driver.now = 7.0
    driver.session.frame_written(leave[1], driver.now)
    assert driver.session.next_deadline() == 17.0
    driver.advance(9.9)
    assert driver.session.events() == []
    driver.advance(0.1)
    assert driver.session.events() == [Left(TOPIC, True)]


def test_however_many_pushes_are_answered_the_deadline_of_the_one_that_is_not_stays() -> None:
    driver = Driver()
    driver.joined("realtime:other")
    driver.joined()
    driver.push(token="unanswered", deadline=5.0)
    driver.sent()
    driver.session.leave("realtime:other", 0.0)
    driver.sent(written=False)  # so that it has no deadline yet
    for _ in range(300):
        driver.push(deadline=1_000.0)
        driver.session.next_deadline()  # as the loop asks in each of its turns
        driver.reply(driver.sent()[0])
    driver.session.events()
    assert driver.session.next_deadline() == 5.0
    driver.advance(5.0)
    assert driver.session.events() == [PushSettled("unanswered", "timeout", "ok", None, True)]


def test_a_fence_that_does_not_come_back_is_no_lost_heartbeat(driver: Driver) -> None:
    driver.session.fence(driver.now)
    (fence,) = driver.sent()
    driver.advance(20.0)
    assert driver.session.events() == []
    driver.session.disconnected()
    driver.session.connected(driver.now)
    driver.reply(fence)
    assert driver.session.events() == []


def test_while_an_answer_is_late_no_more_joins_go_out() -> None:
    driver = Driver(join_timeout=30.0)
    driver.advance(25.0)
    (beat,) = driver.sent()
    driver.session.join(TOPIC, BODY, driver.now)
    (join,) = driver.sent()
    assert driver.session.joins_available > 0
    driver.advance(10.0)
    assert driver.session.joins_available == 0
    driver.reply(join, "error", {"reason": "x"})
    driver.reply(beat)
    assert driver.session.joins_available == 5


def test_a_late_heartbeat_does_not_count_while_a_join_is_outstanding() -> None:
    driver = Driver(join_timeout=30.0)
    driver.advance(25.0)
    (beat,) = driver.sent()
    driver.session.join(TOPIC, BODY, driver.now)
    (join,) = driver.sent()
    driver.advance(12.0)
    assert driver.session.events() == [HeartbeatSent()]
    driver.reply(join, "error", {"reason": "x"})
    driver.reply(beat)
    assert [type(e) for e in driver.session.events()] == [JoinFailed, HeartbeatReplied]


def test_a_join_that_is_not_written_yet_lets_a_late_heartbeat_wait_for_one_more_timeout() -> None:
    driver = Driver(join_timeout=30.0)
    driver.advance(25.0)
    driver.sent()
    driver.session.join(TOPIC, BODY, driver.now)
    driver.sent(written=False)
    driver.advance(10.0)
    assert driver.session.events() == [HeartbeatSent()]
    assert driver.session.next_deadline() == 45.0
    driver.advance(10.0)
    assert driver.session.events() == [HeartbeatLost(20.0)]


def test_a_join_that_is_written_lets_a_late_heartbeat_wait_until_its_answer_is_due() -> None:
    driver = Driver(join_timeout=30.0)
    driver.advance(25.0)
    driver.sent()
    driver.session.join(TOPIC, BODY, driver.now)
    driver.sent()
    driver.advance(10.0)
    assert driver.session.next_deadline() == 55.0
    driver.advance(19.9)
    assert driver.session.events() == [HeartbeatSent()]
    driver.advance(0.1)
    assert driver.session.events() == [JoinFailed(TOPIC, None, True), HeartbeatLost(30.0)]


def test_after_a_loss_nothing_is_unheard_where_nothing_was_ever_answered(driver: Driver) -> None:
    driver.session.join(TOPIC, BODY, 0.0)
    driver.session.leave(TOPIC, 0.0)
    driver.sent()
    assert driver.session.unheard
    driver.session.disconnected()
    assert not driver.session.unheard


def test_after_a_loss_nothing_is_unheard_for_it_was_told_as_lost(driver: Driver) -> None:
    driver.joined()
    driver.push()
    driver.session.disconnected()
    assert not driver.session.unheard
    driver.session.connected(driver.now)
    driver.joined()
    driver.push()
    assert driver.session.unheard


def test_a_leave_that_only_a_close_answered_does_not_time_out_for_the_next_channel(driver: Driver) -> None:
    join = driver.joined()
    driver.session.leave(TOPIC, 0.0)
    driver.sent()
    driver.server(join[1], join[1], TOPIC, "phx_close", {})
    driver.joined()
    driver.advance(10.0)
    assert driver.session.events() == []
    assert driver.session.state(TOPIC) is ChannelState.JOINED


def test_a_fence_is_a_heartbeat_of_its_own(driver: Driver) -> None:
    driver.joined()
    first, second = driver.session.fence(driver.now), driver.session.fence(driver.now)
    frames = driver.sent()
    assert frames == [[None, ref, "phoenix", "heartbeat", {}] for ref in (first, second)]
    driver.advance(25.0)
    (heartbeat,) = driver.sent()
    driver.server(None, None, TOPIC, "broadcast", {})
    for frame in (frames[0], heartbeat, frames[1]):
        driver.reply(frame)
    told = [event for event in driver.session.events() if not isinstance(event, HeartbeatSent)]
    assert [type(event) for event in told] == [Broadcasts, Fenced, HeartbeatReplied, Fenced]
    assert told[1::2] == [Fenced(first), Fenced(second)]


def test_refs_are_not_used_twice_over_a_reconnect(driver: Driver) -> None:
    old = driver.joined()
    driver.session.disconnected()
    driver.session.connected(driver.now)
    new = driver.joined()
    assert int(new[1]) > int(old[1])


def test_joins_in_flight_are_limited_and_go_out_in_order() -> None:
    driver = Driver(max_joins_in_flight=2)
    for index in range(4):
        driver.session.join(f"realtime:{index}", BODY, 0.0)
    first, second = driver.sent()
    assert driver.session.joins_available == -2
    driver.reply(second)
    (third,) = driver.sent()
    driver.reply(first, "error")
    (fourth,) = driver.sent()
    assert [f[2] for f in (first, second, third, fourth)] == [f"realtime:{i}" for i in range(4)]


def test_an_unanswered_heartbeat_is_told_once(driver: Driver) -> None:
    driver.advance(25.0)
    driver.sent()
    driver.advance(9.9)
    assert driver.session.events() == [HeartbeatSent()]
    driver.advance(0.1)
    assert driver.session.events() == [HeartbeatLost(10.0)]
    driver.advance(100.0)
    assert driver.session.events() == []


def test_what_ends_the_leave_of_an_earlier_channel_does_not_end_the_present_one(driver: Driver) -> None:
    join = driver.joined()
    driver.session.leave(TOPIC, 0.0)
    (leave,) = driver.sent()
    driver.server(join[1], join[1], TOPIC, "phx_close", {})
    driver.joined()
    driver.reply(leave)
    assert driver.session.events() == []
    assert driver.session.state(TOPIC) is ChannelState.JOINED
