"""
A listener in a thread of its own, and how other threads get things done there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from rtpool.testing.clock import Clock

__all__ = ["Runner"]

Lock = threading.Lock

T = TypeVar("T")

_runners: weakref.WeakSet[Runner] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for runner in list(_runners):
        runner.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_to_parent)


class Runner:
    """
    Runs an event loop in a thread.

    Args:
        clock: the server's.

    Thread-safety: every method may be called from any thread, except those that say otherwise.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        # Guards: nothing but the waiting; everything else is written on the loop and read as immutable snapshots.
        self._changed = threading.Condition(Lock())
        self._version = 0
        # Guards `_calls` and `_open`: what other threads want done on the loop, and whether it still takes any.
        self._calls_lock = Lock()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._open = False
        self._ident: int | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._forked = False
        _runners.add(self)

    async def main(self, listening: Callable[[], None], stop: asyncio.Event) -> None:
        """What the thread runs: calls `listening` once it listens, and ends some time after `stop` is set."""
        raise AssertionError("a Runner is nothing by itself")

    def start_thread(self) -> None:
        """Run until `stop_thread`; returns once it listens. Idempotent. Raises what listening raises."""
        self._refuse_forked()
        if self._thread is not None:
            return
        started = threading.Event()
        failure: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(self._run(started))
            except BaseException as error:
                failure.append(error)
            finally:
                started.set()

        self._thread = threading.Thread(target=run, name="rtpool-testing-server", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            self._thread.join()
            self._thread = None
            raise failure[0]
        with self._calls_lock:
            self._open = True

    async def _run(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        self._ident = threading.get_ident()

        def listening() -> None:
            self._loop = asyncio.get_running_loop()
            started.set()

        await self.main(listening, self._stop)
        for task in list(self._tasks):
            task.cancel()

    def stop_thread(self) -> None:
        """End. Idempotent."""
        with self._calls_lock:
            thread, loop, stop = self._thread, self._loop, self._stop
            self._thread = None
        if thread is None or loop is None or stop is None:
            return
        with contextlib.suppress(RuntimeError):  # it has ended of its own accord
            loop.call_soon_threadsafe(stop.set)
        thread.join()
        with self._calls_lock:
            self._open, self._loop = False, None
        self.clock.forget()
        self._run_calls()  # what came too late for the loop; nobody waits for ever

    def call(self, function: Callable[[], T]) -> T:
        """Run on the server's loop and return what it returns; directly when called there or when it has ended."""
        self._refuse_forked()
        future: Future[T] = Future()
        with self._calls_lock:
            loop = self._loop
            direct = not self._open or loop is None or threading.get_ident() == self._ident
            if not direct:
                self._calls.append((function, future))
        if direct:
            return function()
        with contextlib.suppress(RuntimeError):  # the loop has just closed; close() runs what is left
            loop.call_soon_threadsafe(self._run_calls)  # type: ignore[union-attr]
        return future.result()

    def descriptors(self) -> Iterable[int]:
        """Those that connections depend on."""
        return ()

    def after_fork(self) -> None:
        """
        In a forked child: the server is the parent's. What the child has of its sockets is closed, or else no client
        would see that the parent closed them.
        """
        self._forked = True
        self._changed, self._calls_lock = threading.Condition(Lock()), Lock()
        self._calls.clear()
        self._open, self._thread, self._loop = False, None, None
        null = os.open(os.devnull, os.O_RDWR)
        for number in list(self.descriptors()):
            # Not closed: the event loop's objects will do that, when another file may have the number.
            with contextlib.suppress(OSError):
                os.dup2(null, number, inheritable=False)
        os.close(null)

    def _refuse_forked(self) -> None:
        if self._forked:
            raise RuntimeError("the server runs in the parent of this process and can be asked only there")

    def _run_calls(self) -> None:
        while True:
            with self._calls_lock:
                if not self._calls:
                    return
                function, future = self._calls.popleft()
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def advance(self, seconds: float = 0.0) -> None:
        """
        Let so many seconds of the server's clock pass, at once: tokens expire, delays end, rates fall.

        What clients have sent until now is answered before. Not from a hook.
        """
        if not self._open:
            self.clock.skip(seconds)
            return
        self.run(lambda: self.clock.advance(seconds))

    def run(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine function on the server's loop to its end. Not from a hook; `RuntimeError` without a loop."""
        if not self._open:
            raise RuntimeError("the server has not been started")
        done: Future[None] = Future()

        def ended(task: asyncio.Future[None]) -> None:
            error = asyncio.CancelledError("the server was closed") if task.cancelled() else task.exception()
            done.set_exception(error) if error is not None else done.set_result(None)

        self.call(lambda: self.spawn(function()).add_done_callback(ended))
        done.result()

    @property
    def stopping(self) -> tuple[asyncio.Event, ...]:
        """What is set when the server closes, for those that wait; on the server's loop."""
        return () if self._stop is None else (self._stop,)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Run a coroutine in the background; on the server's loop."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def changed(self) -> None:
        """Something happened; on the server's loop."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()
