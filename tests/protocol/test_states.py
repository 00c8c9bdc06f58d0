"""The table of channel states: complete, reachable, and quiet about what has no meaning."""

from __future__ import annotations

import pytest

from rtpool.events import ChannelState
from rtpool.protocol.states import TRANSITIONS, ChannelInput, next_state

#: Written from the life of a channel in Phoenix, not from the table under test: what follows in each state, by its
#: initial (d is joined), upon each input; a dot is nothing.
LIFE = """
                closed  joining  joined  errored  leaving
join            j       j        j       j        .
join_ok         .       d        .       .        l
join_error      .       e        .       .        l
join_timeout    .       e        .       .        .
leave           .       l        l       c        .
leave_ok        .       .        .       .        c
leave_timeout   .       .        .       .        c
phx_error       .       e        e       .        l
phx_close       .       e        e       e        c
disconnected    .       e        e       e        c
"""
INITIALS = {
    ".": None,
    "d": ChannelState.JOINED,
    **{state.value[0]: state for state in ChannelState if state.value != "joined"},
}
STATES, *ROWS = (line.split() for line in LIFE.strip().split("\n"))
CELLS = [(state, row[0], initial) for row in ROWS for state, initial in zip(STATES, row[1:], strict=True)]


@pytest.mark.parametrize(("state", "happened", "initial"), CELLS, ids="-".join)
def test_what_follows_is_what_the_protocol_says(state: str, happened: str, initial: str) -> None:
    assert next_state(ChannelState(state), ChannelInput(happened)) is INITIALS[initial]


def test_the_table_has_every_input_in_every_state() -> None:
    assert {(state, happened) for state, happened, _ in CELLS} == {
        (state.value, happened.value) for state in ChannelState for happened in ChannelInput
    }


def test_every_state_can_be_reached_and_every_state_can_end() -> None:
    def reachable(start: ChannelState) -> set[ChannelState]:
        seen, todo = {start}, [start]
        while todo:
            state = todo.pop()
            for (source, _), target in TRANSITIONS.items():
                if source is state and target not in seen:
                    seen.add(target)
                    todo.append(target)
        return seen

    assert reachable(ChannelState.CLOSED) == set(ChannelState)
    assert all(ChannelState.CLOSED in reachable(state) for state in ChannelState)


def test_every_input_means_something_somewhere() -> None:
    assert {happened for _, happened in TRANSITIONS} == set(ChannelInput)


def test_a_disconnect_has_a_meaning_in_every_live_state() -> None:
    for state in set(ChannelState) - {ChannelState.CLOSED}:
        assert next_state(state, ChannelInput.DISCONNECTED) is not None


def test_a_leaving_channel_never_comes_back_by_what_the_server_says() -> None:
    server_says = [
        ChannelInput.JOIN_OK,
        ChannelInput.JOIN_ERROR,
        ChannelInput.PHX_ERROR,
        ChannelInput.PHX_CLOSE,
        ChannelInput.LEAVE_OK,
    ]
    for happened in server_says:
        assert next_state(ChannelState.LEAVING, happened) in (ChannelState.LEAVING, ChannelState.CLOSED)


def test_what_is_not_in_the_table_is_none() -> None:
    assert next_state(ChannelState.CLOSED, ChannelInput.JOIN_OK) is None
    assert next_state(ChannelState.JOINED, ChannelInput.JOIN_ERROR) is None
    assert next_state(ChannelState.LEAVING, ChannelInput.JOIN) is None
