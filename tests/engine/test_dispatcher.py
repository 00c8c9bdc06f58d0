"""
Mailboxes and workers: order, no overlap, limits, each overflow policy, and what is lost is said.

A dispatcher is threads, so these tests start some and wait for them; only what it says of lost time comes from a clock
that is given to it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from rtpool.engine import dispatcher as dispatcher_module
from rtpool.engine.dispatcher import Dispatcher, Mailbox
from rtpool.engine.threads import enter_user_code
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until

Make = Callable[..., Mailbox]


@pytest.fixture
def drained() -> Recorder:
    return Recorder()


@pytest.fixture
def dispatcher(drained: Recorder) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher("test", 3, on_drained=drained, wall=lambda: datetime(2026, 1, 1, tzinfo=timezone.utc))
    yield dispatcher
    dispatcher.stop()
    import time

    assert dispatcher.join(time.monotonic() + CAP) == []


class CallingMailbox(Mailbox):
    """Calls `runner` with each item, as a Channel's calls its callbacks."""

    def __init__(
        self,
        runner: Callable[[Any], None] | None,
        *,
        limit: int = 1_000,
        overflow: str = "drop_oldest",
        losses: list[tuple[datetime, datetime, int]] | None = None,
    ) -> None:
        super().__init__("owner", limit=limit, overflow=overflow, pulled=runner is None)
        self.runner = runner
        self.losses = losses

    def run(self, item: Any) -> None:
        assert self.runner is not None
        enter_user_code(self.runner, item)

    def announce_loss(self, first: datetime, last: datetime, count: int) -> Any:
        if self.losses is not None:
            self.losses.append((first, last, count))
        return "lost", count


mailbox = CallingMailbox


def fill(dispatcher: Dispatcher, box: Mailbox, items: range) -> list[Mailbox]:
    full: list[Mailbox] = []
    for item in items:
        full += dispatcher.deliver([(box, [item])])
    return full


def test_a_mailbox_keeps_its_order_and_is_never_in_two_hands(dispatcher: Dispatcher) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    overlaps: list[int] = []
    recorders, boxes = [], []
    try:
        dispatcher.start()
        for _ in range(5):
            recorder, lock = Recorder(), threading.Lock()

            def run(item: Any, lock: threading.Lock = lock, recorder: Recorder = recorder) -> None:
                if not lock.acquire(blocking=False):
                    overlaps.append(item)
                    return
                recorder(item)
                lock.release()

            recorders.append(recorder)
            boxes.append(mailbox(run, limit=100_000))
            dispatcher.open(boxes[-1])

        def produce(start: int) -> None:
            for number in range(500):
                dispatcher.deliver([(box, [(start, number)]) for box in boxes])

        producers = [threading.Thread(target=produce, args=(n,)) for n in range(4)]
        for producer in producers:
            producer.start()
        for producer in producers:
            producer.join()
        for recorder in recorders:
            recorder.wait(2_000)
    finally:
        sys.setswitchinterval(interval)
    assert overlaps == []
    for recorder in recorders:
        assert recorder.events == recorders[0].events, "every mailbox saw one order"
        for start in range(4):
            assert [n for s, n in recorder.events if s == start] == list(range(500))
    wait_until(lambda: dispatcher.delivered == 10_000)


@pytest.mark.parametrize("count", [4, 5, 6])
@pytest.mark.parametrize(
    ("policy", "kept", "announced_first"), [("drop_oldest", range(1, 6), True), ("drop_newest", range(5), False)]
)
def test_at_the_limit_the_policy_decides_and_the_loss_is_announced_where_it_happened(
    dispatcher: Dispatcher, policy: str, kept: range, announced_first: bool, count: int
) -> None:
    got = Recorder()
    box = mailbox(got, limit=5, overflow=policy)
    dispatcher.open(box)
    assert fill(dispatcher, box, range(count)) == ([box] if count > 5 else []), "told when it begins to lose"
    dispatcher.start()
    if count <= 5:
        assert got.wait(count) == list(range(count))
        assert box.dropped == 0
        return
    events = got.wait(6)
    assert [e for e in events if isinstance(e, int)] == list(kept)
    assert events[0 if announced_first else -1] == ("lost", 1)
    assert (box.dropped, dispatcher.dropped) == (1, 1)
    assert box.delivered == 5 or wait_until(lambda: box.delivered == 5) is None


