"""The debugger itself: its thread, its log, its end with the pool, its answers anywhere."""

from __future__ import annotations

import functools
import gc
import logging
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import rtpool
from rtpool.debug import Debugger, Thresholds, inspector
from rtpool.debug.callbacks import Calls, callbacks_of, calls_of
from rtpool.debug.memory import Memory
from rtpool.engine.mailbox import InHand
from rtpool.testing import Permissions, RealtimeServer, faults
from tests.conftest import MakePool
from tests.debug.conftest import Gate, PassTime
from tests.support.forking import ask
from tests.support.wait import CAP, wait_until


def threads_of(pool: rtpool.RealtimePool) -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == f"rtpool-{pool._engine.name}-debug"]


def lines(caplog: pytest.LogCaptureFixture, code: str) -> list[tuple[str, str]]:
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == "rtpool.debug" and code in record.getMessage()
    ]


def test_a_new_debugger_has_nothing_to_say_and_starts_nothing(pool: rtpool.RealtimePool) -> None:
    threads = threading.active_count()
    it = Debugger(pool)
    assert it.issues() == []
    assert (threading.active_count(), it.enabled) == (threads, False)
    assert repr(it) == f"<rtpool.debug.Debugger of pool {pool._engine.name}, off>"


def test_an_issue_is_logged_once_by_its_severity_and_again_when_it_is_over(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(max_retries=0)
    channel = pool.channel("room", presence_key="a").on_broadcast("*", print).subscribe()
    other = pool.channel("room", presence_key="b").on_broadcast("*", print).subscribe()
    it = Debugger(pool, recent=0.1)
    it.enable(0.02)
    wait_until(lambda: lines(caplog, "RTP020"))
    refusing = server.inject(faults.Refuse(503), times=None)
    server.disconnect_all()
    wait_until(lambda: lines(caplog, "RTP002 connection 1") and lines(caplog, "RTP002 connection 2"))
    refusing.undo()
    pool.connect()
    wait_until(lambda: len(lines(caplog, "RTP002")) == 4 and len(lines(caplog, "RTP019")) == 2)
    other.unsubscribe()
    wait_until(lambda: len(lines(caplog, "RTP020")) == 2)
    it.disable()
    assert [level for level, _ in lines(caplog, "RTP020")] == ["INFO", "INFO"]
    assert [level for level, _ in lines(caplog, "RTP002 connection 1")] == ["ERROR", "INFO"]
    assert [level for level, _ in lines(caplog, "RTP019")] == ["WARNING", "INFO"]
    told, over = (words for _, words in lines(caplog, "RTP020"))
    assert told.startswith("! RTP020 'room': one topic on several sockets: on connections 1, 2: presence_key differ. ")
    assert over == "= RTP020 'room' is over: one topic on several sockets"
    assert channel.is_subscribed


def test_a_stack_is_logged_with_its_callback(
    server: RealtimeServer, pool: rtpool.RealtimePool, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()

    def sleepy(_event: object) -> None:
        go_on.wait(CAP)

    pool.channel("room").on_broadcast("*", sleepy).subscribe()
    Debugger(pool, slow_callback=0.02).enable(0.02)
    server.broadcast("room", "x", {})
    wait_until(lambda: lines(caplog, "RTP009"))
    go_on.set()
    (_, words), *_ = lines(caplog, "RTP009")
    assert "It was here:" in words
    assert "go_on.wait(CAP)" in words


def test_asked_once_it_looks_twice_where_a_callback_may_hang(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    hangs, go_on = threading.Event(), threading.Event()

    def third_hangs(message: rtpool.Broadcast) -> None:
        if message.payload["n"] == 0:
            hangs.wait(CAP)
        elif message.payload["n"] == 2:
            go_on.wait(CAP)

    channel = pool.channel("room").on_broadcast("*", third_hangs).subscribe()
    mailbox = channel._subscriber.mailbox
    server.broadcast("room", "x", {"n": 0})
    wait_until(lambda: mailbox.hand)
    for number in range(1, 4):
        server.broadcast("room", "x", {"n": number})
    wait_until(lambda: pool.stats().subscription_details[0].queued == 4)
    hangs.set()  # so that a worker has taken the rest together
    wait_until(lambda: mailbox.hand and mailbox.hand[mailbox.done].payload["n"] == 2)
    wait_until(lambda: time.monotonic() - mailbox.begun > 0.2)
    it = Debugger(pool, slow_callback=0.2)
    assert mailbox.done, "not the first of its batch, so one look cannot tell since when it runs"
    (issue,) = it.issues()
    assert (issue.code, issue.details["callback"].rpartition(".")[2]) == ("RTP009", "third_hangs")
    go_on.set()


def test_a_batch_of_many_quick_callbacks_is_not_slow(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    stop, ran = threading.Event(), threading.Event()

    def quick(_event: object) -> None:
        ran.set()
        stop.wait(0.02)

    pool.channel("room").on_broadcast("*", quick).subscribe()
    for _ in range(60):
        server.broadcast("room", "x", {})
    ran.wait(CAP)
    it = Debugger(pool, slow_callback=0.2)
    mailbox = pool.channels()[0]._subscriber.mailbox
    wait_until(lambda: mailbox.running and mailbox.done and time.monotonic() - mailbox.begun > 0.25)
    assert [issue for issue in it.issues() if issue.code in ("RTP009", "RTP010")] == []
    stop.set()


def test_of_several_callbacks_of_an_event_each_has_its_own_time(
    server: RealtimeServer, pool: rtpool.RealtimePool, pass_time: PassTime
) -> None:
    first, second, third = Gate(), Gate(), Gate()
    channel = pool.channel("room")
    for gate in (first, second, third):
        channel.on_broadcast("x", functools.partial(lambda gate, event: gate.hold(event), gate))
    channel.on_broadcast("y", print).subscribe()
    it = Debugger(pool, slow_callback=1_000.0, recent=1.0)

    def slow() -> list[float]:
        it._inspector.sample(pool._engine)
        return [issue.details["seconds"] for issue in it._inspector._calls.issues()]

    server.broadcast("room", "x", {})
    first.entered.wait(CAP)
    assert slow() == []
    pass_time(2_000)
    assert [seconds >= 2_000 for seconds in slow()] == [True]
    first.open.set()
    second.entered.wait(CAP)
    pass_time(1_500)  # nobody knows for how much of it
    assert slow() == []
    pass_time(1_500)
    assert [1_500 <= seconds < 3_000 for seconds in slow()] == [True]
    second.open.set()
    third.entered.wait(CAP)
    pass_time(500)
    assert slow() == []
    third.open.set()


def test_of_a_greenlet_whose_stack_nobody_sees_a_slow_callback_has_no_name(pool: rtpool.RealtimePool) -> None:
    channel = pool.channel("room").on_broadcast("x", print).on_broadcast("*", repr)
    event = rtpool.Broadcast("room", "x", {})
    work, calls = InHand(channel._subscriber.mailbox, 0, 0.0, (0, 0), True, event), Calls(Thresholds())
    assert calls.overdue([work], callbacks_of([work]), 10.0) == [], "it may be any of them"
    late = calls.overdue([work], callbacks_of([work]), 12.0)
    assert [(call.subject, call.seconds) for call in calls_of(late, 12.0, str)] == [("a callback of 'room'", 2.0)]


def test_enabling_again_tells_nothing_a_second_time(
    pool: rtpool.RealtimePool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a", "b"):
        pool.channel("room", presence_key=key).on_broadcast("*", print).subscribe()
    looks = threading.Semaphore(0)
    it = Debugger(pool)
    tell = it._tell

    def counted(*arguments: Any) -> None:
        tell(*arguments)
        looks.release()

    monkeypatch.setattr(it, "_tell", counted)
    for interval in (0.01, 0.02, 0.01):
        it.enable(interval)
        for _ in range(2):
            assert looks.acquire(timeout=CAP)
    assert len(lines(caplog, "RTP020")) == 1
    it.disable()
    it.enable(0.01)
    wait_until(lambda: len(lines(caplog, "RTP020")) == 2, "who disables it begins anew")
    it.disable()


def test_enabling_again_changes_the_interval_and_leaves_one_thread(
    pool: rtpool.RealtimePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = threading.Semaphore(0)
    it = Debugger(pool)
    monkeypatch.setattr(it._inspector, "look", lambda *_, **__: looks.release() or [])
    it.enable(3600.0)
    assert not looks.acquire(timeout=0.05)
    it.enable(0.01)
    assert looks.acquire(timeout=CAP)
    assert len(threads_of(pool)) == 1
    it.disable()
    it.disable()
    assert threads_of(pool) == []
    assert not it.enabled


def test_many_threads_enable_disable_and_ask_at_once(pool: rtpool.RealtimePool) -> None:
    it = Debugger(pool)
    pool.channel("room").on_broadcast("*", print).subscribe()

    def play(number: int) -> None:
        for turn in range(10):
            (it.enable, it.disable, it.issues)[(number + turn) % 3]()

    with ThreadPoolExecutor(6) as executor:
        list(executor.map(play, range(6)))
    it.disable()
    wait_until(lambda: threads_of(pool) == [])
    assert it.issues() == []


def test_one_that_another_thread_enabled_meanwhile_leaves_no_companion(
    pool: rtpool.RealtimePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    debugger, engine, real = Debugger(pool), pool._engine, pool._engine.attend
    others = [lambda: debugger.enable(CAP)]

    def attend(companion: Any) -> None:
        real(companion)
        if others:
            others.pop()()  # between its first look at what was enabled and its second

    monkeypatch.setattr(engine, "attend", attend)
    debugger.enable(CAP)
    assert len(engine._companions) == 1
    debugger.disable()
    assert not engine._companions


def test_closing_the_pool_ends_the_thread_before_it_returns(pool: rtpool.RealtimePool) -> None:
    it = Debugger(pool)
    pool.connect()
    it.enable(3600.0)
    assert pool.close()
    assert threads_of(pool) == []
    wait_until(lambda: not it.enabled)
    assert it.issues() == []
    assert it.force_cleanup() == 0
    it.log_stats()
    with pytest.raises(rtpool.PoolClosed):
        it.enable()
    with pytest.raises(rtpool.PoolClosed):
        it.check_lifecycle()


def test_it_can_be_enabled_before_the_pool_is_used_and_ends_with_it_all_the_same(pool: rtpool.RealtimePool) -> None:
    Debugger(pool).enable(0.01)
    assert len(threads_of(pool)) == 1
    assert pool.close()
    assert threads_of(pool) == []


def test_a_closed_pool_is_asked_for_its_past(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    def fails(_event: object) -> None:
        raise ValueError

    pool.channel("room").on_broadcast("*", fails).subscribe()
    server.broadcast("room", "x", {})
    wait_until(lambda: pool.stats().callback_errors == 1)
    pool.close()
    assert [issue.code for issue in Debugger(pool).issues()] == ["RTP024"]


def test_a_callback_that_closes_the_pool_waits_for_no_debugger_for_ever(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    closed: list[bool] = []
    it = Debugger(pool)
    it.enable(0.01)
    pool.channel("room").on_broadcast("*", lambda _: closed.append(pool.close())).subscribe()
    server.broadcast("room", "x", {})
    wait_until(lambda: closed == [True])
    assert threads_of(pool) == []


def test_a_log_handler_of_its_thread_may_ask_it_and_close_the_pool(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    told: list[object] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(it.issues()[0].code)
            it.disable()
            told.append(pool.close())

    pool.channel("room", presence_key="a").subscribe()
    pool.channel("room", presence_key="b").subscribe()
    it = Debugger(pool)
    logger, handler = logging.getLogger("rtpool.debug"), Handler()
    logger.addHandler(handler)
    try:
        it.enable(0.01)
        wait_until(lambda: told == ["RTP020", True])
    finally:
        logger.removeHandler(handler)


@pytest.mark.filterwarnings("ignore:the pool")
def test_it_keeps_no_forgotten_pool_alive(server: RealtimeServer) -> None:
    pool = rtpool.RealtimePool(server.url, api_key=server.api_key)
    it = Debugger(pool)
    it.enable(0.01)
    pool.channel("room").on_broadcast("*", print).subscribe()
    wait_until(lambda: it.issues() == [])
    name, gone = f"rtpool-{pool._engine.name}-debug", weakref.ref(pool)
    del pool
    wait_until(lambda: gc.collect() and gone() is None)
    wait_until(lambda: name not in [thread.name for thread in threading.enumerate()])
    assert it.issues() == []
    assert repr(it) == "<rtpool.debug.Debugger of a forgotten pool, off>"
    with pytest.raises(rtpool.PoolClosed):
        it.enable()


def test_nothing_of_a_debugger_is_left_when_it_is_gone(pool: rtpool.RealtimePool) -> None:
    pool.channel("room").on_broadcast("*", print).subscribe()
    it = Debugger(pool)
    it.enable(0.01)
    it.issues()
    it.disable()
    gone = weakref.ref(it)
    del it
    gc.collect()
    assert gone() is None
    assert pool._engine._companions == ()


def test_one_that_nobody_holds_goes_on_looking(
    server: RealtimeServer, pool: rtpool.RealtimePool, caplog: pytest.LogCaptureFixture
) -> None:
    Debugger(pool).enable(0.01)
    gc.collect()
    for key in "ab":
        pool.channel("room", presence_key=key).subscribe()
    wait_until(lambda: lines(caplog, "RTP020"))


def test_in_a_forked_child_it_is_off_and_can_be_enabled(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(after_fork="resubscribe")
    channel = pool.channel("room").on_broadcast("*", print).subscribe()
    it = Debugger(pool)
    it.enable(0.01)

    def child() -> None:
        assert not it.enabled
        it.disable()
        wait_until(lambda: channel.is_subscribed)
        assert it.issues() == []
        it.enable(0.01)
        assert it.enabled
        assert it.check_lifecycle().ok
        assert pool.close()
        assert threads_of(pool) == []

    ask(child)
    assert it.enabled


def test_a_bug_in_a_look_is_told_and_ends_nothing(
    pool: rtpool.RealtimePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool.connect()
    it = Debugger(pool)
    monkeypatch.setattr(inspector, "observe", lambda *_: 1 / 0)
    it.enable(0.01)
    wait_until(lambda: caplog.text.count("the debugger of pool") >= 2)
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    wait_until(lambda: it.issues() == [])


def test_the_statistics_are_logged(pool: rtpool.RealtimePool, caplog: pytest.LogCaptureFixture) -> None:
    pool.channel("room").subscribe()
    with caplog.at_level(logging.INFO, "rtpool.debug"):
        Debugger(pool).log_stats()
    first, second = (record.getMessage() for record in caplog.records if record.name == "rtpool.debug")
    assert "connected: 1 of 1 connections open, 1 of 1 subscriptions ready on 1 joins; 0 events received" in first
    assert second.startswith("= connection 1 open: 1 joins, ")


def test_its_log_is_the_one_the_pool_was_given(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(logger=logging.getLogger("mine"))
    Debugger(pool).log_stats()
    assert [record.name for record in caplog.records] == ["mine.debug"]


# The probe


def test_a_probe_joins_and_leaves_and_nothing_is_left(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    report = Debugger(pool).check_lifecycle(timeout=CAP)
    assert report.ok, report
    assert report.error == ""
    assert report.left_over == ()
    assert report.joined_in is not None
    assert report.left_in is not None
    assert report.topic.startswith("rtpool-probe-")
    assert (report.before["subscriptions"], report.after["subscriptions"], report.after["joins"]) == (0, 0, 0)
    (join,), (leave,) = server.joins(), server.leaves()
    assert join.topic == leave.topic == report.topic
    assert report.as_dict()["left_over"] == []


def test_a_probe_disturbs_nobody(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    channel = pool.channel("room").subscribe()
    report = Debugger(pool).check_lifecycle(timeout=CAP)
    assert report.ok
    assert report.before == report.after
    assert channel.is_subscribed


def test_a_probe_that_is_refused_says_why(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    server.policy = lambda request: Permissions()
    report = Debugger(pool).check_lifecycle(timeout=CAP, topic="secret", private=True)
    assert not report.ok
    assert report.error.startswith("JoinRefused: ")
    assert (report.topic, report.joined_in, report.left_in) == ("secret", None, None)


def test_a_probe_that_the_server_does_not_let_go_says_so(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(join_timeout=60.0)
    pool.channel("room").subscribe()
    with server.inject(faults.Drop(), on=faults.Receiving("phx_leave"), times=None):
        report = Debugger(pool).check_lifecycle(timeout=0.3)
    assert not report.ok
    assert report.joined_in is not None
    assert report.left_in is None
    assert "a place on connection 1, where it is leaving" in report.left_over


# Arguments


def test_bad_arguments_are_refused(pool: rtpool.RealtimePool) -> None:
    with pytest.raises(rtpool.InvalidType, match="did you mean 'slow_callback'"):
        Debugger(pool, slow_callbak=1.0)
    with pytest.raises(rtpool.InvalidType, match="there are recent, "):
        Debugger(pool, xyz=1.0)
    with pytest.raises(rtpool.InvalidValue, match="threshold mailbox_share must be > 0 and at most 1, not 1"):
        Debugger(pool, mailbox_share=1.5)
    with pytest.raises(rtpool.InvalidType, match="threshold recent must be a number, not str"):
        Debugger(pool, recent="1")  # type: ignore[arg-type]
    with pytest.raises(rtpool.InvalidType, match="pool must be a RealtimePool, not str"):
        Debugger("pool")  # type: ignore[arg-type]
    it = Debugger(pool)
    for interval in (0, -1.0):
        with pytest.raises(rtpool.InvalidValue, match="seconds >"):
            it.enable(interval)
    with pytest.raises(rtpool.InvalidType):
        it.enable(True)
    with pytest.raises(rtpool.InvalidValue):
        it.check_lifecycle(topic="")
    assert it.thresholds == Thresholds()


# What is remembered


def test_what_lasts_is_forgotten_when_a_look_does_not_see_it() -> None:
    memory = Memory()
    seen = []
    for at, present in [(0.0, True), (2.0, True), (3.0, False), (4.0, True), (5.0, True)]:
        memory.begin(at)
        seen.append(memory.lasted("it") if present else None)
    assert seen == [0.0, 2.0, None, 0.0, 1.0]


def test_a_counters_growth_is_that_of_its_window_and_its_first_value_is_news_or_not() -> None:
    for ever, expected in [(True, [3, 3, 5, 2, 0]), (False, [0, 0, 2, 2, 0])]:
        memory, seen = Memory(), []
        for at, value in [(0.0, 3), (5.0, 3), (9.0, 5), (15.5, 5), (30.0, 5)]:
            memory.begin(at)
            seen.append(memory.grown("it", value=value, window=10.0, ever=ever))
        assert seen == expected


def test_a_counter_that_began_anew_is_another_and_its_past_is_bounded() -> None:
    memory = Memory()
    for turn in range(10_000):
        memory.begin(turn * 0.001)
        growth = memory.grown("it", value=turn, window=1.0)
    assert 900 <= growth <= 1_100
    assert len(memory._counters[("it",)]._marks) <= 25
    memory.begin(10.0)
    assert memory.grown("it", value=4, window=1.0) == 4


def test_the_most_of_a_window_is_known_for_as_long_as_it_lasts() -> None:
    memory, seen = Memory(), []
    for at, value in [(0.0, 3), (1.0, 5), (2.0, 4), (3.0, 2), (11.0, 1), (11.5, 1), (12.5, 1), (40.0, 1)]:
        memory.begin(at)
        seen.append(memory.most("it", value=value, window=10.0))
    assert seen == [3, 5, 5, 5, 5, 4, 2, 1]
    memory.begin(41.0)
    memory.begin(42.0)
    assert not memory._peaks
