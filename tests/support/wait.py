"""Waiting for something that has no event of its own: the one place in the tests that sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Generous: only a failure waits so long.
CAP = 15.0


def wait_until(predicate: Callable[[], object], what: str = "the condition", cap: float = CAP) -> None:
    deadline = time.monotonic() + cap
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {cap} s: {what}")
        time.sleep(0.005)
