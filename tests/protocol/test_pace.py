"""The pace of joins and broadcasts: never more than a server of this limit lets pass, and slower once it refused."""

from __future__ import annotations

import bisect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtpool.protocol.pace import Pace
from rtpool.testing.limits import Rate

rates = st.sampled_from([0.5, 1, 3, 50, 7.5])


def spent(pace: Pace, start: float, seconds: float) -> list[float]:
    """When a pace grants what is always asked for."""
    granted, now = [], start
    while now < start + seconds:
        if pace.grant(now):
            granted.append(now)
        else:
            assert pace.next_at(now) > now
            now = pace.next_at(now)
    return granted


@given(per_second=rates, steps=st.lists(st.floats(0.0, 0.4), max_size=200))
def test_no_second_ever_holds_more_than_the_limit_and_none_waits_without_need(
    per_second: float, steps: list[float]
) -> None:
    pace, now = Pace(per_second), 0.0
    at_once = max(1, int(per_second / 4))
    share = 1.3 * at_once / per_second
    granted: list[float] = []
    for step in steps:
        now += step
        if pace.grant(now):
            granted.append(now)
        else:
            assert now < pace.next_at(now)
            assert sum(at + share > now for at in granted) == at_once, "refused without need"
    for at in granted:
        assert sum(at <= other < at + max(1.0, 1.0 / per_second) for other in granted) <= max(1, per_second)


def test_a_part_of_the_second_passes_at_once_and_the_next_waits_for_its_time() -> None:
    pace = Pace(12)
    assert [pace.grant(0.0) for _ in range(4)] == [True, True, True, False]
    assert pace.next_at(0.0) == pytest.approx(1.3 / 4)
    assert [pace.grant(0.33) for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 7, 8, 10, 11, 50, 99, 100, 800])
@pytest.mark.parametrize("late", [0.0, 0.2])
def test_no_second_of_a_server_sees_more_than_the_limit_though_it_is_late_with_some(limit: int, late: float) -> None:
    sent = spent(Pace(limit), 0.0, 5.0)
    for index, begin in enumerate(sent):
        # What came shortly before, it only gets to now.
        assert bisect.bisect_left(sent, begin + 1.0) - bisect.bisect_left(sent, begin - late) <= limit, index


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 50, 100])
def test_a_server_with_the_very_same_limit_never_finds_it_reached(limit: int) -> None:
    # What is sent over 5.2 s arrives within the server's first five, the worst the network can do.
    clock = [0.0]
    rate = Rate(lambda: clock[0], 5.0)
    for at in spent(Pace(limit), 0.0, 130.0):
        clock[0] = max(0.0, at - 0.19)
        assert not rate.over(limit), f"refused at {at}"
        rate.count()


def test_each_refusal_halves_the_pace_and_refusals_of_one_moment_are_one() -> None:
    pace = Pace(50)
    assert pace.per_second(0.0) == 50
    assert pace.slow_down(0.0)
    assert not pace.slow_down(0.1)
    assert not pace.slow_down(4.9)
    assert pace.per_second(4.9) == 25
    assert pace.slow_down(5.0)
    assert pace.per_second(5.0) == 12.5
    for at in (10.0, 15.0, 20.0, 25.0):
        assert pace.slow_down(at)
    assert pace.per_second(25.0) == 1
    assert not pace.slow_down(30.0), "it cannot be any slower"
    assert pace.per_second(30.0) == 1


def test_a_pace_below_one_a_second_stays_what_it_is() -> None:
    pace = Pace(0.5)
    assert not pace.slow_down(0.0)
    assert pace.per_second(0.0) == 0.5
    assert spent(pace, 1.0, 8.0) == pytest.approx([1.0, 3.6, 6.2, 8.8])


def test_the_pace_doubles_with_every_minute_without_a_refusal_up_to_what_it_was() -> None:
    pace = Pace(50)
    pace.slow_down(0.0)
    pace.slow_down(10.0)
    assert pace.per_second(69.9) == 12.5
    assert pace.per_second(70.0) == 25
    assert pace.per_second(129.9) == 25
    assert pace.per_second(130.0) == 50
    assert pace.per_second(1e9) == 50


def test_a_refusal_on_the_way_up_halves_what_had_been_reached_and_starts_the_minute_anew() -> None:
    pace = Pace(64)
    for at in (0.0, 5.0, 10.0):
        pace.slow_down(at)
    assert pace.per_second(70.0) == 16
    assert pace.slow_down(75.0)
    assert pace.per_second(75.0) == 8
    assert not pace.slow_down(79.0)
    assert pace.per_second(138.9) == 8
    assert pace.per_second(139.0) == 16


def test_a_slower_pace_holds_at_once_also_for_what_went_before() -> None:
    pace = Pace(8)
    assert spent(pace, 0.0, 0.1) == [0.0, 0.0]
    pace.slow_down(0.1)
    assert spent(pace, 0.1, 1.0) == pytest.approx([0.325, 0.65, 0.975])
    pace.slow_down(5.5)
    assert spent(pace, 5.5, 1.0) == pytest.approx([5.5, 6.15])
