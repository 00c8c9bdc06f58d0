"""
A pool's threads, which are started in spite of Ctrl-C, and waiting: for threads to end, for a future's outcome; never
longer than told, never deaf to Ctrl-C. Where user code begins.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from types import FrameType
from typing import Any, Protocol, TypeVar

from rtpool.engine.patches import pass_on
from rtpool.errors import PoolForked

__all__ = [
    "Bell",
    "PoolThread",
    "SLICE_SECONDS",
    "callback_name",
    "closing",
    "enter_user_code",
    "is_in_finalizer",
    "is_in_user_code",
    "join_all",
    "look_at_frames",
    "outcome_of",
    "start_thread",
    "step_aside",
]

Lock = threading.Lock

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

#: How long a thread waits at a stretch. A signal that comes just before a wait begins is seen only after it, and a
#: wait without end would be deaf to Ctrl-C for ever.
SLICE_SECONDS = 0.5
#: How often a thread lets others run before it waits for a lock.
STEPS_ASIDE = 100
#: How long a thread that was made may take to run its first line.
START_SECONDS = 1.0

# Guards: _closers and every PoolThread.over
_changed = threading.Condition(Lock())
#: Threads of pools whose user code is closing a pool, and for which others each of them does not wait.
_closers: dict[threading.Thread, set[threading.Thread]] = {}


class PoolThread(threading.Thread):
    """
    A daemon thread of a pool.

    Thread-safety: `over` belongs to this module.
    """

    def __init__(self, target: Callable[..., None], name: str, args: tuple[object, ...] = ()) -> None:
        super().__init__(target=target, name=name, args=args, daemon=True)
        self.over = False

    def run(self) -> None:
        """Do what it is for, and tell who waits."""
        try:
            super().run()
        except KeyboardInterrupt as error:
            if not pass_on(error):
                raise
        finally:
            with _changed:
                self.over = True
                _changed.notify_all()
            # A greenlet of before a fork is in the child as well, where Python has forgotten it, and at its end would
            # fail to forget it once more, with a traceback. To ask for it makes it known.
            threading.current_thread()


def _renew() -> None:
    """In a forked child, which has none of these threads: one of them may have held the lock."""
    global _changed
    _changed = threading.Condition(Lock())
    _closers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@contextlib.contextmanager
def closing() -> Iterator[None]:
    """
    Within this, threads of pools that close pools do not wait for each other: each ends when its user code returns, and
    that it cannot do while it waits.
    """
    caller = threading.current_thread()
    if not isinstance(caller, PoolThread) or caller in _closers:
        yield
        return
    with _changed:
        for excused in _closers.values():
            excused.add(caller)
        _closers[caller] = set(_closers)
        _changed.notify_all()
    try:
        yield
    finally:
        with _changed:
            _closers.pop(caller, None)


class Bell:
    """
    Wakes those who wait for a change, as a condition does; but they wait, and wake up, without the lock.

    A signal handler may fork while its thread waits. In the child that thread wakes up, and a condition would want its
    lock back: one that a thread may have held which is not there.

    Thread-safety: the lock that guards what is waited for is to be held for every method but `ear`.
    """

    def __init__(self) -> None:
        self._ears: list[threading.Lock] = []

    @staticmethod
    def ear() -> threading.Lock:
        """To `listen` with, once; it can be acquired as soon as the bell rang."""
        ear = threading.Lock()
        ear.acquire()
        return ear

    def listen(self, ear: threading.Lock) -> None:
        """Hear the bell with it, until it rings or `forget`."""
        self._ears.append(ear)

    def forget(self, ear: threading.Lock) -> None:
        """Nobody listens with it any longer."""
        if ear in self._ears:
            self._ears.remove(ear)

    def ring(self) -> None:
        """Wake everybody who listens now."""
        if not self._ears:
            return
        ears, self._ears = self._ears, []
        for ear in ears:
            ear.release()


def step_aside(lock: threading.Lock) -> None:
    """
    Let who holds a lock go on, before it is taken by one of many threads that take it at full speed for a few lines.

    A thread that waits for a lock gets it without the interpreter's own, and keeps it while it waits for that.
    Meanwhile the others come and line up, and so they do from then on: at each passage every thread waits for another,
    at a third of the speed.
    """
    if not lock.locked():
        return
    for _ in range(STEPS_ASIDE):
        time.sleep(0)
        if not lock.locked():
            return


class Awaited(Protocol[T_co]):
    """What can be waited for: a `Future`, an `Outcome`."""

    def result(self, timeout: float) -> T_co:
        """The value, or the error raised; `concurrent.futures.TimeoutError` when it takes longer."""

    def done(self) -> bool:
        """Whether it is known."""


def outcome_of(future: Awaited[T], timeout: float) -> T:
    """
    What `future.result(timeout)` returns or raises, heeding Ctrl-C within half a second.

    Raises:
        PoolForked: a signal handler forked meanwhile, and this is the child: nobody here gives the future its outcome.
    """
    deadline, process = time.monotonic() + timeout, os.getpid()
    while True:
        left = deadline - time.monotonic()
        try:
            return future.result(max(0.0, min(SLICE_SECONDS, left)))
        except FutureTimeout:
            if os.getpid() != process:
                raise PoolForked("what is waited for is the parent process's, which alone hears of it") from None
            if future.done():  # just now; or the outcome itself is a time-out
                break
            if left <= SLICE_SECONDS:
                raise
    return future.result(0)


def start_thread(thread: threading.Thread) -> KeyboardInterrupt | None:
    """
    Start a thread.

    Returns:
        A Ctrl-C that came while Python waited to see it run. It does run: whoever starts several goes on, and raises
        this when all of them do, for what is half started could be neither used nor stopped.

    Raises:
        RuntimeError: the system has no thread left, or Ctrl-C came so early that there is none.
    """
    try:
        thread.start()
    except KeyboardInterrupt as interrupt:
        deadline = time.monotonic() + START_SECONDS
        while thread.ident is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the start of {thread.name} was interrupted") from interrupt
            threading.Event().wait(0.001)
        return interrupt
    return None


def join_all(threads: Iterable[threading.Thread], deadline: float) -> list[str]:
    """
    Wait for threads, the calling one and those excused by `closing` excepted, until `deadline`, monotonic.

    Returns:
        The names of those that still run.
    """
    caller = threading.current_thread()
    others = [thread for thread in threads if thread is not caller]
    excused = _closers.get(caller)
    if excused is not None:
        with _changed:
            _changed.wait_for(
                lambda: all(t in excused or t.ident is None or getattr(t, "over", True) for t in others),
                timeout=max(0.0, deadline - time.monotonic()),
            )
            others = [thread for thread in others if thread not in excused]
    alive = []
    for thread in others:
        while thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            thread.join(min(left, SLICE_SECONDS))
        if thread.is_alive():
            alive.append(thread.name)
    return alive


def enter_user_code(callback: Callable[[T], object], value: T) -> None:
    """
    Call a user's callback. By this frame on a thread's stack `is_in_user_code` knows that it has begun.
    """
    callback(value)


def callback_name(callback: Any) -> str:
    """What a user's callback is called, where one is told of: of a `functools.partial` the function in it."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    try:
        return str(getattr(callback, "__qualname__", type(callback).__name__))
    except Exception:  # user code
        return type(callback).__name__