def test_block_accepts_all_asks_for_a_pause_and_tells_when_it_has_drained(
    dispatcher: Dispatcher, drained: Recorder
) -> None:
    got = Recorder()
    box = mailbox(got, limit=5, overflow="block")
    dispatcher.open(box)
    assert set(fill(dispatcher, box, range(8))) == {box}
    dispatcher.start()
    assert got.wait(8) == list(range(8))
    assert drained.wait(1) == [box]
    assert box.dropped == 0


def test_close_asks_for_the_end_once_and_takes_no_more(dispatcher: Dispatcher) -> None:
    box = mailbox(print, limit=5, overflow="close")
    dispatcher.open(box)
    assert fill(dispatcher, box, range(8)) == [box]
    assert len(box.items) == 5
    assert box.dropped == 3
    dispatcher.end(box)


def test_what_is_essential_is_never_dropped_and_keeps_its_place(dispatcher: Dispatcher) -> None:
    got = Recorder()
    box = mailbox(got, limit=3)
    dispatcher.open(box)
    fill(dispatcher, box, range(2))
    assert dispatcher.deliver_essential(box, got, "status")
    fill(dispatcher, box, range(2, 6))
    dispatcher.start()
    events = got.wait_for(lambda seen: 5 in seen)
    assert "status" in events
    assert [e for e in events if isinstance(e, int)] == [3, 4, 5]
    assert events.index("status") < events.index(3)


def test_after_end_nothing_ordinary_starts_and_what_waited_is_counted(dispatcher: Dispatcher) -> None:
    begun, release, got = threading.Event(), threading.Event(), Recorder()

    def run(item: int) -> None:
        got(item)
        begun.set()
        assert release.wait(CAP)

    box = mailbox(run)
    dispatcher.open(box)
    fill(dispatcher, box, range(10))
    dispatcher.start()
    assert begun.wait(CAP)
    dispatcher.end(box)
    dispatcher.deliver_essential(box, got, "closed")
    dispatcher.deliver([(box, [99])])
    release.set()
    assert got.wait(2) == [0, "closed"]
    wait_until(lambda: dispatcher.delivered + dispatcher.dropped == 11)
    wait_until(lambda: dispatcher.delivered == 1)


def test_a_reopened_mailbox_has_nothing_of_its_earlier_life(dispatcher: Dispatcher) -> None:
    begun, release, got = threading.Event(), threading.Event(), Recorder()

    def run(item: int) -> None:
        got(item)
        if item == 0:
            begun.set()
            assert release.wait(CAP)

    box = mailbox(run)
    dispatcher.open(box)
    fill(dispatcher, box, range(10))
    dispatcher.start()
    assert begun.wait(CAP)
    dispatcher.end(box, wait=False)
    dispatcher.open(box)
    fill(dispatcher, box, range(100, 103))
    release.set()
    assert got.wait(4) == [0, 100, 101, 102]


def test_one_blocked_mailbox_leaves_the_other_workers_free(dispatcher: Dispatcher) -> None:
    release, got = threading.Event(), Recorder()
    stuck, free = mailbox(lambda item: release.wait(CAP)), mailbox(got)
    dispatcher.start()
    dispatcher.open(stuck)
    dispatcher.open(free)
    dispatcher.deliver([(stuck, [0])])
    fill(dispatcher, free, range(100))
    got.wait(100)
    release.set()


def test_a_pull_mailbox_is_taken_from_in_order_and_tells_what_it_lost(dispatcher: Dispatcher) -> None:
    box = mailbox(None, limit=3)
    dispatcher.open(box)
    fill(dispatcher, box, range(5))
    assert [dispatcher.take(box, 0) for _ in range(4)] == [("lost", 2), 2, 3, 4]
    with pytest.raises(TimeoutError):
        dispatcher.take(box, 0.01)
    dispatcher.end(box)
    with pytest.raises(EOFError):
        dispatcher.take(box, None)


