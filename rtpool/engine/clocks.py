"""
The clock that passes while the machine sleeps.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable

__all__ = ["boot_clock"]


def boot_clock() -> Callable[[], float] | None:
    """
    A monotonic clock, in seconds, that goes on while the machine sleeps; None where the platform has none.

    `time.monotonic` stands still then on Linux and macOS, and does not on Windows.
    """
    if sys.platform == "win32":
        return time.monotonic
    name = "CLOCK_MONOTONIC" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
    clock = getattr(time, name, None)
    return None if clock is None else functools.partial(time.clock_gettime, clock)
