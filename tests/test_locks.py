"""Locks are held for a moment and one at a time: the lock that watches it is everywhere, and finds every offence."""

from __future__ import annotations

import ast
import gc
import logging
import os
import pathlib
import select
import socket
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

import rtpool
from rtpool.engine import mailboxes, threads
from rtpool.engine.logs import Log
from rtpool.testing import RealtimeServer
from tests.support.checking_lock import WATCHES_CALLS, CheckingLock, take_violations
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until

ROOT = pathlib.Path(rtpool.__file__).parent

watched = pytest.mark.skipif(not WATCHES_CALLS, reason="from Python 3.12 on only second locks are watched")


def callback(_event: object = None) -> None:
    """What a user might have given."""


def ours(source: str, **names: Any) -> Callable[[], Any]:
    """A function `at_fault` as if it were of rtpool."""
    exec(compile(source, str(ROOT / "offence.py"), "exec"), names)
    function: Callable[[], Any] = names["at_fault"]
    return function


class Dropped:
    def __del__(self) -> None:
        callback()


# Where it is


def test_every_lock_is_made_by_the_name_that_is_swapped() -> None:
    makers = {"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore"}
    programs = {"demo.py", "standing.py"}  # use rtpool as anybody does; lines are written one at a time
    # What `Bell` and an outcome make is waited with and held by nobody. What a fork waits for is held while a
    # descriptor is made or closed, and around nothing else. The debug page's is a flag that nobody waits for.
    others = {("threads.py", "Lock"), ("outcome.py", "Lock"), ("descriptors.py", "Lock"), ("actions.py", "Semaphore")}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "threading":
                assert not {name.name for name in node.names} & makers, path.name
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or path.name in programs:
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "threading":
                of_ours = node.func.attr == "Condition" and bool(node.args)
                if (path.name, node.func.attr) in others:
                    continue
                assert node.func.attr not in makers or of_ours, f"{path.name}:{node.lineno} makes a lock nobody watches"


