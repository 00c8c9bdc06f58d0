"""
Threads: when they start, what they are called, what they hold. Waiting: the outcome, a time-out that is the outcome,
and a time-out of the wait are told apart.
"""

from __future__ import annotations

import functools
import gc
import threading
import time
import weakref
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import pytest

import rtpool
from rtpool.engine import threads
from rtpool.engine.threads import Bell, PoolThread, callback_name, closing, join_all, outcome_of
from rtpool.errors import PushTimeout
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.referents import path_from
from tests.support.scripts import run_script
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


def threads_of(pool: rtpool.RealtimePool) -> dict[str, threading.Thread]:
    """By the part of the name that is theirs."""
    prefix = f"rtpool-{pool._engine.name}-"
    return {t.name.removeprefix(prefix): t for t in threading.enumerate() if t.name.startswith(prefix)}


class Stuck:
    """User code of every kind that has a thread of its own, each call kept until the end."""

    def __init__(self) -> None:
        self.release, self.begun = threading.Event(), Recorder()

    def __call__(self, kind: str) -> None:
        self.begun(kind)
        assert self.release.wait(CAP)

    def until(self, *kinds: str) -> None:
        self.begun.wait_for(lambda seen: set(kinds) <= set(seen))


@pytest.fixture
def busy(server: RealtimeServer, make_pool: MakePool) -> Any:
    """A pool with a thread of each kind at work: its Channels, and what holds them up."""
    stuck = Stuck()

    def token() -> str:
        if stuck.begun.events.count("callback"):
            stuck("token")
        return server.api_key

    def wait(state: object) -> float:
        stuck("strategy")
        return 0.0

    def dial(host: str, port: int, seconds: float) -> Any:
        import socket

        if stuck.begun.events.count("callback"):
            stuck("dial")
        return socket.create_connection((host, port), seconds)

    pool = make_pool(
        max_channels_per_connection=1,
        access_token=token,
        dial=dial,
        reconnect=rtpool.ReconnectPolicy(wait=wait),
    )
    first = pool.channel("first", receive_own=True).on_broadcast("*", lambda message: stuck("callback")).subscribe()
    first.send_broadcast("x", {})
    stuck.until("callback")
    second = pool.channel("second").subscribe(wait=False)
    stuck.until("dial")
    server.connections[0].abort()
    stuck.until("strategy")
    pool.channel("third", access_token=lambda: stuck("token")).subscribe(wait=False)  # type: ignore[arg-type, return-value]
    stuck.until("token")
    yield pool, first, second
    stuck.release.set()


