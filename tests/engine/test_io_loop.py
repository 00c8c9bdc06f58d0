"""The I/O loop: calls in order, timers when due, an end that answers, and a failure that is told."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

import pytest

from rtpool.engine.io_loop import ASK_SECONDS, IoLoop
from tests.support.recorder import Recorder
from tests.support.wait import CAP

Parts = tuple[IoLoop, Recorder]


@pytest.fixture
def parts() -> Parts:
    ends = Recorder()
    return IoLoop("test", on_interrupt=lambda: ends("interrupted"), on_failure=ends, on_end=lambda: ends(None)), ends


def finish(loop: IoLoop) -> None:
    loop.post(loop.stop)
    assert loop.join(time.monotonic() + CAP) == []


def test_calls_are_made_in_order_on_the_io_thread(parts: Parts) -> None:
    loop, _ = parts
    seen = Recorder()
    loop.post(seen, "before the start")
    loop.start()
    for number in range(1_000):
        loop.post(seen, number)
    loop.post(lambda: seen(threading.current_thread().name))
    loop.post(lambda: seen(loop.is_current_thread()))
    assert seen.wait(1_003) == ["before the start", *range(1_000), "rtpool-test-io", True]
    assert not loop.is_current_thread()
    finish(loop)


def test_what_many_threads_post_comes_in_the_order_of_each_and_is_called_if_and_only_if_that_was_said(
    parts: Parts,
) -> None:
    loop, _ = parts
    called: list[tuple[int, int]] = []
    said: list[list[tuple[int, int]]] = [[] for _ in range(8)]
    enough = threading.Event()

    def post(thread: int) -> None:
        number = 0
        while loop.post(called.append, (thread, number)):
            said[thread].append((thread, number))
            number += 1
            if number == 2_000:
                enough.set()
            if not number % 100:
                time.sleep(0)  # greenlets take turns only where they wait

    threads = [threading.Thread(target=post, args=(thread,)) for thread in range(8)]
    loop.start()
    for thread in threads:
        thread.start()
    assert enough.wait(CAP)
    finish(loop)
    for thread in threads:
        thread.join(CAP)
    for thread, accepted in enumerate(said):
        assert [each for each in called if each[0] == thread] == accepted
    assert not loop._inbox


def test_what_is_posted_just_as_the_loop_ends_is_taken_back_and_that_is_said(parts: Parts) -> None:
    loop, _ = parts
    called = Recorder()
    loop.start()

    class Late(deque[object]):
        def append(self, posted: object) -> None:
            loop._inbox = plain
            finish(loop)  # between the look at whether it runs and this
            loop._inbox = self
            super().append(posted)

    plain, loop._inbox = loop._inbox, Late()
    assert not loop.post(called, 1)
    assert not loop._inbox
    assert called.events == []


def test_timers_fire_in_order_of_their_time_and_cancelled_ones_never(parts: Parts) -> None:
    loop, _ = parts
    seen = Recorder()

    def arm() -> None:
        loop.call_later(0.03, lambda: seen("third"))
        loop.call_later(0.01, lambda: seen("second"))
        loop.call_later(0.02, lambda: seen("never")).cancel()
        loop.call_at(0.0, lambda: seen("first"))

    loop.post(arm)
    loop.start()
    assert seen.wait(3) == ["first", "second", "third"]
    finish(loop)


def test_after_the_end_a_post_is_refused_and_late_ones_were_answered(parts: Parts) -> None:
    loop, ends = parts
    loop.start()
    late = Recorder()

    def stop_then_post() -> None:
        loop.stop()
        loop.post(late, "posted while ending")

    loop.post(stop_then_post)
    assert late.wait(1)
    assert ends.wait(1) == [None]
    assert loop.join(time.monotonic() + CAP) == []
    assert loop.post(late, "too late") is False


def test_a_failing_loop_tells_why_and_ends(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    loop, ends = parts
    loop.start()

    def fail() -> None:
        raise LookupError("a bug")

    loop.post(fail)
    assert str(ends.wait(2)[0]) == "a bug"
    assert loop.join(time.monotonic() + CAP) == []
    assert "a bug" in caplog.text


def test_an_interrupt_is_heard_without_a_lock(parts: Parts) -> None:
    loop, ends = parts
    loop.start()

    class Forgotten:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            loop.interrupt()

    gc.disable()
    try:
        Forgotten()
        gc.collect()  # which may strike anywhere
    finally:
        gc.enable()
    assert ends.wait(1) == ["interrupted"]
    finish(loop)


def test_an_idle_loop_sleeps(parts: Parts) -> None:
    loop, _ = parts
    turns = Recorder()
    inner: Callable[[], None] = loop._turn
    loop._turn = lambda: (turns(1), inner())[1]  # type: ignore[method-assign]
    loop.start()
    done = threading.Event()
    loop.post(done.set)
    assert done.wait(CAP)
    settled = len(turns.events)
    threading.Event().wait(0.2)
    assert len(turns.events) <= settled + 1
    finish(loop)


def test_joining_from_the_io_thread_does_not_wait_for_itself(parts: Parts) -> None:
    loop, _ = parts
    loop.start()
    outcome = Recorder()
    loop.post(lambda: outcome(loop.join(time.monotonic() + CAP)))
    assert outcome.wait(1) == [[]]
    finish(loop)


def test_cancelled_timers_are_forgotten_long_before_they_are_due(parts: Parts) -> None:
    loop, _ = parts
    done, fired = Recorder(), Recorder()

    class Payload:
        def fire(self) -> None:
            fired(self)

    def arm() -> None:
        loop.call_later(0.01, lambda: fired("the one that stays"))
        first = Payload()
        memory = weakref.ref(first)
        timer = loop.call_later(3_600.0, first.fire)
        for _ in range(10_000):
            loop.call_later(3_600.0, Payload().fire).cancel()
        timer.cancel()
        del first
        done((len(loop._timers), memory()))

    loop.post(arm)
    loop.start()
    ((timers, payload),) = done.wait(1)
    assert timers < 1_000
    assert payload is None
    assert fired.wait(1) == ["the one that stays"]
    finish(loop)


def test_a_timer_that_is_years_away_is_no_failure(parts: Parts) -> None:
    loop, ends = parts
    seen = Recorder()

    def arm() -> None:
        loop.call_later(3e8, lambda: seen("never"))
        loop.call_later(float("inf"), lambda: seen("never"))
        loop.call_later(0.01, lambda: seen("soon"))

    loop.post(arm)
    loop.start()
    seen.wait(1)
    loop.post(seen, "still here")
    assert seen.wait(2) == ["soon", "still here"]
    finish(loop)
    assert ends.events == [None]


def test_a_loop_that_never_comes_to_rest_asks_for_deadlines_all_the_same(parts: Parts) -> None:
    loop, _ = parts
    asked = Recorder()

    class Silent:
        def fileno(self) -> int:
            return -1

        def interest(self) -> int:
            return 0

        def has_more(self) -> bool:
            return False

        def next_deadline(self) -> float | None:
            asked(loop.now)
            return None

        def ready(self, events: int, now: float) -> None: ...

        def tick(self, now: float) -> None: ...

    over = threading.Event()

    def again() -> None:
        if not over.is_set():
            loop.post(again)

    loop.start()
    loop.post(loop.add, Silent())
    loop.post(again)
    times = asked.wait(20)
    over.set()
    turns = [later - earlier for earlier, later in itertools.pairwise(times[4:20])]
    assert min(turns) >= ASK_SECONDS, "but not in each turn"
    finish(loop)