def test_a_pull_mailbox_with_drop_newest_tells_its_loss_at_the_end(dispatcher: Dispatcher) -> None:
    box = mailbox(None, limit=2, overflow="drop_newest")
    dispatcher.open(box)
    fill(dispatcher, box, range(4))
    assert [dispatcher.take(box, 0) for _ in range(3)] == [0, 1, ("lost", 2)]


def test_a_blocked_pull_mailbox_asks_to_go_on_when_it_is_read(dispatcher: Dispatcher, drained: Recorder) -> None:
    box = mailbox(None, limit=5, overflow="block")
    dispatcher.open(box)
    assert fill(dispatcher, box, range(6)) == [box]
    dispatcher.take(box, 0)
    assert drained.events == []
    dispatcher.take(box, 0)
    assert drained.events == [box]


def test_a_waiting_reader_is_woken_by_an_item_and_by_the_end(dispatcher: Dispatcher) -> None:
    box, outcomes = mailbox(None), Recorder()
    dispatcher.open(box)

    def read() -> None:
        try:
            while True:
                outcomes(dispatcher.take(box, CAP))
        except EOFError:
            outcomes("end")

    reader = threading.Thread(target=read)
    reader.start()
    dispatcher.deliver([(box, [1])])
    outcomes.wait(1)
    dispatcher.end(box)
    assert outcomes.wait(2) == [1, "end"]
    reader.join()


def test_a_bug_below_the_callbacks_does_not_end_the_worker(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    got = Recorder()

    def run(item: int) -> None:
        if item == 0:
            raise RuntimeError("bug")
        got(item)

    box = mailbox(run)
    dispatcher.open(box)
    dispatcher.start()
    fill(dispatcher, box, range(2))
    got.wait(1)
    assert "bug" in caplog.text


def test_after_stop_nothing_is_accepted_and_essentials_that_waited_still_run(drained: Recorder) -> None:
    import time

    dispatcher, got = Dispatcher("test", 1, on_drained=drained), Recorder()
    box = mailbox(got)
    dispatcher.open(box)
    fill(dispatcher, box, range(3))
    dispatcher.deliver_essential(box, got, "status")
    dispatcher.start()
    dispatcher.stop()
    assert dispatcher.join(time.monotonic() + CAP) == []
    assert got.events[-1] == "status"
    assert not dispatcher.deliver_essential(box, got, "late")
    dispatcher.deliver([(box, [9])])
    assert dispatcher.delivered + dispatcher.dropped == 4
    dispatcher.start()  # never again
    assert dispatcher.join(0) == []


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "block", "close"])
def test_what_is_essential_comes_on_top_of_the_limit_and_costs_no_item(dispatcher: Dispatcher, policy: str) -> None:
    got = Recorder()
    box = mailbox(got, limit=2, overflow=policy)
    dispatcher.open(box)
    for number in range(5):
        dispatcher.deliver_essential(box, got, f"status {number}")
    assert fill(dispatcher, box, range(2)) == []
    dispatcher.start()
    assert got.wait(7) == [*(f"status {number}" for number in range(5)), 0, 1]
    wait_until(lambda: box.queued == 0)
    assert (box.received, box.delivered, box.dropped, box.loss) == (2, 2, 0, None)


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "block", "close"])
def test_every_item_is_delivered_dropped_or_queued(dispatcher: Dispatcher, policy: str) -> None:
    box, go_on = mailbox(lambda item: go_on.wait(CAP), limit=5, overflow=policy), threading.Event()
    dispatcher.open(box)
    dispatcher.start()
    fill(dispatcher, box, range(100))
    for _ in range(3):
        assert box.received == box.delivered + box.dropped + box.queued == 100
        dispatcher.deliver_essential(box, print, "between")
    go_on.set()
    wait_until(lambda: box.queued == 0)
    dispatcher.end(box)
    fill(dispatcher, box, range(7))
    assert (box.received, box.queued) == (107, 0)
    assert box.delivered + box.dropped == 107
    assert (dispatcher.received, dispatcher.delivered + dispatcher.dropped) == (107, 107)


