"""
Waiting: for threads to end, for a future's outcome; never longer than told, never deaf to Ctrl-C.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

__all__ = ["SLICE_SECONDS", "join_all", "outcome_of"]

T = TypeVar("T")

#: How long a thread waits at a stretch. A signal that comes just before a wait begins is seen only after it, and a
#: wait without end would be deaf to Ctrl-C for ever.
SLICE_SECONDS = 0.5


def outcome_of(future: Future[T], timeout: float) -> T:
    """
    What `future.result(timeout)` returns or raises, heeding Ctrl-C within half a second.
    """
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        try:
            return future.result(max(0.0, min(SLICE_SECONDS, left)))
        except FutureTimeout:
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
