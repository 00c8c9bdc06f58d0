"""Presence: the server's state and diffs, in any order, end where the server is."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rtpool.protocol.presence import PresenceChange, PresenceState, track_body


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
    assert state.sync_diff({"joins": {}, "leaves": {}}) is None
    changes = state.sync_state({"bob": metas("2"), "eve": metas("5")})
    assert [(c.type, c.key) for c in changes] == [("join", "eve"), ("leave", "ann")]


def test_malformed_payloads_change_nothing() -> None:
    state = PresenceState()
    assert state.sync_state(["x"]) == []
    assert state.sync_diff("x") == []
    assert state.sync_diff({"joins": {"a": 1, "b": {"metas": "x"}, "c": {"metas": [1]}}, "leaves": None}) is not None


def test_a_track_wraps_its_payload() -> None:
    assert track_body(b'{"a":1}').data == b'{"type":"presence","event":"track","payload":{"a":1}}'


KEYS = st.sampled_from(["ann", "bob", "eve"])


@given(
    moves=st.lists(st.tuples(st.sampled_from(["join", "leave", "update"]), KEYS), max_size=30),
    state_at=st.integers(0, 30),
)
def test_diffs_and_state_in_any_interleaving_end_equal_to_the_server(
    moves: list[tuple[str, str]], state_at: int
) -> None:
    server: dict[str, list[dict[str, str]]] = {}
    client = PresenceState()
    seen: dict[str, list[str]] = {}
    number = 0

    def heed(changes: list[PresenceChange] | None) -> None:
        for change in changes or ():
            refs = [m["phx_ref"] for m in change.metas]
            held = seen.setdefault(change.key, [])
            if change.type == "join":
                held += refs
            else:
                seen[change.key] = [r for r in held if r not in refs]

    for index in range(max(len(moves), state_at) + 1):
        if index == state_at:
            heed(client.sync_state({k: {"metas": list(v)} for k, v in server.items() if v}))
        if index >= len(moves):
            continue
        kind, key = moves[index]
        joins: dict[str, Any] = {}
        leaves: dict[str, Any] = {}
        held = server.setdefault(key, [])
        if kind in ("leave", "update") and held:
            leaves[key] = {"metas": [held.pop(0)]}
        if kind in ("join", "update"):
            number += 1
            meta = {"phx_ref": str(number)}
            held.append(meta)
            joins[key] = {"metas": [meta]}
        if index >= state_at or not client.synced:
            heed(client.sync_diff({"joins": joins, "leaves": leaves}) if index >= state_at else None)

    expected = {key: {m["phx_ref"] for m in held} for key, held in server.items() if held}
    assert {key: {m["phx_ref"] for m in held} for key, held in client.snapshot().items()} == expected
    assert {key: set(refs) for key, refs in seen.items() if refs} == expected
