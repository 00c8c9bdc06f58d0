"""
The heartbeat under an injected clock: when it goes out, when its silence is death, and when it is only a busy server.
"""

from __future__ import annotations

import pytest

from rtpool.protocol.heartbeat import Pulse

INTERVAL, TIMEOUT = 25.0, 10.0


@pytest.fixture
def pulse() -> Pulse:
    """Of a connection opened at 0."""
    pulse = Pulse(INTERVAL, TIMEOUT)
    pulse.start(0.0)
    return pulse


def beat(pulse: Pulse, now: float, ref: str = "1") -> None:
    assert pulse.is_due(now)
    pulse.sent(ref, now)
    assert pulse.written(ref, now)


def test_one_is_due_an_interval_after_the_opening_and_after_each_answer(pulse: Pulse) -> None:
    assert not pulse.is_due(24.9)
    assert pulse.next_deadline == INTERVAL
    beat(pulse, 25.0)
    assert pulse.next_deadline == 35.0
    assert pulse.answered("1", 26.5) == 1.5
    assert pulse.next_deadline == 51.5


def test_inbound_traffic_does_not_put_off_the_next_one(pulse: Pulse) -> None:
    for _ in range(24):
        pulse.heard = True
    assert pulse.next_deadline == INTERVAL
    assert pulse.is_due(INTERVAL)


def test_a_peer_that_says_everything_but_the_answer_is_waited_for_and_not_for_ever(pulse: Pulse) -> None:
    beat(pulse, 25.0)
    pulse.heard = True
    now = 35.0
    while (waited := pulse.lost(now, None)) is None:
        assert pulse.late
        pulse.heard = True
        assert pulse.next_deadline == now + TIMEOUT
        now += TIMEOUT
    assert waited == 60.0  # interval and three timeouts are over


def test_a_peer_that_fell_silent_after_a_word_is_lost_a_timeout_later(pulse: Pulse) -> None:
    beat(pulse, 25.0)
    pulse.heard = True
    assert pulse.lost(35.0, None) is None
    assert pulse.lost(45.0, None) == 20.0


def test_a_frozen_peer_is_lost_within_interval_and_timeout_and_told_once(pulse: Pulse) -> None:
    beat(pulse, 25.0)
    assert pulse.lost(34.9, None) is None
    assert pulse.lost(INTERVAL + TIMEOUT, None) == 10.0
    assert pulse.lost(100.0, None) is None
    assert pulse.next_deadline is None


def test_no_time_runs_before_the_kernel_has_it(pulse: Pulse) -> None:
    pulse.sent("1", 25.0)
    assert pulse.next_deadline is None
    assert pulse.lost(99.0, None) is None
    assert pulse.written("1", 99.0)
    assert pulse.lost(109.0, None) == 84.0


def test_another_frames_ref_is_neither_written_nor_answered(pulse: Pulse) -> None:
    pulse.sent("7", 25.0)
    assert not pulse.written("8", 25.0)
    assert pulse.answered("8", 26.0) is None
    assert pulse.answered("7", 26.0) == 1.0
    assert pulse.answered("7", 27.0) is None


def test_a_late_answer_does_not_count_while_a_join_is_outstanding(pulse: Pulse) -> None:
    beat(pulse, 25.0)
    assert pulse.lost(35.0, 40.0) is None
    assert pulse.late
    assert pulse.next_deadline == 40.0
    assert pulse.answered("1", 39.0) == 14.0
    assert not pulse.late


def test_a_silent_peer_is_lost_when_the_join_should_have_been_answered_whatever_is_asked_next(pulse: Pulse) -> None:
    beat(pulse, 25.0)
    assert pulse.lost(35.0, 40.0) is None
    assert pulse.lost(40.0, 50.0) == 15.0  # another join is outstanding, and nothing was heard


def test_a_peer_that_answers_joins_one_by_one_is_waited_for(pulse: Pulse) -> None:
    beat(pulse, 25.0)
    for now in (35.0, 40.0, 45.0, 50.0):
        assert pulse.lost(now, now + 5.0) is None
        pulse.heard = True
    assert pulse.lost(55.0, None) is None
    assert pulse.lost(65.0, None) == 40.0


def test_a_join_that_is_not_written_yet_gets_the_timeout(pulse: Pulse) -> None:
    beat(pulse, 25.0)
    assert pulse.lost(35.0, 35.0) is None
    assert pulse.next_deadline == 45.0


def test_doubt_asks_now_unless_an_answer_is_awaited(pulse: Pulse) -> None:
    pulse.hasten(3.0)
    assert pulse.is_due(3.0)
    beat(pulse, 3.0)
    pulse.hasten(4.0)
    assert not pulse.is_due(4.0)
    assert pulse.next_deadline == 13.0


def test_doubt_about_a_connection_that_is_gone_asks_nothing(pulse: Pulse) -> None:
    pulse.stop()
    pulse.hasten(3.0)
    assert not pulse.is_due(3.0)
    assert pulse.next_deadline is None


def test_what_is_not_read_is_not_missed(pulse: Pulse) -> None:
    beat(pulse, 25.0)
    pulse.unseen(34.0)
    assert pulse.next_deadline == 35.0
    pulse.unseen(35.0)
    assert pulse.is_due(35.0)
    assert pulse.lost(35.0, None) is None


def test_a_new_connection_begins_anew(pulse: Pulse) -> None:
    beat(pulse, 25.0)
    assert pulse.lost(35.0, 40.0) is None
    pulse.start(50.0)
    assert not pulse.late
    assert pulse.next_deadline == 75.0
    assert pulse.answered("1", 51.0) is None


def test_it_tells_for_how_long_an_answer_has_been_awaited(pulse: Pulse) -> None:
    assert pulse.awaited(24.0) == 0.0
    beat(pulse, 25.0)
    assert pulse.awaited(28.0) == 3.0
    assert pulse.answered("1", 28.0) == 3.0
    assert pulse.awaited(29.0) == 0.0
