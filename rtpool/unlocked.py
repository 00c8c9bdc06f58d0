"""
Reading what other threads change, without a lock: for signal handlers, whose thread may hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["read_unlocked"]

T = TypeVar("T")


def read_unlocked(read: Callable[[], T]) -> T:
    """
    What `read` returns, called again as long as a collection changes under it while it goes through.

    Args:
        read: copies what it needs; it raises no `RuntimeError` of its own.

    Thread-safety: from any thread and signal handler; it takes no lock.
    """
    while True:
        try:
            return read()
        except RecursionError:  # is a RuntimeError, and for good
            raise
        except RuntimeError:  # something came or went meanwhile
            continue
