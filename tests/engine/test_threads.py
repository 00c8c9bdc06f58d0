"""Waiting: the outcome, a time-out that is the outcome, and a time-out of the wait are told apart."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

import pytest

from rtpool.engine import threads
from rtpool.engine.threads import join_all, outcome_of
from rtpool.errors import PushTimeout
from tests.support.wait import CAP


def test_an_outcome_is_returned_or_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SLICE_SECONDS", 0.01)
    good: Future[int] = Future()
    threading.Timer(0.05, good.set_result, [7]).start()
    assert outcome_of(good, CAP) == 7
    bad: Future[int] = Future()
    threading.Timer(0.05, bad.set_exception, [PushTimeout("the outcome")]).start()
    with pytest.raises(PushTimeout, match="the outcome"):
        outcome_of(bad, CAP)


@pytest.mark.parametrize("timeout", [0, 0.03])
def test_no_outcome_in_time_is_a_timeout(monkeypatch: pytest.MonkeyPatch, timeout: float) -> None:
    monkeypatch.setattr(threads, "SLICE_SECONDS", 0.01)
    with pytest.raises(FutureTimeout):
        outcome_of(Future(), timeout)


def test_joining_names_who_still_runs_and_never_waits_for_itself_or_the_unstarted() -> None:
    release = threading.Event()
    running = threading.Thread(target=release.wait, name="running")
    running.start()
    unstarted = threading.Thread(target=release.wait, name="unstarted")
    assert join_all([threading.current_thread(), unstarted, running], time.monotonic() + 0.01) == ["running"]
    release.set()
    assert join_all([running], time.monotonic() + CAP) == []
