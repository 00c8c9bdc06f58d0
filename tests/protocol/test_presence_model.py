"""
Presence against a naive model, over a line that repeats and reorders: diffs before their state, twice, in any order.

The model is the protocol's own description, on lists of references and nothing else. Where the line behaves, the truth
of the server is compared too. `tests/engine/test_presence_model.py` does the same for what Channels are told.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rtpool.protocol.presence import MAX_WAITING, PresenceChange, PresenceState

KEYS = ["ann", "bob", "eve"]
Refs = dict[str, list[str]]


@pytest.fixture(autouse=True)
def nothing_but_arguments() -> None:
    """The module's own tests are watched; watched, this one would take ten times as long."""


def payload(refs: Refs) -> dict[str, Any]:
    return {key: {"metas": [{"phx_ref": ref, "of": key} for ref in held]} for key, held in refs.items()}


keys = st.sampled_from(KEYS)
#: What no server says, and what is left of it.
ODD = [
    None,
    [],
    {"joins": None, "leaves": 1},
    {"joins": {"ann": None, "bob": {"metas": None}, "eve": {}}, "leaves": []},
    {"joins": {"ann": {"metas": [1, None, {}, {"phx_ref": 1}]}}, "leaves": {"bob": {"metas": []}}},
    {"joins": {"ann": {"metas": []}}, "leaves": {"ann": {"metas": [{}]}}},
    {"joins": payload({"bob": ["odd", "odd"]}), "leaves": payload({"bob": ["odd", "odd", "none"]})},
    payload({"bob": ["odd", "odd", "other"]}),
]


