"""The session of one connection, driven by hand: no socket, no clock, every second is an argument."""

from __future__ import annotations

import pytest

from rtpool.errors import ProtocolError
from rtpool.events import ChannelState
from rtpool.protocol.frames import OP_TEXT
from rtpool.protocol.messages import Broadcasts, JsonBody
from rtpool.protocol.session_events import (
    ChannelLost,
    HeartbeatLost,
    HeartbeatReplied,
    HeartbeatSent,
    Joined,
    JoinFailed,
    Left,
    PushSettled,
)
from tests.support.driver import BODY, TOPIC, Driver


@pytest.fixture(params=["1.0.0", "2.0.0"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return Driver(request.param)


def test_a_join_carries_its_own_ref_as_join_ref_and_becomes_joined(driver: Driver) -> None:
    driver.session.join(TOPIC, BODY, 0.0)
    frames = driver.session.frames_to_send()
    assert repr(frames) == f"[<OutgoingFrame {TOPIC} phx_join ref 1, {len(frames[0].data)} bytes>]", "and no payload"
    driver.session.join(TOPIC, BODY, 0.0)
    (join,) = driver.sent()

    assert join == ["2", "2", TOPIC, "phx_join", {"config": {}}]
    assert driver.session.state(TOPIC) is ChannelState.JOINING
    driver.reply(join, response={"postgres_changes": []})
    assert driver.session.events() == [Joined(TOPIC, {"postgres_changes": []})]
    assert driver.session.state(TOPIC) is ChannelState.JOINED


def test_a_refused_join_tells_the_servers_words(driver: Driver) -> None:
    driver.session.join(TOPIC, BODY, 0.0)
    driver.reply(driver.sent()[0], "error", {"reason": "Unauthorized: no"})

    assert driver.session.events() == [JoinFailed(TOPIC, {"reason": "Unauthorized: no"}, False)]
    assert driver.session.state(TOPIC) is ChannelState.ERRORED


def test_a_join_times_out_from_the_moment_it_is_written_and_takes_itself_back(driver: Driver) -> None:
    driver.session.join(TOPIC, BODY, 0.0)
    (join,) = driver.sent(written=False)
    driver.advance(60.0)
    assert [e for e in driver.session.events() if isinstance(e, JoinFailed)] == []

    driver.session.frame_written(join[1], driver.now)
    assert driver.session.next_deadline() is not None
    driver.advance(9.9)
    assert [e for e in driver.session.events() if isinstance(e, JoinFailed)] == []
    driver.sent()
    driver.advance(0.1)
    assert JoinFailed(TOPIC, None, True) in driver.session.events()
    (leave,) = driver.sent()
    assert leave == [join[1], "3", TOPIC, "phx_leave", {}], "2 is the heartbeat's"
    driver.reply(join)  # too late: it matches nothing
    assert driver.session.events() == []
    assert driver.session.state(TOPIC) is ChannelState.ERRORED


def test_leaving_ends_with_the_reply_and_the_close_that_follows_is_dropped(driver: Driver) -> None:
    join = driver.joined()
    driver.session.leave(TOPIC, 0.0)
    (leave,) = driver.sent()
    assert leave == ["1", "2", TOPIC, "phx_leave", {}]
    driver.reply(leave)
    assert driver.session.events() == [Left(TOPIC, False)]
    driver.server(join[1], join[1], TOPIC, "phx_close", {})
    assert driver.session.events() == []
    assert driver.session.state(TOPIC) is ChannelState.CLOSED


def test_leaving_ends_with_the_close_when_it_comes_first(driver: Driver) -> None:
    join = driver.joined()
    driver.session.leave(TOPIC, 0.0)
    driver.sent()
    driver.server(join[1], join[1], TOPIC, "phx_close", {})
    assert driver.session.events() == [Left(TOPIC, False)]


def test_leaving_ends_by_itself_when_the_server_is_silent(driver: Driver) -> None:
    driver.joined()
    driver.session.leave(TOPIC, 0.0)
    driver.sent()
    driver.advance(10.0)
    assert driver.session.events() == [Left(TOPIC, True)]


def test_leaving_overtakes_a_join_in_flight(driver: Driver) -> None:
    driver.session.join(TOPIC, BODY, 0.0)
    (join,) = driver.sent()
    driver.session.leave(TOPIC, 0.0)
    (leave,) = driver.sent()
    driver.reply(join)
    assert driver.session.events() == []
    driver.reply(leave)
    assert driver.session.events() == [Left(TOPIC, False)]


def test_leaving_a_join_that_was_never_sent_needs_no_word(driver: Driver) -> None:
    small = Driver(driver.vsn, max_joins_in_flight=1)
    small.session.join("realtime:other", BODY, 0.0)
    small.session.join(TOPIC, BODY, 0.0)
    (other,) = small.sent()
    small.session.leave(TOPIC, 0.0)
    assert small.session.events() == [Left(TOPIC, False)]
    small.reply(other)
    assert small.sent() == []


def test_a_join_that_waited_and_was_left_takes_no_place_in_the_queue(driver: Driver) -> None:
    small = Driver(driver.vsn, max_joins_in_flight=1)
    small.session.join("realtime:other", BODY, 0.0)
    for _ in range(3):
        small.session.join(TOPIC, BODY, 0.0)
        small.session.leave(TOPIC, 0.0)
    assert small.session.joins_available == 0
    assert len(small.session._join_queue) == 0


def test_a_channel_that_ends_while_its_next_join_waits_is_not_joined_behind_our_back(driver: Driver) -> None:
    small = Driver(driver.vsn, max_joins_in_flight=1)
    join = small.joined()
    small.session.join("realtime:other", BODY, 0.0)
    small.session.join(TOPIC, BODY, 0.0)
    (other,) = small.sent()
    small.server(join[1], join[1], TOPIC, "phx_close", {})
    assert small.session.events() == [ChannelLost(TOPIC, "phx_close", {})]
    small.reply(other)
    assert small.sent() == [], "nobody would believe its answer"
    small.session.join(TOPIC, BODY, 0.0)
    small.reply(small.sent()[0])
    assert small.session.state(TOPIC) is ChannelState.JOINED


def test_the_answer_to_a_leave_that_is_over_ends_no_later_one(driver: Driver) -> None:
    """The server closes the channel by itself, and answers our leave when it comes to it."""
    join = driver.joined()
    driver.session.leave(TOPIC, 0.0)
    (first,) = driver.sent()
    driver.server(join[1], join[1], TOPIC, "phx_close", {})
    assert driver.session.events() == [Left(TOPIC, False)]
    driver.advance(5.0)
    driver.session.join(TOPIC, BODY, driver.now)
    driver.session.leave(TOPIC, driver.now)
    second_join, second = driver.sent()
    driver.advance(7.0)
    driver.reply(first)
    assert driver.session.state(TOPIC) is ChannelState.LEAVING
    driver.reply(second_join)
    driver.reply(second)
    assert [e for e in driver.session.events() if isinstance(e, Left)] == [Left(TOPIC, False)]


def test_an_unmatched_push_of_an_earlier_join_says_nothing_of_the_present_one(driver: Driver) -> None:
    driver.joined()
    driver.push()
    (push,) = driver.sent()
    driver.joined()
    driver.server(None, push[1], TOPIC, "phx_reply", {"status": "error", "response": {"reason": "unmatched topic"}})
    assert [type(e) for e in driver.session.events()] == [PushSettled]
    assert driver.session.state(TOPIC) is ChannelState.JOINED


def test_a_duplicate_join_is_answered_before_the_old_channel_closes(driver: Driver) -> None:
    old = driver.joined()
    driver.session.join(TOPIC, BODY, 0.0)
    (new,) = driver.sent()
    driver.server(None, None, TOPIC, "broadcast", {"n": 1})
    heard = Broadcasts(TOPIC, [{"n": 1}])
    assert driver.session.events() == [heard], "the old channel delivers until it is replaced"
    driver.reply(new)
    driver.server(old[1], old[1], TOPIC, "phx_close", {})

    assert driver.session.events() == [Joined(TOPIC, {})]
    assert driver.session.state(TOPIC) is ChannelState.JOINED


def test_an_overtaken_joins_reply_changes_nothing(driver: Driver) -> None:
    driver.session.join(TOPIC, BODY, 0.0)
    (first,) = driver.sent()
    driver.session.join(TOPIC, JsonBody(b"{}"), 0.0)
    (second,) = driver.sent()
    driver.reply(first)
    assert (driver.session.events(), driver.session.dropped) == ([], 1)
    assert driver.session.state(TOPIC) is ChannelState.JOINING
    driver.reply(second)
    assert driver.session.events() == [Joined(TOPIC, {})]


def test_frames_of_an_older_join_are_dropped() -> None:
    driver = Driver("2.0.0")
    old = driver.joined()
    driver.session.join(TOPIC, BODY, 0.0)
    (new,) = driver.sent()
    driver.reply(new)
    driver.session.events()
    before = driver.session.dropped
    driver.server(old[1], None, TOPIC, "system", {})
    driver.server(old[1], old[1], TOPIC, "phx_error", {})
    assert driver.session.events() == []
    assert driver.session.dropped == before + 2
    driver.server(new[1], None, TOPIC, "system", {})
    driver.server(None, None, TOPIC, "broadcast", {})
    driver.server("", None, TOPIC, "broadcast", {})
    assert len(driver.session.events()) == 3


def test_each_of_the_broadcasts_that_are_nobodys_is_counted(driver: Driver) -> None:
    driver.joined()
    topics = (TOPIC, "realtime:nowhere", TOPIC, "realtime:nowhere", "realtime:nowhere")
    frames = [driver.frame(None, None, topic, "broadcast", {"n": n}) for n, topic in enumerate(topics)]
    assert driver.session.receive_all([(OP_TEXT, frame) for frame in frames], driver.now) == []
    assert driver.session.events() == [Broadcasts(TOPIC, [{"n": 0}, {"n": 2}])]
    assert driver.session.dropped == 3


def test_a_version_1_close_is_matched_by_its_ref() -> None:
    driver = Driver("1.0.0")
    join = driver.joined()
    driver.server(None, "999", TOPIC, "phx_close", {})
    assert driver.session.events() == []
    driver.server(None, join[1], TOPIC, "phx_close", {})
    assert driver.session.events() == [ChannelLost(TOPIC, "phx_close", {})]


@pytest.mark.parametrize("event", ["phx_error", "phx_close"])
def test_a_channel_the_server_ends_is_errored_and_its_pushes_are_lost(driver: Driver, event: str) -> None:
    join = driver.joined()
    driver.push()
    driver.sent()
    driver.server(join[1], join[1], TOPIC, event, {})
    assert driver.session.events() == [
        PushSettled("token", "lost", "ok", None, True),
        ChannelLost(TOPIC, event, {}),
    ]
    assert driver.session.state(TOPIC) is ChannelState.ERRORED


def test_a_close_without_refs_is_the_present_channels(driver: Driver) -> None:
    driver.joined()
    driver.server(None, None, TOPIC, "phx_close", {})
    assert driver.session.events() == [ChannelLost(TOPIC, "phx_close", {})]


def test_a_push_carries_the_join_ref_and_resolves_once_with_any_response(driver: Driver) -> None:
    driver.joined()
    assert driver.push()
    (push,) = driver.sent()
    assert push == ["1", "2", TOPIC, "e", {}]
    driver.reply(push, "error", "payload_size_exceeded")
    driver.reply(push)
    driver.advance(20)
    assert driver.session.events() == [PushSettled("token", "reply", "error", "payload_size_exceeded", True)]


def test_a_push_without_reply_is_settled_when_the_kernel_has_it(driver: Driver) -> None:
    driver.joined()
    driver.push(wants_reply=False)
    (push,) = driver.sent(written=False)
    assert driver.session.events() == []
    driver.session.frame_written(push[1], 0.0)
    assert driver.session.events() == [PushSettled("token", "sent", "ok", None, True)]


@pytest.mark.parametrize("written", [True, False])
def test_a_push_times_out_and_says_whether_it_was_written(driver: Driver, written: bool) -> None:
    driver.joined()
    driver.push(deadline=3.0)
    driver.sent(written=written)
    driver.advance(2.9)
    assert driver.session.events() == []
    driver.advance(0.1)
    assert driver.session.events() == [PushSettled("token", "timeout", "ok", None, written)]


def test_a_push_on_a_topic_that_is_not_joined_is_not_sent(driver: Driver) -> None:
    assert not driver.push()
    driver.session.join(TOPIC, BODY, 0.0)
    assert not driver.push()
    driver.sent()
    driver.session.disconnected()
    assert not driver.push()


def test_an_unmatched_topic_means_the_channel_is_gone(driver: Driver) -> None:
    driver.joined()
    driver.push()
    (push,) = driver.sent()
    driver.server(None, push[1], TOPIC, "phx_reply", {"status": "error", "response": {"reason": "unmatched topic"}})
    response = {"reason": "unmatched topic"}
    assert driver.session.events() == [
        PushSettled("token", "reply", "error", response, True),
        ChannelLost(TOPIC, "unmatched topic", response),
    ]
    assert driver.session.state(TOPIC) is ChannelState.ERRORED


def test_an_unmatched_topic_counts_for_a_push_without_reply_too_but_not_for_one_of_an_earlier_join(
    driver: Driver,
) -> None:
    unmatched = {"status": "error", "response": {"reason": "unmatched topic"}}
    driver.joined()
    driver.push(wants_reply=False)
    ((_, old_ref, *_),) = driver.sent()
    driver.joined()
    driver.push(wants_reply=False)
    ((_, ref, *_),) = driver.sent()
    driver.session.events()
    for stranger in (old_ref, "99", "\u00b2", "9" * 5_000, "x"):
        driver.server(None, stranger, TOPIC, "phx_reply", unmatched)
    assert (driver.session.events(), driver.session.dropped) == ([], 5)
    driver.server(None, ref, TOPIC, "phx_reply", unmatched)
    driver.server(None, ref, TOPIC, "phx_reply", unmatched)
    assert driver.session.events() == [ChannelLost(TOPIC, "unmatched topic", unmatched["response"])]
    assert (driver.session.state(TOPIC), driver.session.dropped) == (ChannelState.ERRORED, 6)


def test_a_disconnect_errors_the_joined_ends_the_leaving_and_loses_the_pushes(driver: Driver) -> None:
    driver.joined("realtime:leaving")
    driver.joined()
    driver.push()
    driver.session.leave("realtime:leaving", 0.0)
    driver.session.join("realtime:joining", BODY, 0.0)
    driver.sent()
    driver.session.disconnected()
    assert driver.session.joins_available == 0

    assert set(driver.session.events()) == {
        PushSettled("token", "lost", "ok", None, True),
        Left("realtime:leaving", False),
    }
    assert driver.session.state(TOPIC) is ChannelState.ERRORED
    assert driver.session.state("realtime:joining") is ChannelState.ERRORED
    assert driver.session.next_deadline() is None


def test_heartbeats_go_out_every_interval_after_the_reply_whatever_comes_in(driver: Driver) -> None:
    driver.joined()
    for _ in range(24):
        driver.advance(1.0)
        driver.server(None, None, TOPIC, "broadcast", {})
    assert driver.sent() == []
    driver.advance(1.0)
    (beat,) = driver.sent()
    assert beat == [None, "2", "phoenix", "heartbeat", {}]
    assert driver.session.events()[-1] == HeartbeatSent()
    driver.now += 0.25
    driver.reply(beat)
    assert driver.session.events() == [HeartbeatReplied(0.25)]
    assert driver.session.next_deadline() == driver.now + 25.0


def test_messages_for_unknown_topics_are_counted_and_dropped(driver: Driver) -> None:
    driver.server(None, None, "realtime:nowhere", "broadcast", {})
    driver.server(None, "77", "realtime:nowhere", "phx_reply", {"status": "ok", "response": {}})
    driver.server(None, None, "realtime:nowhere", "phx_close", {})
    assert driver.session.events() == []
    assert driver.session.dropped == 3


def test_a_broken_frame_raises_and_harms_nothing(driver: Driver) -> None:
    driver.joined()
    with pytest.raises(ProtocolError):
        driver.session.receive(b'{"payload":not json', False, 0.0)
    assert driver.push()


def test_joining_while_leaving_is_a_bug_that_shows(driver: Driver) -> None:
    driver.joined()
    driver.session.leave(TOPIC, 0.0)
    with pytest.raises(RuntimeError, match="leaving"):
        driver.session.join(TOPIC, BODY, 0.0)


def test_a_push_may_be_settled_when_it_is_sent_and_again_by_its_reply(driver: Driver) -> None:
    ref = driver.joined()[1]
    assert driver.session.push(
        TOPIC, "x", BODY, token="token", wants_reply=True, tells_sent=True, deadline=10.0, now=driver.now
    )
    (frame,) = driver.sent()
    driver.reply(frame)
    outcomes = [(e.outcome, e.written) for e in driver.session.events() if isinstance(e, PushSettled)]
    assert outcomes == [("sent", True), ("reply", True)]
    assert ref


def test_the_time_of_a_join_begins_when_the_one_before_it_is_done() -> None:
    driver = Driver(join_timeout=10.0, max_joins_in_flight=3)
    for topic in ("realtime:a", "realtime:b", "realtime:c"):
        driver.session.join(topic, BODY, driver.now)
    first, second, _ = driver.sent()
    driver.advance(9.0)
    driver.reply(first, "error", {"reason": "slow"})
    driver.advance(9.0)  # 18 s after it was written, 9 s after its turn came
    assert [type(e) for e in driver.session.events()] == [JoinFailed]
    driver.reply(second)
    driver.advance(10.0)
    assert JoinFailed("realtime:c", None, True) in driver.session.events()


@pytest.mark.parametrize("late", [0.0, 30.0])
def test_a_push_that_is_due_together_with_the_leave_of_its_topic_has_timed_out(driver: Driver, late: float) -> None:
    driver.joined()
    for token in range(12):  # refs of one digit, and of two
        assert driver.session.push(TOPIC, "ask", BODY, token=token, wants_reply=True, now=0.0, deadline=10.0 + late)
    driver.session.leave(TOPIC, 0.0)
    driver.sent()
    driver.advance(10.0 + late)

    settled = [e for e in driver.session.events() if isinstance(e, (PushSettled, Left))]
    assert settled.pop() == Left(TOPIC, True)
    assert set(settled) == {PushSettled(token, "timeout", "ok", None, True) for token in range(12)}


def test_a_join_that_times_out_makes_the_session_ask_whether_the_server_lives() -> None:
    driver = Driver(join_timeout=10.0)
    driver.session.join(TOPIC, BODY, driver.now)
    driver.sent()
    driver.advance(10.0)
    assert [frame[3] for frame in driver.sent()] == ["phx_leave", "heartbeat"]
    driver.advance(10.0)
    assert isinstance(driver.session.events()[-1], HeartbeatLost)


def test_a_session_names_its_topics_and_says_whether_anything_happened(driver: Driver) -> None:
    driver.session.join(TOPIC, BODY, 0.0)
    assert set(driver.session.topics) == {TOPIC}
    assert not driver.session.has_events
    driver.reply(driver.sent()[0])
    assert driver.session.has_events
    driver.session.leave("realtime:nowhere", 0.0)
    driver.session.leave(TOPIC, 0.0)
    driver.session.leave(TOPIC, 0.0)
    (leave,) = driver.sent()
    driver.reply(leave)
    assert driver.session.topics == {}
    assert driver.session.state(TOPIC) is ChannelState.CLOSED


def test_doubt_whether_the_peer_lives_is_a_heartbeat_at_the_next_tick(driver: Driver) -> None:
    driver.session.probe(driver.now)
    assert driver.session.next_deadline() == driver.now
    driver.advance(0.0)
    assert [frame[3] for frame in driver.sent()] == ["heartbeat"]


def test_while_nothing_is_read_the_time_of_a_join_begins_again() -> None:
    driver = Driver(max_joins_in_flight=2)
    driver.session.join("realtime:a", BODY, 0.0)
    driver.session.not_reading(0.0)  # it is not written, so its time has not begun
    driver.session.join("realtime:b", BODY, 0.0)
    driver.sent()
    driver.now = 9.0
    driver.session.not_reading(driver.now)
    assert driver.session.next_deadline() == 19.0
    driver.advance(9.0)
    assert driver.session.events() == []
    driver.advance(1.0)
    assert [e.topic for e in driver.session.events() if isinstance(e, JoinFailed)] == ["realtime:a"]


def test_a_deadline_that_passed_its_answer_is_awaited_no_more(driver: Driver) -> None:
    driver.joined()
    driver.push(deadline=3.0)
    driver.push(deadline=5.0)
    first, second = driver.sent()
    assert driver.session.next_deadline() == 3.0
    driver.reply(first)
    assert driver.session.next_deadline() == 5.0
    driver.reply(second)
    assert driver.session.next_deadline() == 25.0, "the heartbeat"


def test_a_join_asked_for_twice_before_its_turn_goes_out_once_and_says_the_last_wish() -> None:
    driver = Driver(max_joins_in_flight=1)
    driver.session.join("realtime:other", BODY, 0.0)
    driver.session.join(TOPIC, BODY, 0.0)
    driver.session.join(TOPIC, JsonBody(b'{"again":1}'), 0.0)
    (other,) = driver.sent()
    driver.reply(other)
    (join,) = driver.sent()
    assert join[4] == {"again": 1}
    driver.reply(join)
    assert driver.sent() == []


def test_a_reply_without_an_object_is_dropped(driver: Driver) -> None:
    driver.session.join(TOPIC, BODY, 0.0)
    (join,) = driver.sent()
    driver.server(join[0], join[1], TOPIC, "phx_reply", "ok")
    assert (driver.session.events(), driver.session.dropped) == ([], 1)
    driver.reply(join)
    assert driver.session.events() == [Joined(TOPIC, {})]


def test_a_leave_that_overtakes_a_join_outlives_its_refusal_and_its_crash(driver: Driver) -> None:
    driver.session.join(TOPIC, BODY, 0.0)
    (join,) = driver.sent()
    driver.session.leave(TOPIC, 0.0)
    (leave,) = driver.sent()
    driver.reply(join, "error", {"reason": "x"})
    driver.server(join[1], join[1], TOPIC, "phx_error", {})
    assert driver.session.events() == []
    assert driver.session.state(TOPIC) is ChannelState.LEAVING
    driver.reply(leave)
    assert driver.session.events() == [Left(TOPIC, False)]


def test_a_leave_that_overtakes_a_join_may_both_go_unanswered(driver: Driver) -> None:
    driver.session.join(TOPIC, BODY, 0.0)
    driver.sent()
    driver.session.leave(TOPIC, 0.0)
    driver.sent()
    driver.advance(10.0)
    assert [e for e in driver.session.events() if not isinstance(e, HeartbeatSent)] == [Left(TOPIC, True)]


def test_a_join_replaced_by_another_times_out_without_a_word(driver: Driver) -> None:
    driver.session.join(TOPIC, BODY, 0.0)
    driver.sent()
    driver.now = 5.0
    driver.session.join(TOPIC, BODY, driver.now)
    (second,) = driver.sent()
    driver.advance(5.0)
    assert [frame[3] for frame in driver.sent()] == ["heartbeat"], "no leave of the present join"
    driver.reply(second)
    assert driver.session.events() == [HeartbeatSent(), Joined(TOPIC, {})]


def test_what_comes_for_a_channel_that_is_gone_or_going_is_dropped(driver: Driver) -> None:
    join = driver.joined()
    driver.server(join[1], join[1], TOPIC, "phx_error", {})
    driver.server(join[1], join[1], TOPIC, "phx_close", {})
    driver.server(None, None, TOPIC, "broadcast", {})
    assert driver.session.events() == [ChannelLost(TOPIC, "phx_error", {})]
    driver.joined()
    driver.session.leave(TOPIC, 0.0)
    driver.server(None, None, TOPIC, "broadcast", {})
    assert (driver.session.events(), driver.session.dropped) == ([], 2)


def test_a_session_knows_whether_the_server_may_not_have_read_what_was_said(driver: Driver) -> None:
    driver.joined()
    assert not driver.session.unheard, "a join is nothing that was said"
    driver.push()
    (earlier,) = driver.sent()
    driver.push(wants_reply=False)
    driver.sent()
    driver.reply(earlier)
    assert driver.session.unheard, "what was answered is older"
    driver.session.fence(driver.now)
    driver.reply(*driver.sent())
    assert not driver.session.unheard, "a server reads in order"
    driver.push(wants_reply=False)
    driver.sent()
    driver.advance(25.0)
    assert driver.session.unheard
    driver.reply(*driver.sent())
    assert not driver.session.unheard, "a heartbeat is as good"
    driver.session.leave(TOPIC, driver.now)
    (leave,) = driver.sent()
    assert driver.session.unheard
    driver.reply(leave)
    assert not driver.session.unheard


def test_timers_of_answered_pushes_do_not_pile_up() -> None:
    driver = Driver()
    driver.joined()
    driver.push(deadline=900.0)  # is never answered, and stands before all others
    driver.sent()
    for index in range(5_000):
        driver.push(token=str(index), deadline=1_000.0)
        assert driver.session.next_deadline() == 25.0, "as the loop asks in each of its turns"
        driver.reply(driver.sent()[0])
    assert len(driver.session.events()) == 5_000
    assert len(driver.session._timers) < 200


def test_what_is_written_at_once_and_awaits_nothing_gets_no_timer_and_what_waits_gets_its_own(driver: Driver) -> None:
    driver.joined()
    driver.push(token="gone", wants_reply=False, deadline=7.0)
    driver.sent()
    assert driver.session.next_deadline() == 25.0
    assert driver.session._timers == []
    driver.push(token="stuck", wants_reply=False, deadline=8.0)
    driver.push(token="due", wants_reply=False, deadline=3.0)
    driver.sent(written=False)
    driver.advance(4.0)  # though nobody asked when that would be
    assert [(e.token, e.outcome, e.written) for e in driver.session.events() if isinstance(e, PushSettled)] == [
        ("gone", "sent", True),
        ("due", "timeout", False),
    ]
    assert driver.session.next_deadline() == 8.0
    driver.session.disconnected()
    assert driver.session.next_deadline() is None


def test_a_session_knows_which_topic_awaits_a_reply(driver: Driver) -> None:
    driver.joined()
    assert not driver.session.awaits_reply(TOPIC)
    driver.push(wants_reply=False)
    assert driver.session.awaits_reply(TOPIC), "it is not written"
    driver.sent()
    assert not driver.session.awaits_reply(TOPIC)
    driver.push()
    (push,) = driver.sent()
    assert driver.session.awaits_reply(TOPIC)
    assert not driver.session.awaits_reply("realtime:other")
    driver.reply(push)
    assert not driver.session.awaits_reply(TOPIC)


def test_while_nothing_is_read_heartbeats_go_out_and_no_reply_is_expected() -> None:
    driver = Driver()
    beats = []
    for _ in range(20):
        driver.now += 6.0
        driver.session.not_reading(driver.now)
        driver.session.tick(driver.now)
        beats += driver.sent()
    assert driver.session.events() == [HeartbeatSent()] * len(beats)
    assert len(beats) >= 5
    driver.reply(beats[-1])
    assert isinstance(driver.session.events()[0], HeartbeatReplied)


def test_it_tells_whether_it_has_something_to_say_and_how_long_a_heartbeat_is_awaited(driver: Driver) -> None:
    assert not driver.session.has_output
    driver.session.join(TOPIC, BODY, 0.0)
    assert driver.session.has_output
    (join,) = driver.sent()
    driver.reply(join)
    driver.session.events()
    assert not driver.session.has_output
    driver.advance(25.0)
    driver.sent()
    driver.session.events()
    assert driver.session.heartbeat_awaited(driver.now + 2.0) == 2.0
    driver.session.join("realtime:other", BODY, driver.now)
    driver.sent()
    assert driver.session.heartbeat_awaited(driver.now + 2.0) == 0.0, "the join holds it up"
