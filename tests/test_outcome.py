"""
An outcome: given once by one thread, waited for by any number of others, without a lock.
"""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import TimeoutError as FutureTimeout

import pytest

from rtpool.outcome import Outcome
from tests.support.wait import wait_until

CAP = 10.0


def waiting(outcome: Outcome[int], count: int = 1) -> tuple[list[threading.Thread], list[object]]:
    """So many threads that wait for it, and what they got."""
    got: list[object] = []

    def wait() -> None:
        try:
            got.append(outcome.result(CAP))
        except KeyError as error:
            got.append(error)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(outcome._ears) == count)
    return threads, got


def test_what_is_given_before_somebody_waits_is_had_at_once() -> None:
    outcome: Outcome[int] = Outcome()
    assert not outcome.done()
    outcome.set_result(7)
    assert outcome.done()
    assert outcome.result(0.0) == 7


def test_everybody_who_waits_is_woken_by_the_value() -> None:
    outcome: Outcome[int] = Outcome()
    threads, got = waiting(outcome, 3)
    outcome.set_result(7)
    for thread in threads:
        thread.join(CAP)
    assert got == [7, 7, 7]
    assert not outcome._ears


def test_everybody_who_waits_is_woken_by_the_error() -> None:
    outcome: Outcome[int] = Outcome()
    threads, got = waiting(outcome, 2)
    error = KeyError("why")
    assert outcome.error is None
    outcome.set_exception(error)
    for thread in threads:
        thread.join(CAP)
    assert got == [error, error]
    assert outcome.error is error
    with pytest.raises(KeyError):
        outcome.result(0.0)


def test_who_waits_in_vain_is_forgotten() -> None:
    outcome: Outcome[int] = Outcome()
    with pytest.raises(FutureTimeout):
        outcome.result(0.0)
    assert not outcome._ears


def test_what_comes_just_as_somebody_gives_up_is_had(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome: Outcome[int] = Outcome()

    class Late:
        """A lock whose wait ends without it, in the very moment in which the outcome comes."""

        def acquire(self, timeout: float = -1) -> bool:
            if timeout >= 0:
                outcome.set_result(7)
            return False

        def release(self) -> None:
            """Too late."""

    monkeypatch.setattr(threading, "Lock", Late)
    assert outcome.result(1.0) == 7


def test_what_comes_just_before_somebody_listens_is_had(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome: Outcome[int] = Outcome()
    plain = threading.Lock

    def lock() -> object:
        outcome.set_result(7)
        return plain()

    monkeypatch.setattr(threading, "Lock", lock)
    assert outcome.result(0.0) == 7
    assert not outcome._ears


def test_who_gives_up_just_as_he_is_to_be_woken_disturbs_nobody() -> None:
    outcome: Outcome[int] = Outcome()
    woken: list[int] = []

    class Ears(list):  # type: ignore[type-arg]
        """The last one leaves between the look and the grasp."""

        def pop(self, index: int = -1) -> object:  # type: ignore[override]
            woken.append(index)
            self.clear()
            return super().pop(index)

    outcome._ears = Ears([lambda: None])
    outcome.set_result(7)
    assert woken == [0]
    assert outcome.result(0.0) == 7


def test_it_is_given_once() -> None:
    outcome: Outcome[int] = Outcome()
    outcome.set_result(7)
    with pytest.raises(AssertionError):
        outcome.set_result(8)


def test_an_error_that_was_raised_keeps_nothing_alive() -> None:
    outcome: Outcome[int] = Outcome()

    class Kept(Exception):
        """One that can be referred to weakly."""

    error: Exception | None = Kept()
    alive = weakref.ref(error)
    outcome.set_exception(error)
    gc.disable()
    try:
        with pytest.raises(Kept) as raised:
            outcome.result(0.0)
        del raised
        error = None
        del outcome
        assert alive() is None, "no cycle of the error, its traceback and who waited"
    finally:
        gc.enable()