def test_each_thread_has_its_name_is_a_daemon_and_holds_neither_the_pool_nor_a_channel(busy: Any) -> None:
    pool, *channels = busy
    found = threads_of(pool)
    assert {name.rpartition("-")[0] or name for name in found} == {"io", "worker", "dial"}
    assert {f"worker-{n}" for n in range(4)} <= set(found)
    ranges = {int(name.removeprefix("dial-")) // 8 for name in found if name.startswith("dial-")}
    assert ranges == {0, 1, 2}, "those that dial, those that ask for tokens, those that ask strategies"
    assert all(thread.daemon for thread in found.values())
    for name, thread in found.items():
        for target in (pool, *channels):
            path = path_from(thread, target)
            assert path is None, f"{name} holds it by {' > '.join(path or ())}"


def test_the_search_finds_what_a_thread_does_hold(busy: Any) -> None:
    pool, *_ = busy
    pool._engine.registry.of_this_test = [{"deep": (pool,)}]
    try:
        assert all(path_from(thread, pool) for name, thread in threads_of(pool).items() if "dial" not in name)
    finally:
        del pool._engine.registry.of_this_test


def test_threads_start_when_all_they_use_is_in_place(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, start, ready = make_pool(), threading.Thread.start, Recorder()
    engine = pool._engine

    def watched(thread: threading.Thread) -> None:
        if thread.name.startswith(f"rtpool-{engine.name}-"):
            loop, kind = engine.loop, thread.name.split("-")[2]
            ready((kind, None not in (loop._selector, loop._wake_in), thread in engine.dispatcher._threads))
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", watched)
        pool.channel("room").subscribe()
    assert ready.events[:5] == [("worker", False, True)] * 4 + [("io", True, False)]
    assert {kind for kind, *_ in ready.events[5:]} == {"dial"}


IDLE = """
pool = new_pool()
channel = pool.channel("room", private=True, presence_key="me", replay=True)
for register in (channel.on_presence_sync, channel.on_presence_join, channel.on_presence_leave, channel.on_system,
                 channel.on_gap, channel.on_status, pool.on_status, pool.on_heartbeat):
    register(print)
channel.on_broadcast("*", print).on_postgres_changes("*", print, table="t").on("event", print).off(print)
pool.on_callback_error(print)
shared = rtpool.get_pool(URL, api_key=KEY)
print(pool, channel, pool.channels(), pool.closed, channel.state, channel.is_subscribed, channel.presence_state())
pool.stats().as_dict()
pool.health()
pool.force_cleanup()
pool.unsubscribe_all()
channel.unsubscribe()
"""


def test_nothing_starts_or_opens_by_import_by_construction_or_by_asking(server: RealtimeServer) -> None:
    look = """
import os
descriptors = lambda: sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []
import atexit, threading, sys, signal
handlers = lambda: [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
import _thread
before = descriptors(), handlers(), _thread._count()
"""
    ended = run_script(
        "ready()\n" + IDLE + "assert (descriptors(), handlers(), _thread._count()) == before\n"
        "assert threading.enumerate() == [threading.main_thread()]",
        server.url,
        server.api_key,
        before=look,
    )
    assert (ended.code, ended.err) == (0, ""), ended
    assert server.connections_total == 0


def test_a_bell_wakes_who_listens_and_nobody_else() -> None:
    bell, heard, forgotten, late = Bell(), Bell.ear(), Bell.ear(), Bell.ear()
    bell.listen(heard)
    bell.listen(forgotten)
    bell.forget(forgotten)
    bell.ring()
    bell.listen(late)
    assert heard.acquire(timeout=CAP)
    assert forgotten.locked()
    assert late.locked()
    bell.forget(heard)  # it heard the bell: nothing is left to forget


def test_who_steps_aside_for_a_lock_comes_back_though_it_is_never_let_go() -> None:
    lock = threading.Lock()
    threads.step_aside(lock)
    assert not lock.locked(), "it is looked at, not taken"
    with lock:
        threads.step_aside(lock)


def test_user_code_has_begun_when_it_has_a_frame_and_not_a_moment_earlier() -> None:
    inside, release = threading.Event(), threading.Event()

    def callback(_value: object) -> None:
        inside.set()
        release.wait(CAP)

    def run() -> None:
        release.wait(CAP)  # decided on, and not begun
        release.clear()
        threads.enter_user_code(callback, None)

    worker = threading.Thread(target=run)
    worker.start()
    assert worker.ident is not None
    assert not threads.is_in_user_code(worker.ident)
    release.set()
    assert inside.wait(CAP)
    assert threads.is_in_user_code(worker.ident)
    release.set()
    worker.join(CAP)
    assert threads.is_in_user_code(-1)  # a greenlet: nothing is known, and nobody waits for it


class Secretive:
    """A callback that is asked nothing."""

    def __getattr__(self, name: str) -> str:
        raise ValueError(name)

    def __call__(self, event: object) -> None: ...


def test_a_callback_is_told_of_by_the_name_of_the_function_in_it() -> None:
    def hears(event: object) -> None: ...

    where = "test_a_callback_is_told_of_by_the_name_of_the_function_in_it.<locals>."
    assert callback_name(hears) == f"{where}hears"
    assert callback_name(functools.partial(functools.partial(hears), None)) == f"{where}hears"
    assert callback_name(functools.partial(Secretive())) == callback_name(Secretive()) == "Secretive"
    assert callback_name([].append) == "list.append"


def test_a_look_at_the_frames_of_all_threads_keeps_no_variable_of_them() -> None:
    class Held: ...

    def look_with(held: Held) -> str:
        return threads.look_at_frames(lambda frames: frames[threading.get_ident()].f_code.co_name)

    held = Held()
    gone = weakref.ref(held)
    gc.disable()  # it would take the ring
    try:
        assert look_with(held) == "look_at_frames"
        del held
        assert gone() is None
    finally:
        gc.enable()