@pytest.mark.parametrize("how", ["end", "open"])
def test_a_full_mailbox_that_ends_or_is_taken_over_lets_its_socket_be_read(
    dispatcher: Dispatcher, drained: Recorder, how: str
) -> None:
    box = mailbox(None, limit=5, overflow="block")
    dispatcher.open(box, 1)
    assert set(fill(dispatcher, box, range(8))) == {box}
    if how == "end":
        dispatcher.end(box, 1)
    else:
        dispatcher.open(box, 2)
    assert drained.wait(1) == [box]
    assert not box.blocked


def test_a_subscription_neither_ends_nor_opens_what_a_later_one_has(dispatcher: Dispatcher) -> None:
    got = Recorder()
    box = mailbox(got)
    dispatcher.open(box, 1)
    dispatcher.open(box, 2)
    dispatcher.end(box, 1)
    dispatcher.open(box, 1)
    dispatcher.start()
    fill(dispatcher, box, range(3))
    assert got.wait(3) == [0, 1, 2]
    dispatcher.end(box, 2)
    dispatcher.open(box, 2)  # whoever ended does not come back
    fill(dispatcher, box, range(3))
    assert box.dropped == 3


@pytest.mark.parametrize("limit", [1, 2, 5, 16, 17, 100, 1_000])
@pytest.mark.parametrize("taken", [0, 1, 3, 70])
def test_a_loss_begins_when_the_oldest_of_the_lost_came_or_not_long_before(limit: int, taken: int) -> None:
    now = [0]
    losses: list[tuple[datetime, datetime, int]] = []
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    dispatcher = Dispatcher("test", 1, on_drained=print, wall=lambda: start + timedelta(seconds=now[0]))
    box = mailbox(None, limit=limit, losses=losses)
    dispatcher.open(box)
    came: dict[int, int] = {}
    for number in range(taken + limit + 10):
        now[0] += 1
        came[number] = now[0]
        dispatcher.deliver([(box, [number])])
        if number < taken:
            assert dispatcher.take(box, 0) == number
    dispatcher.take(box, 0)
    ((first, last, count),) = losses
    assert count == 10
    assert (last - start).total_seconds() == now[0]
    begun = (first - start).total_seconds()
    assert came[taken] - limit / 16 - 1 <= begun <= came[taken]
    assert box.marks is not None
    assert len(box.marks) <= 16 + 3
    dispatcher.stop()


class Gate:
    """A callback that stays in its first call until it is let go."""

    def __init__(self) -> None:
        self.got = Recorder()
        self.begun, self.release = threading.Event(), threading.Event()

    def __call__(self, item: Any) -> None:
        self.got(item)
        self.begun.set()
        assert self.release.wait(CAP)


def test_of_an_interrupted_batch_the_rest_keeps_its_place_and_its_loss_is_told_behind_it(
    dispatcher: Dispatcher,
) -> None:
    gate = Gate()
    box = mailbox(gate, limit=3, overflow="drop_newest")
    dispatcher.open(box)
    fill(dispatcher, box, range(2))
    dispatcher.deliver_essential(box, gate.got, "status")
    fill(dispatcher, box, range(2, 5))
    dispatcher.start()
    assert gate.begun.wait(CAP)
    dispatcher.quiesce(box)  # the callback has plainly begun: it is not waited for any longer
    assert gate.got.events == [0]
    assert box.queued == 3, "what a worker has in its hands is not lost"
    gate.release.set()
    assert gate.got.wait(5) == [0, 1, "status", 2, ("lost", 2)]


def test_a_loss_in_the_hands_of_a_worker_is_no_loss_of_a_later_subscription(dispatcher: Dispatcher) -> None:
    gate = Gate()
    box = mailbox(gate, limit=2, overflow="drop_newest")
    dispatcher.open(box)
    fill(dispatcher, box, range(4))
    dispatcher.start()
    assert gate.begun.wait(CAP)
    dispatcher.open(box)
    fill(dispatcher, box, range(10, 12))
    gate.release.set()
    assert gate.got.wait(3) == [0, 10, 11]
    wait_until(lambda: box.queued == 0)
    assert gate.got.events == [0, 10, 11]


