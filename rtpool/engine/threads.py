"""
Waiting: for threads to end, for a future's outcome; never longer than told, never deaf to Ctrl-C.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from rtpool.errors import PoolForked

__all__ = ["Bell", "SLICE_SECONDS", "join_all", "outcome_of"]

T = TypeVar("T")

#: How long a thread waits at a stretch. A signal that comes just before a wait begins is seen only after it, and a
#: wait without end would be deaf to Ctrl-C for ever.
SLICE_SECONDS = 0.5


class Bell:
    """
    Wakes those who wait for a change, as a condition does; but they wait, and wake up, without the lock.

    A signal handler may fork while its thread waits. In the child that thread wakes up, and a condition would want its
    lock back: one that a thread may have held which is not there.

    Thread-safety: the lock that guards what is waited for is to be held for every method.
    """

    def __init__(self) -> None:
        self._ears: list[threading.Lock] = []

    def ear(self) -> threading.Lock:
        """What can be acquired once the bell rang; to be dropped then, or else given back with `forget`."""
        ear = threading.Lock()
        ear.acquire()
        self._ears.append(ear)
        return ear

    def forget(self, ear: threading.Lock) -> None:
        """Nobody listens with it any longer."""
        if ear in self._ears:
            self._ears.remove(ear)

    def ring(self) -> None:
        """Wake everybody who listens now."""
        ears, self._ears = self._ears, []
        for ear in ears:
            ear.release()


def outcome_of(future: Future[T], timeout: float) -> T:
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
            if left <= SLICE_SECONDS or future.done():  # the outcome itself may be a time-out
                raise


def join_all(threads: Iterable[threading.Thread], deadline: float) -> list[str]:
    """
    Wait for threads, the calling one excepted, until `deadline`, monotonic.

    Returns:
        The names of those that still run.
    """
    alive = []
    for thread in threads:
        if thread is threading.current_thread():
            continue
        if thread.ident is not None:  # made, but not started yet
            thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            alive.append(thread.name)
    return alive
