"""What is asked of a server's store, what is new of its answer, and when an answer may lack its beginning."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rtpool.errors import InvalidType, InvalidValue
from rtpool.protocol.replay import MARGIN_MS, MAX_REPLAYED, MAX_SEEN, Replay, ReplayRequest, read_replay

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
NOON_MS = int(NOON.timestamp() * 1000)


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        (None, (False, None)),
        (False, (False, None)),
        (True, (True, None)),
        ({"since": 5}, (True, ReplayRequest(5, 25))),
        ({"since": 5, "limit": 2}, (True, ReplayRequest(5, 2))),
        ({"since": NOON}, (True, ReplayRequest(NOON_MS, 25))),
        ({"since": NOON.astimezone(timezone(timedelta(hours=5)))}, (True, ReplayRequest(NOON_MS, 25))),
    ],
)
def test_a_replay_is_read_as_it_is_meant(given_: Any, wanted: Any) -> None:
    assert read_replay(given_) == wanted


@pytest.mark.parametrize(
    ("given_", "error", "words"),
    [
        (7, InvalidType, "not int"),
        ("yes", InvalidType, "not str"),
        ({}, InvalidValue, "since"),
        ({"since": 1, "until": 2}, InvalidValue, "until"),
        ({"since": NOON.replace(tzinfo=None)}, InvalidValue, "naive 2026-03-01T12:00:00"),
        ({"since": 1.5}, InvalidType, "whole number"),
        ({"since": True}, InvalidType, "whole number"),
        ({"since": -1}, InvalidValue, "0 to 253402300799999"),
        ({"since": 10**5000}, InvalidValue, "0 to 253402300799999"),
        ({"since": 1, "limit": 0}, InvalidValue, "1 to 25, not 0"),
        ({"since": 1, "limit": 26}, InvalidValue, "1 to 25, not 26"),
        ({"since": 1, "limit": None}, InvalidType, "limit"),
    ],
)
def test_a_replay_that_means_nothing_is_refused(given_: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_replay(given_)


def test_a_request_is_written_as_a_join_says_it() -> None:
    assert ReplayRequest(5).to_wire() == {"since": 5, "limit": MAX_REPLAYED}


def test_the_first_join_asks_for_what_the_user_wants_and_a_rejoin_for_what_was_lost() -> None:
    replay = Replay(ReplayRequest(1_000, 3))
    assert replay.request(None) == ReplayRequest(1_000, 3)
    assert replay.joined(50_000)
    assert replay.request(60_000) == ReplayRequest(1_000, 3), "it was lost before it was over"
    assert replay.joined(61_000)
    assert not replay.finished()
    assert replay.request(90_000) == ReplayRequest(90_000 - MARGIN_MS, 25)
    assert replay.joined(95_000)
    assert replay.request(None) is None, "nothing was interrupted"
    assert not replay.joined(96_000)


def test_without_a_first_wish_nothing_older_than_the_first_join_is_asked_for() -> None:
    replay = Replay(None)
    assert replay.request(None) is None
    replay.joined(50_000)
    assert replay.request(51_000) == ReplayRequest(50_000, 25)


def test_since_never_goes_back_beyond_the_users_own() -> None:
    replay = Replay(ReplayRequest(49_000))
    replay.request(None)
    replay.joined(50_000)
    replay.finished()
    assert replay.request(50_001) == ReplayRequest(49_000, 25)


def test_what_was_had_is_known_by_its_id_also_when_it_came_live() -> None:
    replay = Replay(None)
    replay.joined(0)
    assert replay.take("a", replayed=False)
    replay.request(60_000)
    replay.joined(61_000)
    assert [replay.take(i, replayed=True) for i in ("a", "b", "c")] == [False, True, True]
    assert replay.take("b", replayed=False), "senders choose ids too, and may choose one twice"
    assert replay.count == 2


def test_a_full_replay_is_cut_unless_it_reaches_what_was_had() -> None:
    replay = Replay(None)
    replay.joined(0)
    replay.take("known", replayed=False)
    replay.request(60_000)
    replay.joined(61_000)
    for index in range(MAX_REPLAYED):
        assert not replay.truncated
        replay.take(f"new-{index}", replayed=True)
    assert replay.truncated

    replay.request(90_000)
    replay.joined(91_000)
    replay.take("new-24", replayed=True)
    for index in range(MAX_REPLAYED - 1):
        replay.take(f"newer-{index}", replayed=True)
    assert not replay.truncated


def test_a_first_replay_that_is_full_is_told_as_cut_once() -> None:
    replay = Replay(ReplayRequest(0))
    replay.request(None)
    replay.joined(50_000)
    for index in range(MAX_REPLAYED):
        replay.take(str(index), replayed=True)
    assert replay.finished()
    assert not replay.finished()


def test_the_newest_are_kept_for_channels_that_come_later_up_to_the_users_limit() -> None:
    replay = Replay(ReplayRequest(0, 2))
    for name in "abc":
        replay.remember(name)
    assert replay.recent == ("b", "c")
    nothing = Replay(None)
    nothing.remember("a")
    assert nothing.recent == ()


def test_the_memory_of_ids_is_bounded_and_forgets_the_oldest() -> None:
    replay = Replay(None)
    for index in range(MAX_SEEN + 1):
        assert replay.take(str(index), replayed=False)
    assert not replay.take(str(MAX_SEEN), replayed=True)
    assert replay.take("0", replayed=True), "forgotten"
    assert len(replay._seen) == MAX_SEEN


@given(st.lists(st.one_of(st.just("drop"), st.integers(0, 9)), max_size=80))
def test_however_often_the_line_drops_each_stored_message_comes_once_and_in_order(steps: list[Any]) -> None:
    """A store, a line that drops and comes back between any two messages, and never more than 25 lost at a time."""
    store: list[str] = []
    had: list[str] = []
    replay = Replay(None)
    replay.joined(0)
    connected, missed = True, 0
    for step in [*steps, "drop", 0]:
        if step == "drop":
            connected = False
            continue
        for _ in range(step if missed + step <= MAX_REPLAYED else 0):
            store.append(f"m{len(store)}")
            if connected:
                had += [store[-1]] if replay.take(store[-1], replayed=False) else []
            else:
                missed += 1
        if not connected:
            replay.request(1)
            replay.joined(2)
            had += [m for m in store[-MAX_REPLAYED:] if replay.take(m, replayed=True)]
            assert replay.count == missed
            connected, missed = True, 0
    assert had == store
