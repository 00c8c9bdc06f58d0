"""The pace of joins: never more than the limit in any second, never less than possible."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rtpool.protocol.pace import Pace


@given(per_second=st.sampled_from([0.5, 1, 3, 50, 7.5]), steps=st.lists(st.floats(0.0, 0.4), max_size=200))
def test_no_window_ever_holds_more_than_the_limit(per_second: float, steps: list[float]) -> None:
    pace, now = Pace(per_second), 0.0
    limit = max(1, int(per_second))
    granted = []
    for step in steps:
        now += step
        if pace.grant(now):
            granted.append(now)
        else:
            assert now < pace.next_at()
            assert sum(at > now - limit / per_second for at in granted) == limit, "refused without need"
    for index in range(len(granted) - limit):
        assert granted[index + limit] - granted[index] >= limit / per_second


def test_a_full_window_passes_at_once_and_the_next_waits_for_it_to_move() -> None:
    pace = Pace(3)
    assert [pace.grant(0.0) for _ in range(4)] == [True, True, True, False]
    assert pace.next_at() == 1.0
    assert pace.grant(1.0)
