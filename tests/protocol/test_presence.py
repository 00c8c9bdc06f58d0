"""Presence: the server's state and diffs, in any order, end where the server is."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rtpool.protocol.presence import MAX_WAITING, PresenceCalls, PresenceChange, PresenceState, track_body


def metas(*refs: str) -> dict[str, Any]:
    return {"metas": [{"phx_ref": ref} for ref in refs]}


def test_a_state_joins_everybody() -> None:
    state = PresenceState()
    changes = state.sync_state({"ann": metas("1"), "bob": metas("2", "3")})
    assert [(c.type, c.key, len(c.metas), c.current) for c in changes] == [
        ("join", "ann", 1, ()),
        ("join", "bob", 2, ()),
    ]
    assert set(state.snapshot()) == {"ann", "bob"}
    assert state.synced


def test_a_diff_before_the_state_waits_for_it() -> None:
    state = PresenceState()
    assert state.sync_diff({"joins": {"bob": metas("2")}, "leaves": {}}) is None
    changes = state.sync_state({"ann": metas("1")})
    assert [c.key for c in changes] == ["ann", "bob"]


def test_an_update_keeps_the_key_and_reports_both_sides() -> None:
    state = PresenceState()
    state.sync_state({"ann": metas("1")})
    changes = state.sync_diff({"joins": {"ann": metas("2")}, "leaves": {"ann": metas("1")}})
    assert changes == [
        PresenceChange("join", "ann", ({"phx_ref": "2"},), ({"phx_ref": "1"},)),
        PresenceChange("leave", "ann", ({"phx_ref": "1"},), ({"phx_ref": "2"},)),
    ]
    assert state.snapshot() == {"ann": ({"phx_ref": "2"},)}


def test_an_unknown_leave_is_skipped_and_the_rest_is_done() -> None:
    state = PresenceState()
    state.sync_state({"ann": metas("1")})
    changes = state.sync_diff({"joins": {}, "leaves": {"nobody": metas("9"), "ann": metas("1")}})
    assert changes is not None
    assert [c.key for c in changes] == ["ann"]
    assert state.snapshot() == {}


def test_the_state_after_a_rejoin_yields_who_left_meanwhile() -> None:
    state = PresenceState()
    state.sync_state({"ann": metas("1"), "bob": metas("2")})
    state.rejoined()
    assert state.synced is False
    assert state.sync_diff({"joins": {}, "leaves": {}}) is None
    changes = state.sync_state({"bob": metas("2"), "eve": metas("5")})
    assert [(c.type, c.key) for c in changes] == [("join", "eve"), ("leave", "ann")]


def test_malformed_payloads_change_nothing() -> None:
    state = PresenceState()
    assert state.sync_state(["x"]) == []
    assert state.sync_diff("x") == []
    assert state.sync_diff({"joins": {"a": 1, "b": {"metas": "x"}, "c": {"metas": [1]}}, "leaves": None}) is not None


def test_a_state_that_lacks_one_of_several_presences_of_a_key_yields_its_leave() -> None:
    state = PresenceState()
    state.sync_state({"ann": metas("1", "2")})
    state.rejoined()
    assert state.sync_state({"ann": metas("2", "3")}) == [
        PresenceChange("join", "ann", ({"phx_ref": "3"},), ({"phx_ref": "1"}, {"phx_ref": "2"})),
        PresenceChange("leave", "ann", ({"phx_ref": "1"},), ({"phx_ref": "2"}, {"phx_ref": "3"})),
    ]


def test_nobody_is_present_with_nothing_or_twice() -> None:
    state = PresenceState()
    state.sync_state({"ann": metas("1", "1"), "bob": metas()})
    assert state.snapshot() == {"ann": ({"phx_ref": "1"},)}
    assert state.sync_diff({"joins": {"eve": {"metas": [{}]}}, "leaves": {"ann": metas()}}) == []
    assert state.snapshot() == {"ann": ({"phx_ref": "1"},)}


def test_a_track_wraps_its_payload() -> None:
    assert track_body(b'{"a":1}').data == b'{"type":"presence","event":"track","payload":{"a":1}}'


def test_a_call_goes_out_at_once_and_the_next_only_after_its_answer() -> None:
    calls = PresenceCalls(5, 30.0)
    assert calls.has_news(b"{}", asked=True)
    assert calls.may_call(0.0)
    calls.called(b"{}")
    assert not calls.may_call(0.0)
    calls.answered(0.1, ok=True)
    assert calls.may_call(0.1)
    assert not calls.has_news(b"{}", asked=True), "the server knows it already"
    assert calls.has_news(None, asked=False)


def test_a_new_join_is_absent_by_itself_and_nothing_is_in_flight_or_in_doubt() -> None:
    calls = PresenceCalls(5, 30.0)
    assert calls.has_news(None, asked=True) is False
    assert calls.in_flight is False
    assert PresenceState().synced is False


def test_joins_are_counted_so_that_an_answer_to_an_earlier_one_is_told_apart() -> None:
    calls = PresenceCalls(5, 30.0)
    numbers = [calls.join_number]
    for _ in range(3):
        calls.rejoined()
        numbers.append(calls.join_number)
    assert numbers == [0, 1, 2, 3]


def test_a_sixth_call_waits_until_the_first_answer_is_thirty_seconds_old() -> None:
    calls = PresenceCalls(5, 30.0)
    for index in range(5):
        assert calls.may_call(100.0 + index)
        calls.called(b"%d" % index)
        calls.answered(100.0 + index, ok=True)
    assert not calls.may_call(129.9)
    assert calls.next_at() == 130.0
    assert calls.may_call(130.0)
    calls.called(None)
    calls.answered(130.0, ok=True)
    assert not calls.may_call(130.9)
    assert calls.next_at() == 131.0, "the second answer counts, now that the first is old"


def test_a_refused_wish_is_said_again_only_when_somebody_asks() -> None:
    calls = PresenceCalls(5, 30.0)
    calls.called(b"{}")
    calls.answered(0.0, ok=False)
    assert not calls.has_news(b"{}", asked=False)
    assert calls.has_news(b"{}", asked=True)
    assert calls.has_news(b"[]", asked=False), "another wish is another matter"


def test_a_call_in_flight_tells_just_what_it_says_until_it_is_answered() -> None:
    calls = PresenceCalls(5, 30.0)
    assert not calls.is_telling(None), "no call is in flight"
    calls.called(b"{}")
    assert calls.is_telling(b"{}")
    assert not calls.is_telling(None)
    calls.answered(0.0, ok=True)
    assert not calls.is_telling(b"{}")


def test_what_was_refused_is_said_again_under_another_token_and_what_was_taken_is_not() -> None:
    calls = PresenceCalls(5, 30.0)
    calls.called(b"{}")
    calls.answered(0.0, ok=True)
    calls.permission_changed()
    assert not calls.has_news(b"{}", asked=True)
    calls.called(b"[]")
    calls.answered(0.0, ok=False)
    calls.permission_changed()
    assert calls.has_news(b"[]", asked=False)
    assert not calls.has_news(None, asked=True), "nothing is told, and nothing is unsure any more"


def test_a_rejoin_starts_the_budget_and_the_servers_knowledge_anew() -> None:
    calls = PresenceCalls(1, 30.0)
    calls.called(b"{}")
    calls.answered(0.0, ok=True)
    assert not calls.may_call(1.0)
    calls.rejoined()
    assert calls.may_call(1.0)
    assert calls.has_news(b"{}", asked=False)
    assert not calls.has_news(None, asked=True), "a new join is absent by itself"


def test_diffs_that_wait_for_a_state_that_never_comes_are_bounded() -> None:
    presence = PresenceState()
    for index in range(MAX_WAITING + 10):
        presence.sync_diff({"joins": {f"k{index}": {"metas": [{"phx_ref": str(index)}]}}, "leaves": {}})
    assert len(presence._waiting) == MAX_WAITING


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0.001, 5)), min_size=1, max_size=60))  # no answer takes no time
def test_no_server_window_ever_sees_more_calls_than_the_budget(steps: list[tuple[float, float]]) -> None:
    """The server's fixed window starts with a call's arrival, which is anywhere between its sending and its answer."""
    calls, now, arrivals = PresenceCalls(5, 30.0), 0.0, []
    for pause, latency in steps:
        now += pause
        if not calls.may_call(now):
            now = calls.next_at()
        calls.called(None)
        arrivals.append(now + latency / 2)
        now += latency
        calls.answered(now, ok=True)
    window_start, count = arrivals[0], 0
    for arrival in arrivals:
        if arrival - window_start >= 30.0:
            window_start, count = arrival, 0
        count += 1
        assert count <= 5
