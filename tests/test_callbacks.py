"""Promises 2 to 4: callbacks in order, free to do anything, and silent once removed."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest

import rtpool
from rtpool.engine import mailboxes
from rtpool.engine.dispatcher import QUIESCE_SECONDS
from rtpool.engine.threads import enter_user_code
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until


def test_a_callback_that_raises_is_logged_counted_reported_and_harms_nothing(
    server: RealtimeServer, pool: rtpool.RealtimePool, caplog: pytest.LogCaptureFixture
) -> None:
    after, reported = Recorder(), Recorder()

    def fails(message: rtpool.Broadcast) -> None:
        raise ValueError(f"number {message.payload['n']}")

    pool.on_callback_error(lambda error, callback, event: reported((error, callback, event)))
    pool.channel("room").on_broadcast("*", fails).on_broadcast("*", after).subscribe()
    for number in range(3):
        server.broadcast("room", "x", {"n": number})

    after.wait(3)
    assert pool.stats().callback_errors == 3
    error, callback, event = reported.wait(3)[0]
    assert (str(error), callback, event.payload) == ("number 0", fails, {"n": 0})
    assert "Traceback" in caplog.text
    assert "number 2" in caplog.text


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callback_that_would_end_the_process_ends_nothing(
    server: RealtimeServer, make_pool: MakePool, error: type[BaseException]
) -> None:
    pool, heard = make_pool(num_workers=1), Recorder()

    def leaves(message: rtpool.Broadcast) -> None:
        heard(message)
        raise error

    pool.channel("room").on_broadcast("*", leaves).subscribe()
    for number in range(3):
        server.broadcast("room", "x", {"n": number})
    heard.wait(3)


def test_a_callback_error_hook_that_raises_harms_nothing(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    heard = Recorder()

    def fails(*_: object) -> None:
        heard(_)
        raise RuntimeError

    pool.on_callback_error(fails)
    pool.channel("room").on_broadcast("*", fails).subscribe()
    server.broadcast("room", "x", {})
    server.broadcast("room", "x", {})
    heard.wait(4)


@pytest.mark.parametrize("broken", [False, True])
def test_who_reports_callback_errors_in_place_of_the_log_gets_each(
    server: RealtimeServer, pool: rtpool.RealtimePool, caplog: pytest.LogCaptureFixture, broken: bool
) -> None:
    reported, hooked = Recorder(), Recorder()

    def report(*told: object) -> None:
        reported(told)
        if broken:
            raise LookupError("the report")

    def fails(message: rtpool.Broadcast) -> None:
        raise ValueError("the callback")

    pool._hooks.report = report
    pool.on_callback_error(lambda *_: hooked(_))
    pool.channel("room").on_broadcast("*", fails).subscribe()
    server.broadcast("room", "x", {})
    hooked.wait(1)
    ((error, callback, event, where),) = reported.wait(1)
    assert (str(error), callback, event.event, where) == ("the callback", fails, "x", "'room'")
    assert pool.stats().callback_errors == 1
    assert ("Traceback" in caplog.text) is broken
    assert ("the callback" in caplog.text) is broken
    assert "fails' of 'room' raised ValueError" in pool.debug_dump()


def test_a_blocked_callback_holds_up_its_own_channel_alone(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    release, blocked, free = threading.Event(), Recorder(), Recorder()

    def blocks(message: rtpool.Broadcast) -> None:
        assert release.wait(CAP)
        blocked(message)

    pool.channel("room").on_broadcast("*", blocks).subscribe()
    pool.channel("room").on_broadcast("*", free).subscribe()
    pool.channel("other").on_broadcast("*", free).subscribe()
    for number in range(50):
        server.broadcast("room", "x", {"n": number})
        server.broadcast("other", "x", {"n": number})
    free.wait(100)
    assert blocked.events == []
    release.set()
    blocked.wait(50)
    assert blocked.numbers == list(range(50))


def test_one_channels_callbacks_never_overlap_and_keep_the_order_under_load(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool = make_pool(num_workers=8)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    overlaps: list[str] = []
    recorders = []
    try:
        for _ in range(6):
            recorder, lock = Recorder(), threading.Lock()

            def alone(message: rtpool.Broadcast, lock: threading.Lock = lock, recorder: Recorder = recorder) -> None:
                if not lock.acquire(blocking=False):
                    overlaps.append(threading.current_thread().name)
                    return
                recorder(message)
                lock.release()

            recorders.append(recorder)
            pool.channel("room").on_broadcast("*", alone).subscribe()
        for number in range(400):
            server.broadcast("room", "x", {"n": number})
        for recorder in recorders:
            recorder.wait(400)
    finally:
        sys.setswitchinterval(interval)
    assert overlaps == []
    assert all(recorder.numbers == list(range(400)) for recorder in recorders)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_callback_may_unsubscribe_itself_and_subscribe_others(
    server: RealtimeServer, make_pool: MakePool, workers: int
) -> None:
    pool, heard, next_room = make_pool(num_workers=workers), Recorder(), Recorder()
    channel = pool.channel("room")

    def once(message: rtpool.Broadcast) -> None:
        heard(message)
        channel.unsubscribe()
        pool.channel("next").on_broadcast("*", next_room).subscribe().send_broadcast("hello", {"n": 1}).result()

    channel.on_broadcast("*", once).on_broadcast("*", heard).subscribe()
    server.broadcast("room", "x", {"n": 1})
    server.broadcast("room", "x", {"n": 2})
    server.wait_for(lambda s: s.members("room") == 0 and s.members("next") == 1)
    server.broadcast("next", "x", {"n": 3})
    next_room.wait(1)
    assert heard.numbers == [1], "neither the next message nor the second callback of this one"


@pytest.mark.parametrize("workers", [1, 4])
def test_a_callback_may_close_the_pool(server: RealtimeServer, make_pool: MakePool, workers: int) -> None:
    pool, closed = make_pool(num_workers=workers), Recorder()
    pool.channel("room").on_broadcast("*", lambda message: closed(pool.close())).subscribe()
    server.broadcast("room", "x", {})
    assert closed.wait(1) == [True]
    assert pool.closed
    server.wait_for(lambda s: not s.connections)


def test_close_returns_in_time_and_names_the_callback_that_does_not_end(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool, begun, release = make_pool(), threading.Event(), threading.Event()

    def stuck(message: rtpool.Broadcast) -> None:
        begun.set()
        release.wait(CAP)

    pool.channel("room").on_broadcast("*", stuck).subscribe()
    server.broadcast("room", "x", {})
    assert begun.wait(CAP)
    assert pool.close(timeout=0.3) is False
    assert f"rtpool-{pool._engine.name}-worker-" in caplog.text
    server.wait_for(lambda s: not s.connections)
    release.set()


def test_a_callback_may_wait_for_its_own_push(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, outcome = make_pool(num_workers=1), Recorder()
    channel = pool.channel("room", ack=True)
    channel.on_broadcast("ask", lambda m: outcome(channel.send_broadcast("answer", {"n": 1}).result(5))).subscribe()
    server.broadcast("room", "ask", {})
    assert outcome.wait(1) == [{}]


@pytest.mark.parametrize("how", ["off", "unsubscribe"])
def test_a_removed_callback_does_not_start_again(server: RealtimeServer, pool: rtpool.RealtimePool, how: str) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    late: list[int] = []
    stop = threading.Event()

    def flood() -> None:
        number = 0
        while not stop.is_set():
            server.broadcast("room", "x", {"n": number})
            number += 1

    publisher = threading.Thread(target=flood)
    publisher.start()
    try:
        for round_number in range(60):
            removed, heard = threading.Event(), threading.Event()

            def callback(
                message: rtpool.Broadcast,
                removed: threading.Event = removed,
                heard: threading.Event = heard,
                round_number: int = round_number,
            ) -> None:
                if removed.is_set():
                    late.append(round_number)
                heard.set()

            channel = pool.channel("room").on_broadcast("*", callback).subscribe()
            assert heard.wait(CAP)
            if how == "off":
                channel.off(callback)
                removed.set()
                channel.unsubscribe()
            else:
                channel.unsubscribe()
                removed.set()
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        publisher.join()
    assert late == []


@pytest.mark.parametrize("how", ["off", "unsubscribe"])
def test_a_callback_that_is_slow_to_begin_is_waited_for_and_one_that_is_slow_to_return_is_not(
    server: RealtimeServer, pool: rtpool.RealtimePool, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    decided, begin = threading.Event(), threading.Event()

    def enter_late(callback: Any, value: Any) -> None:
        decided.set()
        begin.wait(CAP)
        enter_user_code(callback, value)

    monkeypatch.setattr(mailboxes, "enter_user_code", enter_late)
    began, release, order = threading.Event(), threading.Event(), Recorder()

    def callback(message: rtpool.Broadcast) -> None:
        order("began")
        began.set()
        release.wait(CAP)

    channel = pool.channel("room").on_broadcast("*", callback).subscribe()
    server.broadcast("room", "x", {})
    assert decided.wait(CAP)
    removing = threading.Thread(
        target=lambda: (channel.off(callback) if how == "off" else channel.unsubscribe(), order("removed"))
    )
    removing.start()
    removing.join(4 * QUIESCE_SECONDS)
    assert order.events == []
    begin.set()
    removing.join(CAP)
    assert not removing.is_alive()
    assert order.events == ["began", "removed"]
    release.set()


@pytest.mark.parametrize("by", ["another thread", "the end of the pool"])
def test_unsubscribing_what_is_about_to_end_anyway_ends_the_callbacks_too(
    server: RealtimeServer, pool: rtpool.RealtimePool, by: str
) -> None:
    heard, release = Recorder(), threading.Event()
    channel = pool.channel("room").on_broadcast("*", lambda message: (heard(message), release.wait(CAP))).subscribe()
    for number in range(3):
        server.broadcast("room", "x", {"n": number})
    heard.wait(1)
    registry, subscriber = pool._engine.registry, channel._subscriber
    wait_until(lambda: subscriber.mailbox.received == 3)
    # Somebody has got so far, and no further.
    attachments = [registry.detach(subscriber)] if by == "another thread" else registry.clear()
    channel.unsubscribe(timeout=0)
    release.set()
    wait_until(lambda: subscriber.mailbox.running is None)
    assert heard.numbers == [0]
    pool._engine.post(pool._engine.coordinator.detached, attachments[0])


def test_decorators_register_and_return_the_function(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    channel, seen = pool.channel("room"), Recorder()

    @channel.on_broadcast("moved")
    def moved(message: rtpool.Broadcast) -> None:
        seen(message)

    @pool.on_status()
    def status(change: rtpool.StatusChange) -> None:
        seen(change)

    channel.subscribe()
    server.broadcast("room", "moved", {})
    seen.wait_for(lambda events: any(isinstance(e, rtpool.Broadcast) for e in events))
    assert callable(moved)
    assert callable(status)
    channel.off(moved)
    with pytest.raises(rtpool.InvalidValue, match="not registered"):
        channel.off(moved)


def test_callbacks_hear_their_events_and_raw_ones_hear_all(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    named, any_name, raw, system = Recorder(), Recorder(), Recorder(), Recorder()
    channel = pool.channel("room").on_broadcast("a", named).on_broadcast("*", any_name).on_system(system)
    channel.on("*", raw).subscribe()
    server.broadcast("room", "a", {})
    server.broadcast("room", "b", {})
    server.push("room", "system", {"extension": "system", "status": "ok", "message": "hello", "channel": "room"})
    server.push("room", "custom", {"k": 1})
    events = raw.wait(4)
    assert [e.event for e in events] == ["broadcast", "broadcast", "system", "custom"]
    assert events[3] == rtpool.Message("room", "custom", {"k": 1})
    assert [e.event for e in named.wait(1)] == ["a"]
    assert [e.event for e in any_name.wait(2)] == ["a", "b"]
    assert system.wait(1) == [rtpool.SystemMessage("room", "system", "ok", "hello")]


def test_a_push_callback_runs_on_a_worker_in_order_with_the_others(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    seen = Recorder()
    channel = pool.channel("room", ack=True).on_broadcast("*", seen).subscribe()
    push = channel.send_broadcast("x", {})
    push.add_done_callback(lambda p: seen((p, threading.current_thread().name)))
    done, thread = seen.wait(1)[0]
    assert done is push
    assert "worker" in thread
    push.add_done_callback(seen)  # already done: called all the same
    assert seen.wait(2)[1] is push


def test_status_listeners_hear_the_channel_and_the_pool(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, of_pool, of_channel = make_pool(), Recorder(), Recorder()
    pool.on_status(of_pool)
    channel = pool.channel("room").on_status(of_channel).subscribe()
    channel.unsubscribe()
    pool.close()
    assert [c.status for c in of_channel.wait(3)] == ["joining", "joined", "closed"]
    assert [c.status for c in of_pool.wait(3)] == ["connecting", "connected", "closed"]


def test_what_came_for_the_subscription_before_is_heard_by_no_callback_of_the_next(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    begun, release, heard = threading.Event(), threading.Event(), Recorder()

    def first(message: rtpool.Broadcast) -> None:
        begun.set()
        assert release.wait(CAP)

    channel = pool.channel("room").on_broadcast("x", first).on_broadcast("x", heard).subscribe()
    server.broadcast("room", "x", {"of": "the first"})
    assert begun.wait(CAP)
    channel.unsubscribe()
    channel.subscribe()
    release.set()
    server.broadcast("room", "x", {"of": "the second"})
    assert [message.payload for message in heard.wait(1)] == [{"of": "the second"}]


def test_the_time_that_callbacks_take_is_counted_for_their_channels_and_for_the_pool(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool = make_pool(num_workers=2)
    entered, go_on = threading.Barrier(3), threading.Event()

    def waits(_: rtpool.Broadcast) -> None:
        entered.wait(CAP)
        go_on.wait(CAP)

    channels = [pool.channel(topic).on_broadcast("*", waits).subscribe() for topic in ("a", "b")]
    wait_until(lambda: pool.channels() and not pool._engine.dispatcher._in_hand)
    before = pool.stats().callback_seconds
    for channel in channels:
        server.broadcast(channel.topic, "x", {})
    entered.wait(CAP)
    both_run = time.monotonic()
    wait_until(lambda: time.monotonic() - both_run >= 0.05)
    least = time.monotonic() - both_run
    go_on.set()

    wait_until(lambda: pool.stats().messages_delivered == 2)
    stats = pool.stats()
    assert all(details.callback_seconds >= least for details in stats.subscription_details)
    assert stats.callback_seconds - before >= 2 * least