def test_what_is_essential_outlives_the_end_of_a_batch_that_a_worker_has_in_its_hands(dispatcher: Dispatcher) -> None:
    gate = Gate()
    box = mailbox(gate)
    dispatcher.open(box)
    fill(dispatcher, box, range(2))
    dispatcher.deliver_essential(box, gate.got, "status")
    dispatcher.start()
    assert gate.begun.wait(CAP)
    dispatcher.end(box, wait=False)
    gate.release.set()
    assert gate.got.wait(2) == [0, "status"]
    wait_until(lambda: (box.delivered, box.dropped) == (1, 1))


def test_a_stop_drops_what_waits_behind_the_callback_in_progress(drained: Recorder) -> None:
    dispatcher, gate = Dispatcher("test", 1, on_drained=drained), Gate()
    box = mailbox(gate)
    dispatcher.open(box)
    dispatcher.start()
    fill(dispatcher, box, range(200))  # more than a worker takes at a time
    assert gate.begun.wait(CAP)
    dispatcher.stop()
    gate.release.set()
    wait_until(lambda: not dispatcher.join(0))
    assert gate.got.events == [0]
    assert (box.delivered, box.dropped, box.queued) == (1, 199, 0)


def test_whoever_reads_by_himself_leaves_what_is_essential_to_the_workers(dispatcher: Dispatcher) -> None:
    box, got = mailbox(None), Recorder()
    dispatcher.open(box)
    fill(dispatcher, box, range(2))
    dispatcher.deliver_essential(box, got, "status")
    dispatcher.start()
    assert got.wait(1) == ["status"]
    assert [dispatcher.take(box, 0), dispatcher.take(box, 0)] == [0, 1]


def test_a_callback_that_quiesces_its_own_mailbox_does_not_wait_for_itself(dispatcher: Dispatcher) -> None:
    got = Recorder()

    def run(item: Any) -> None:
        dispatcher.quiesce(box)
        got(item)

    box = mailbox(run)
    dispatcher.open(box)
    dispatcher.start()
    fill(dispatcher, box, range(3))
    assert got.wait(3) == [0, 1, 2]


def test_since_when_items_wait_is_told_by_when_the_oldest_of_them_came() -> None:
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    times = {"now": now}
    dispatcher = Dispatcher("test", 1, on_drained=print, wall=lambda: times["now"])
    box = mailbox(None)
    dispatcher.open(box)
    times["now"] += timedelta(seconds=5)
    assert dispatcher.waiting_since(box) == times["now"], "nothing does"
    for number in range(200):
        times["now"] = now + timedelta(seconds=10 + number)
        dispatcher.deliver([(box, [number])])
        dispatcher.take(box, 0)
    # When those came that were taken is of no more interest.
    assert dispatcher.waiting_since(box) == now + timedelta(seconds=10 + 199)


def test_what_waits_is_told_with_what_a_worker_has_in_its_hands_and_since_when(dispatcher: Dispatcher) -> None:
    started, go = threading.Event(), threading.Event()
    box = mailbox(lambda _: (started.set(), go.wait(CAP)), limit=2)
    dispatcher.start()
    dispatcher.open(box)
    assert dispatcher.waiting(box) == (None, [])
    fill(dispatcher, box, range(1))
    assert started.wait(CAP)
    fill(dispatcher, box, range(1, 6))
    dispatcher.deliver_essential(box, lambda _: None, "essential")
    waiting = dispatcher.waiting(box)
    assert waiting.items == [0, 4, 5, "essential"]
    assert waiting.since is not None
    assert box.loss is not None
    assert waiting.since <= box.loss.first
    go.set()
    wait_until(lambda: dispatcher.waiting(box) == (None, []))


def test_a_reader_of_before_a_fork_gets_nothing_in_the_child(dispatcher: Dispatcher) -> None:
    box = mailbox(None)
    dispatcher.open(box)
    fill(dispatcher, box, range(1))
    dispatcher.after_fork()  # as if this were the child
    with pytest.raises(EOFError):
        dispatcher.take(box, CAP)


def failing_from(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """No thread from this one on."""
    start, started = threading.Thread.start, [0]

    def limited(thread: threading.Thread) -> None:
        started[0] += 1
        if started[0] > number:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)