class PresenceModel(RuleBasedStateMachine):
    """`truth` is the server's, `line` what it said and did not arrive yet."""

    def __init__(self) -> None:
        super().__init__()
        self.presence = PresenceState()
        self.count = 0
        self.truth: Refs = {}
        self.line: list[tuple[str, Any]] = []
        self.arrived: list[tuple[str, Any]] = []
        self.model: Refs = {}  # what the protocol's algorithm holds
        self.synced = False
        self.waiting: list[tuple[Refs, Refs]] = []
        self.told: Refs = {}  # what joins and leaves alone add up to
        self.orderly = True  # in this join

    # The server

    @rule(key=keys, update=st.booleans())
    def come(self, key: str, update: bool) -> None:
        """A device appears; or one says something else of itself, which is a new reference for an old one."""
        self.count += 1
        held = self.truth.setdefault(key, [])
        leaves = {key: [held.pop(0)]} if update and held else {}
        held.append(str(self.count))
        self.say({key: [str(self.count)]}, leaves)

    @precondition(lambda self: any(self.truth.values()))
    @rule(data=st.data(), count=st.integers(1, 3))
    def go(self, data: st.DataObject, count: int) -> None:
        """Some leave, told in one diff."""
        leaves: Refs = {}
        for _ in range(count):
            present = [(key, ref) for key, held in sorted(self.truth.items()) for ref in held]
            if present:
                key, ref = data.draw(st.sampled_from(present))
                self.truth[key].remove(ref)
                leaves.setdefault(key, []).append(ref)
        self.say({}, leaves)

    def say(self, joins: Refs, leaves: Refs) -> None:
        self.line.append(("presence_diff", {"joins": payload(joins), "leaves": payload(leaves)}))

    @rule(lost=st.booleans())
    def join_anew(self, lost: bool) -> None:
        """What is on the line is of the join before; it may still come, and then says nothing true."""
        if lost:
            self.line.clear()
        self.presence.rejoined()
        self.synced, self.waiting = False, []
        self.orderly = not self.line
        self.arrived.clear()
        self.line.append(("presence_state", payload({k: list(v) for k, v in self.truth.items() if v})))

    # The line

    @precondition(lambda self: self.line)
    @rule(count=st.integers(1, 5))
    def arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.line))):
            self.hear(*self.line.pop(0))

    @precondition(lambda self: len(self.line) > 1)
    @rule(data=st.data())
    def overtake(self, data: st.DataObject) -> None:
        """A diff before the state it comes after, which the protocol allows, or before another, which it does not."""
        index = data.draw(st.integers(1, len(self.line) - 1))
        passed = self.line[:index]
        self.orderly &= [event for event, _ in passed] == ["presence_state"]
        self.hear(*self.line.pop(index))

    @precondition(lambda self: self.arrived)
    @rule(data=st.data())
    def arrive_again(self, data: st.DataObject) -> None:
        self.orderly = False
        self.hear(*data.draw(st.sampled_from(self.arrived)))

    @rule(odd=st.sampled_from(ODD), state=st.booleans())
    def arrive_without_sense(self, odd: Any, state: bool) -> None:
        self.orderly &= not state
        self.hear("presence_state" if state else "presence_diff", odd)

    # What must follow

    def hear(self, event: str, said: Any) -> None:
        self.arrived.append((event, said))
        before = copy.deepcopy(said)
        if event == "presence_state":
            expected: list[tuple[str, str, list[str]]] | None = self.model_state(refs_in(said))
            changes: list[PresenceChange] | None = self.presence.sync_state(said)
        else:
            sections = (refs_in(said.get("joins")), refs_in(said.get("leaves"))) if isinstance(said, dict) else None
            expected = self.model_diff(*sections) if sections else []
            changes = self.presence.sync_diff(said)
        assert said == before, "what others read too is left alone"
        assert (changes is None) == (expected is None)
        assert [(c.type, c.key, [m["phx_ref"] for m in c.metas]) for c in changes or []] == (expected or [])
        self.follow(changes or [])

    def model_state(self, new: Refs) -> list[tuple[str, str, list[str]]]:
        old = self.model
        joins = {key: [r for r in held if r not in old.get(key, [])] for key, held in new.items()}
        leaves = {key: [r for r in held if r not in new.get(key, [])] for key, held in old.items()}
        # Keys that are gone altogether come first; nothing depends on it but this comparison.
        order = [*(key for key in old if key not in new), *(key for key in new if key in old)]
        changes = self.model_apply(joins, {key: leaves[key] for key in order})
        self.synced, waiting, self.waiting = True, self.waiting, []
        for diff in waiting:
            changes += self.model_apply(*diff)
        return changes

    def model_diff(self, joins: Refs, leaves: Refs) -> list[tuple[str, str, list[str]]] | None:
        if self.synced:
            return self.model_apply(joins, leaves)
        self.waiting.append((joins, leaves))
        return None

    def model_apply(self, joins: Refs, leaves: Refs) -> list[tuple[str, str, list[str]]]:
        changes = []
        for key, refs in joins.items():
            if refs:
                self.model[key] = [r for r in self.model.get(key, []) if r not in refs] + refs
                changes.append(("join", key, refs))
        for key, refs in leaves.items():
            if refs and key in self.model:
                self.model[key] = [r for r in self.model[key] if r not in refs]
                if not self.model[key]:
                    del self.model[key]
                changes.append(("leave", key, refs))
        return changes

    def follow(self, changes: list[PresenceChange]) -> None:
        """A listener that knows only joins and leaves."""
        for change in changes:
            refs = [meta["phx_ref"] for meta in change.metas]
            held = self.told.get(change.key, [])
            current = [meta["phx_ref"] for meta in change.current]
            if change.type == "join":
                assert current == held, "what was there before"
                self.told[change.key] = [r for r in held if r not in refs] + refs
            else:
                assert current == [r for r in held if r not in refs], "what is left"
                self.told[change.key] = current
                if not current:
                    del self.told[change.key]

    @invariant()
    def all_agree(self) -> None:
        snapshot = self.presence.snapshot()
        held = {key: [meta["phx_ref"] for meta in metas] for key, metas in snapshot.items()}
        assert held == self.model == self.told
        assert all(held.values()), "nobody is there with nothing"
        assert all(len(set(refs)) == len(refs) for refs in held.values()), "nobody is there twice"
        assert all(meta["of"] == key for key, metas in snapshot.items() for meta in metas)
        assert self.presence.synced == self.synced
        assert len(self.presence._waiting) == len(self.waiting) <= MAX_WAITING

    @invariant()
    def an_orderly_line_ends_at_the_truth(self) -> None:
        if self.orderly and self.synced and not self.line:
            truth = {key: set(held) for key, held in self.truth.items() if held}
            assert {key: set(held) for key, held in self.model.items()} == truth


def refs_in(section: Any) -> Refs:
    """The references in a map of presences, as far as it is one."""
    entries = section.items() if isinstance(section, dict) else ()
    found: Refs = {}
    for key, entry in entries:
        metas = entry.get("metas") if isinstance(entry, dict) else None
        if isinstance(metas, list):
            refs = [meta.get("phx_ref") for meta in metas if isinstance(meta, dict)]
            found[key] = list(dict.fromkeys(ref for ref in refs if isinstance(ref, str)))
    return found


TestPresenceModel = PresenceModel.TestCase
TestPresenceModel.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
