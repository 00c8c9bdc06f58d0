"""Waiting: the outcome, a time-out that is the outcome, and a time-out of the wait are told apart."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

import pytest

from rtpool.engine import threads
from rtpool.engine.threads import PoolThread, closing, join_all, outcome_of
from rtpool.errors import PushTimeout
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until


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


def test_threads_of_pools_that_close_do_not_wait_for_each_other_but_for_the_rest() -> None:
    release, both, outcomes = threading.Event(), threading.Barrier(2), Recorder()
    bystander = PoolThread(release.wait, "bystander")

    def close(others: list[threading.Thread]) -> None:
        both.wait(CAP)
        with closing(), closing():  # a close within a close is one
            outcomes(join_all(others, time.monotonic() + CAP))
        assert release.wait(CAP)  # the rest of the user's code

    pool: list[threading.Thread] = [bystander]
    closers = [PoolThread(close, f"closer-{number}", (pool,)) for number in range(2)]
    pool += [*closers, PoolThread(close, "unstarted")]
    bystander.start()
    for closer in closers:
        closer.start()
    wait_until(lambda: len(threads._closers) == 2, "both of them wait")
    assert not outcomes.events, "the bystander runs"
    release.set()
    assert outcomes.wait(2) == [[], []]
    assert join_all(pool, time.monotonic() + CAP) == []
    assert not threads._closers


def test_a_thread_of_a_pool_waits_for_another_that_closes_nothing() -> None:
    release, outcomes = threading.Event(), Recorder()
    busy = PoolThread(release.wait, "busy")
    busy.start()

    def close() -> None:
        with closing():
            outcomes(join_all([busy], time.monotonic() + 0.01))

    closer = PoolThread(close, "closer")
    closer.start()
    assert outcomes.wait(1) == [["busy"]]
    release.set()
    assert join_all([busy, closer], time.monotonic() + CAP) == []