def test_a_pool_and_a_server_have_watched_locks_alone(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    pool.channel("room").subscribe()
    engine = pool._engine
    parts = [engine, engine.registry, engine.budget, engine.dialer, engine.callers, engine.deciders]
    for part in [*parts, engine.dispatcher]:
        assert type(part._lock) is CheckingLock, part  # type: ignore[attr-defined]
    assert type(rtpool.pool._pools_lock) is CheckingLock
    assert type(threads._changed._lock) is CheckingLock  # type: ignore[attr-defined]
    assert type(server._calls_lock) is CheckingLock
    plain = type(threading.Lock())
    for part in [*parts, engine.dispatcher, engine.loop, server, pool, engine.coordinator]:
        assert not [name for name, value in vars(part).items() if isinstance(value, plain)], part


# What it finds


def test_a_second_lock_is_found_with_both_stacks() -> None:
    source = """
        def at_fault():
            with one:
                takes_the_second()

        def takes_the_second():
            with other:
                pass
    """
    one, other = CheckingLock(), CheckingLock()
    ours(textwrap.dedent(source), one=one, other=other)()
    (found,) = take_violations()
    assert "takes a second lock" in found
    first, second = found.split("and now at")
    assert "in at_fault\n" in first
    assert "in takes_the_second\n" in second
    for lock in (one, other):  # and both were let go of
        assert lock.acquire(timeout=CAP)
        lock.release()


def test_a_lock_taken_twice_raises_where_it_would_hang() -> None:
    lock = CheckingLock()
    with pytest.raises(RuntimeError, match="held by this very thread"):
        ours("def at_fault():\n    with lock:\n        lock.acquire()\n", lock=lock)()
    assert "takes a second lock" in take_violations()[0]
    assert lock.acquire(timeout=CAP)
    lock.release()


#: What the code of rtpool might do with a lock held, and what is said of it.
OFFENCES = {
    "callback(None)": "calls callback()",
    "Callable()()": "calls callback()",
    "Dropped()": "calls __del__()",
    "logger.debug('x')": "calls debug()",
    "Log(logger).debug('x', 'y')": "calls isEnabledFor()",
    "left.send(b'x')": "calls socket.send()",
    "select.select([], [], [], 0)": "calls select()",
    "os.write(1, b'')": "calls write()",
    "time.sleep(0)": "calls sleep()",
    "event.wait(0)": "calls wait()",
    "event.set()": "calls set()",
    "future.set_result(None)": "calls set_result()",
    "future.done()": "calls done()",
    "other.acquire()": "calls RLock.acquire()",
    "plain.acquire()": "calls lock.acquire()",
    "thread.start()": "calls start()",
    "thread.join()": "calls join()",
}


@watched
@pytest.mark.parametrize("offence", OFFENCES)
def test_what_is_done_with_a_lock_held_is_found(offence: str) -> None:
    thread, ended = threading.Thread(target=callback), threading.Thread(target=callback)
    ended.start()
    left, right = socket.socketpair()
    at_fault = ours(
        f"def at_fault():\n    with lock:\n        {offence}\n",
        Callable=type("Callable", (), {"__call__": callback}),
        Dropped=Dropped,
        callback=callback,
        event=threading.Event(),
        future=Future(),
        left=left,
        lock=CheckingLock(),
        logger=logging.getLogger("rtpool.io"),
        Log=Log,
        other=threading.Condition(),
        plain=threading.Lock(),
        os=os,
        select=select,
        thread=ended if "join" in offence else thread,
        time=time,
    )
    with left, right:
        at_fault()
    for each in (thread, ended):
        if each.ident is not None:
            each.join(CAP)
    (found,) = take_violations()
    assert OFFENCES[offence] in found
    assert found.count("in at_fault\n") == 2


@watched
def test_what_a_lock_is_for_is_no_offence() -> None:
    lock = CheckingLock()
    source = """
        def at_fault():
            with condition:
                assert lock.locked()
                assert not condition.wait(0)
                waiting.append(Future())
                assert condition.wait_for(lambda: len(waiting) == 2, 15.0)
                condition.notify_all()
                gc.collect()
    """
    waiting: list[object] = []
    condition = threading.Condition(lock)
    at_fault = ours(textwrap.dedent(source), Future=Future, condition=condition, gc=gc, lock=lock, waiting=waiting)
    thread = threading.Thread(target=at_fault)
    thread.start()
    wait_until(lambda: waiting)
    with condition:
        waiting.append(None)
        condition.notify()
    thread.join(CAP)
    assert not thread.is_alive()
    assert not lock.locked()
    assert take_violations() == []


@watched
def test_a_callback_that_is_called_with_a_lock_held_is_found_on_its_worker(
    server: RealtimeServer, pool: rtpool.RealtimePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(callback: Any, value: Any) -> None:
        with pool._engine._lock:
            threads.enter_user_code(callback, value)

    heard = Recorder()
    pool.channel("room").on_broadcast("x", heard).subscribe()
    monkeypatch.setattr(mailboxes, "enter_user_code", careless)
    server.broadcast("room", "x", {})
    heard.wait(1)
    pool.close()
    found = take_violations()
    assert "-worker-" in found[0]
    assert "careless" in found[0]


def test_a_test_fails_for_what_a_thread_in_its_background_did(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent.parent))
    pytester.makeconftest("from tests.conftest import locks_are_held_well")
    pytester.makepyfile(
        """
        import threading
        from tests.support.checking_lock import CheckingLock

        def nests():
            with CheckingLock(), CheckingLock():
                pass

        def test_of_mine():
            thread = threading.Thread(target=nests, name="culprit")
            thread.start()
            thread.join()

        def test_of_others():
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*thread culprit takes a second lock*", "*ERROR*test_of_mine*"])