def test_where_only_some_workers_can_be_started_they_do_the_work_of_all(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing_from(monkeypatch, 1)
    got = Recorder()
    box = mailbox(got)
    dispatcher.open(box)
    dispatcher.start()
    dispatcher.start()  # it runs
    fill(dispatcher, box, range(3))
    assert got.wait(3) == [0, 1, 2]
    assert "has 1 workers, and not 3" in caplog.text


def test_where_no_worker_can_be_started_that_is_said_and_tried_again(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        failing_from(patch, 0)
        with pytest.raises(RuntimeError, match="can't start"):
            dispatcher.start()
    got = Recorder()
    box = mailbox(got)
    dispatcher.open(box)
    dispatcher.start()
    fill(dispatcher, box, range(3))
    assert got.wait(3) == [0, 1, 2]


@pytest.mark.parametrize("begins", [False, True])
def test_a_call_that_never_begins_is_waited_for_longer_and_not_for_ever(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    monkeypatch.setattr(dispatcher_module, "QUIESCE_SECONDS", 0.01)
    monkeypatch.setattr(dispatcher_module, "BEGIN_SECONDS", CAP if begins else 0.05)
    inside, release, removed = threading.Event(), threading.Event(), threading.Event()

    def run(item: Any) -> None:
        inside.set()
        release.wait(CAP)

    box = mailbox(run)
    box.run = box.run if begins else run  # which nobody sees to be user code
    dispatcher.start()
    dispatcher.open(box)
    dispatcher.deliver([(box, [1])])
    assert inside.wait(CAP)
    threading.Thread(target=lambda: (dispatcher.quiesce(box), removed.set())).start()
    assert removed.wait(CAP / 2)
    release.set()


def test_a_callback_that_returns_meanwhile_is_waited_for(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "QUIESCE_SECONDS", CAP)
    gate, removed = Gate(), threading.Event()
    box = mailbox(gate)
    dispatcher.start()
    dispatcher.open(box)
    fill(dispatcher, box, range(1))
    assert gate.begun.wait(CAP)
    threading.Thread(target=lambda: (dispatcher.quiesce(box), removed.set())).start()
    wait_until(lambda: box.interrupted)
    assert not removed.is_set()
    gate.release.set()
    assert removed.wait(CAP / 2)


def test_in_a_forked_child_the_callback_that_forked_is_the_last_to_run() -> None:
    dispatcher, got, workers = Dispatcher("test", 1, on_drained=print), Recorder(), []

    def run(item: Any) -> None:
        dispatcher.after_fork()  # as a child is left by `os.fork` in a callback: this thread is the only one
        workers.append(threading.current_thread())
        got(item)

    box = mailbox(run)
    dispatcher.open(box)
    fill(dispatcher, box, range(2))
    dispatcher.start()
    assert got.wait(1) == [0]
    workers[0].join(CAP)
    assert not workers[0].is_alive()
    assert not dispatcher.deliver_essential(box, got, "late")
    fill(dispatcher, box, range(1))
    dispatcher.start()  # never again
    assert got.events == [0]
    assert (box.delivered, box.dropped) == (1, 2)


def test_after_stop_no_ordinary_item_begins_of_what_stood_in_line(drained: Recorder) -> None:
    import time

    dispatcher, got = Dispatcher("test", 1, on_drained=drained), Recorder()
    gate = Gate()
    busy, waiting = mailbox(gate), mailbox(got)
    for box in (busy, waiting):
        dispatcher.open(box)
    dispatcher.start()
    fill(dispatcher, busy, range(1))
    assert gate.begun.wait(CAP)
    fill(dispatcher, waiting, range(300))
    dispatcher.stop()
    gate.release.set()
    assert dispatcher.join(time.monotonic() + CAP) == []
    assert got.events == []
    assert (dispatcher.delivered, dispatcher.dropped) == (1, 300)


def test_essentials_of_a_mailbox_that_ended_keep_their_order_when_their_worker_is_called_away(
    dispatcher: Dispatcher,
) -> None:
    gate, got = Gate(), Recorder()
    box, other = mailbox(got), mailbox(got)
    dispatcher.open(other)
    for number in range(200):
        dispatcher.deliver_essential(box, gate if not number else got, number)
    dispatcher.start()
    assert gate.begun.wait(CAP)
    dispatcher.quiesce(box)  # and so interrupts it
    dispatcher.deliver_essential(box, got, 200)
    gate.release.set()
    assert got.wait(200) == list(range(1, 201))


def test_who_took_many_items_looks_up_when_more_wait_than_workers_come(drained: Recorder) -> None:
    import time

    dispatcher = Dispatcher("test", 2, on_drained=drained)
    stuck, free, many = Gate(), Recorder(), Recorder()
    steps = threading.Semaphore(0)
    long, blocked, quick = mailbox(lambda item: (many(item), steps.acquire(timeout=CAP))), mailbox(stuck), mailbox(free)
    for box in (long, blocked, quick):
        dispatcher.open(box)
    fill(dispatcher, long, range(300))
    dispatcher.start()
    many.wait(1)
    dispatcher.deliver([(blocked, [0]), (quick, [0])])
    assert stuck.begun.wait(CAP)
    steps.release()
    assert free.wait(1) == [0]
    assert len(many.events) <= 3
    stuck.release.set()
    dispatcher.stop()
    steps.release(300)
    assert dispatcher.join(time.monotonic() + CAP) == []


@pytest.mark.parametrize("pulled", [False, True])
def test_what_drop_newest_loses_is_told_where_it_happened_while_the_flood_goes_on(
    dispatcher: Dispatcher, *, pulled: bool
) -> None:
    gate = Gate()
    box = mailbox(None if pulled else gate, limit=4, overflow="drop_newest")
    dispatcher.open(box)
    if not pulled:
        dispatcher.start()
        fill(dispatcher, box, range(1))
        assert gate.begun.wait(CAP)  # 0 is in hand
    fill(dispatcher, box, range(1, 7))  # 1 to 4 go in
    if pulled:
        assert [dispatcher.take(box, 0) for _ in range(2)] == [1, 2]
        dispatcher.deliver([(box, [7, 8, 9])])
        assert [dispatcher.take(box, 0) for _ in range(5)] == [3, 4, ("lost", 3), 7, 8]
        return
    gate.release.set()
    assert gate.got.wait(6) == [0, 1, 2, 3, 4, ("lost", 2)]
    fill(dispatcher, box, range(7, 8))
    assert gate.got.wait(7)[-1] == 7


def test_what_a_worker_puts_back_comes_before_the_loss_of_what_came_after_it(dispatcher: Dispatcher) -> None:
    gate = Gate()
    box = mailbox(gate, limit=5)
    dispatcher.open(box)
    fill(dispatcher, box, range(3))
    dispatcher.start()
    assert gate.begun.wait(CAP)  # 0 to 2 are in hand
    fill(dispatcher, box, range(3, 10))  # 3 and 4 are lost
    dispatcher.quiesce(box)  # 1 and 2 are put back
    gate.release.set()
    assert gate.got.wait(9) == [0, 1, 2, ("lost", 2), 5, 6, 7, 8, 9]


def test_a_bug_in_what_is_essential_does_not_end_the_worker(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    def run(item: str) -> None:
        raise RuntimeError(f"bug with {item}")

    got = Recorder()
    box = mailbox(got)
    dispatcher.start()
    dispatcher.deliver_essential(box, run, "the first")
    dispatcher.deliver_essential(box, got, "the second")
    assert got.wait(1) == ["the second"]
    assert "bug with the first" in caplog.text


def test_a_loss_in_a_mailbox_that_was_empty_begins_when_it_happens() -> None:
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    times, losses = {"now": start}, list[tuple[datetime, datetime, int]]()
    dispatcher = Dispatcher("test", 1, on_drained=print, wall=lambda: times["now"])
    box = mailbox(None, limit=50, losses=losses)
    dispatcher.open(box)
    dispatcher.deliver([(box, [0])])
    assert dispatcher.take(box, 0) == 0
    times["now"] += timedelta(hours=3)
    dispatcher.deliver([(box, list(range(60)))])
    dispatcher.take(box, 0)
    assert losses == [(times["now"], times["now"], 10)]
    dispatcher.stop()


def test_as_many_busy_mailboxes_as_workers_do_not_call_each_other_away(drained: Recorder) -> None:
    import time

    dispatcher, hands = Dispatcher("test", 2, on_drained=drained), Recorder()
    box_of: dict[int, Mailbox] = {}
    boxes = [mailbox(lambda item: hands((item[0], box_of[item[0]].runs)), limit=10_000) for _ in range(2)]
    for number, box in enumerate(boxes):
        box_of[number] = box
        dispatcher.open(box)
    dispatcher.deliver([(box, [(number, n) for n in range(2_000)]) for number, box in enumerate(boxes)])
    dispatcher.start()
    hands.wait(4_000)
    dispatcher.stop()
    assert dispatcher.join(time.monotonic() + CAP) == []
    assert max(run for _, run in hands.events) <= 2_000 // 64 + 2


def test_a_slow_callback_is_counted_item_by_item_and_yields_after_each_to_who_waits(drained: Recorder) -> None:
    import time

    dispatcher = Dispatcher("test", 1, on_drained=drained)
    slow, quick, steps = Recorder(), Recorder(), threading.Semaphore(0)

    def run(item: int) -> None:
        steps.acquire(timeout=CAP)
        began = time.monotonic()
        while time.monotonic() - began <= dispatcher_module.SLOW_SECONDS:
            continue
        slow(item)

    long, other = mailbox(run), mailbox(quick)
    for box in (long, other):
        dispatcher.open(box)
    dispatcher.deliver([(long, list(range(300)))])
    dispatcher.start()
    steps.release(3)
    slow.wait(3)
    wait_until(lambda: (long.delivered, dispatcher.delivered, long.queued) == (3, 3, 297), "each was counted")
    assert long.callback_seconds >= 3 * dispatcher_module.SLOW_SECONDS
    dispatcher.deliver([(other, [0])])
    steps.release()
    assert quick.wait(1) == [0]
    assert len(slow.events) == 4
    dispatcher.stop()
    steps.release(300)
    assert dispatcher.join(time.monotonic() + CAP) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_ends_takes_one_item_along_and_another_goes_on(drained: Recorder) -> None:
    import time

    dispatcher = Dispatcher("test", 2, on_drained=drained)
    got = Recorder()

    def run(item: int) -> None:
        if item == 3:
            raise SystemExit  # not of a callback, where it is caught: of a log handler
        got(item)

    box = mailbox(run, limit=4, overflow="block")
    dispatcher.open(box)
    dispatcher.deliver([(box, list(range(6)))])
    dispatcher.start()
    assert got.wait(5) == [0, 1, 2, 4, 5]
    assert drained.wait(1) == [box], "and its socket is read again"
    wait_until(lambda: (box.delivered, box.queued) == (6, 0))
    dispatcher.stop()
    assert dispatcher.join(time.monotonic() + CAP) == []


def test_what_the_workers_are_at_can_be_seen(dispatcher: Dispatcher) -> None:
    gate = Gate()
    box = mailbox(gate)
    dispatcher.open(box)
    dispatcher.start()
    assert len(dispatcher.threads) == 3
    fill(dispatcher, box, range(2))
    assert gate.begun.wait(CAP)
    (at,) = dispatcher.in_hand()
    assert (at.mailbox, at.first) == (box, True)
    assert at.worker in {thread.ident for thread in dispatcher.threads}
    assert dispatcher.waiting(box).items[0] == 0
    gate.release.set()
    wait_until(lambda: box.delivered == 2)
    wait_until(lambda: not dispatcher.in_hand())


def test_a_worker_that_is_struck_while_it_waits_is_called_no_more(drained: Recorder) -> None:
    dispatcher = Dispatcher("test", 1, on_drained=drained)

    class Struck:
        def acquire(self) -> None:
            raise KeyboardInterrupt

    ear: Any = Struck()
    with pytest.raises(KeyboardInterrupt):
        dispatcher._work_once(ear)
    assert not dispatcher._waiting
    assert not dispatcher._lock.locked()