def is_in_user_code(ident: int) -> bool:
    """
    Whether the thread of this number has begun a user's callback, and is in it: whether something that
    `enter_user_code` called has a frame. One without frames, written in C, is not seen. Of a thread that the
    interpreter does not know, a greenlet, nothing can be seen, and it is taken to be.
    """
    return look_at_frames(lambda frames: _is_in_user_code(frames.get(ident)))


def _is_in_user_code(frame: FrameType | None) -> bool:
    if frame is None:
        return True
    while (caller := frame.f_back) is not None:
        if caller.f_code is enter_user_code.__code__:
            return True
        frame = caller
    return False


def is_in_finalizer(ident: int | None) -> bool:
    """Whether a thread is within a `weakref.finalize`, where Python drops what is raised."""
    return look_at_frames(lambda frames: _is_in_finalizer(frames.get(ident or 0)))


def _is_in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is weakref.finalize.__call__.__code__:
            return True
        frame = frame.f_back
    return False


def look_at_frames(look: Callable[[Mapping[int, FrameType]], T]) -> T:
    """
    What `look` makes of the frame that each thread is in now, by its number. It must keep none: each holds the
    variables of all that called it.
    """
    frames = sys._current_frames()
    try:
        return look(frames)
    finally:
        frames.clear()  # this very frame is one of them: a ring, which would hold them all until it is collected
