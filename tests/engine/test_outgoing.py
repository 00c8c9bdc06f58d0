"""The budget of what is on its way: room, outcomes, and who waits for them."""

from __future__ import annotations

import threading
import time

import pytest

from rtpool.engine import outgoing as module
from rtpool.engine.outgoing import Outgoing, SendBudget
from rtpool.errors import ConnectionFailed, SendBufferFull
from rtpool.protocol.messages import JsonBody
from rtpool.registry import ShareKey, Subscriber
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until


def made(subscriber: Subscriber | None = None, *, size: int = 10, seconds: float = CAP) -> Outgoing:
    subscriber = subscriber or Subscriber("room", ShareKey("realtime:room"))
    return Outgoing(subscriber, "x", JsonBody(b"x" * size), False, seconds, time.monotonic() + seconds)


@pytest.fixture
def budget() -> SendBudget:
    return SendBudget(3)


def test_an_outcome_is_given_once(budget: SendBudget) -> None:
    push, error = made(), ConnectionFailed("lost")
    budget.acquire(push, joined=True)
    assert budget.settle_all([(push, "first", None), (push, "second", error)]) == [push]
    assert not budget.settle(push, None, error)
    assert push.outcome == ("first", None)
    assert push.subscriber.unsettled == 0, "and its room is freed once"


def test_listeners_hear_of_an_outcome_in_their_order_and_late_ones_at_once(budget: SendBudget) -> None:
    push, heard = made(), Recorder()
    budget.acquire(push, joined=True)
    for number in range(3):
        budget.when_settled(push, lambda number=number: heard((number, push.outcome)))  # type: ignore[misc]
    assert heard.events == []
    budget.settle(push, 7, None)
    budget.when_settled(push, lambda: heard("late"))
    assert heard.events == [(0, (7, None)), (1, (7, None)), (2, (7, None)), "late"]


def test_who_waited_in_vain_leaves_nothing_behind(budget: SendBudget) -> None:
    push = made()
    budget.acquire(push, joined=True)
    for _ in range(3):
        assert budget.wait(push, 0.0) is None
    assert push.listeners == []


def test_all_who_wait_are_woken_by_the_outcome(budget: SendBudget) -> None:
    push, got = made(), Recorder()
    budget.acquire(push, joined=True)
    waiting = [threading.Thread(target=lambda: got(budget.wait(push, CAP))) for _ in range(4)]
    for each in waiting:
        each.start()
    wait_until(lambda: len(push.listeners or ()) == 4)
    budget.settle(push, "ok", None)
    assert got.wait(4) == [("ok", None)] * 4
    for each in waiting:
        each.join(CAP)


def test_who_finds_no_room_waits_for_it_and_is_let_in_by_an_outcome(
    budget: SendBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OUTSTANDING_BYTES", 100)
    first, second = made(size=60), made(size=60)
    budget.acquire(first, joined=True)
    let_in = threading.Event()
    waiting = threading.Thread(target=lambda: (budget.acquire(second, joined=True), let_in.set()))
    waiting.start()
    wait_until(lambda: bool(budget._room._ears))
    assert not let_in.is_set()
    budget.settle(first, None, None)
    assert let_in.wait(CAP)
    waiting.join(CAP)
    assert budget._room._ears == []


def test_who_finds_no_room_until_the_deadline_is_refused_and_leaves_nothing_behind(
    budget: SendBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OUTSTANDING_BYTES", 100)
    budget.acquire(made(size=60), joined=True)
    late = made(size=60, seconds=0.0)
    with pytest.raises(SendBufferFull, match="60 bytes wait to be sent"):
        budget.acquire(late, joined=True)
    assert late.subscriber.unsettled == 0
    assert budget._room._ears == []
