"""
Suspends and clock jumps, noticed by clocks that go apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rtpool.engine.io_loop import IoLoop

__all__ = ["ClockWatch"]

#: Seconds between two looks at the clocks: so long a suspend goes unnoticed after the machine woke, at the most.
CHECK_SECONDS = 5.0
#: Seconds the clocks may part; less is load, or time that is steered.
LEAST = 2.0


class ClockWatch:
    """
    Looks at the clocks every `CHECK_SECONDS`.

    Where no clock of the platform tells of sleep, a wall clock that is ahead all of a sudden is taken for it: to ask
    whether the peers are alive costs a heartbeat, not to ask may cost half a minute.

    Args:
        loop: the engine's, whose clock is monotonic.
        resumed: called with the seconds the machine slept while the loop's clock stood still, and the seconds for which
            this process was stopped while it went on.
        stepped: called with the seconds by which the wall clock was set, negative when it was set back.
        wall: seconds since the epoch.

    Thread-safety: confined to the I/O thread.
    """

    def __init__(
        self,
        loop: IoLoop,
        *,
        resumed: Callable[[float, float], None],
        stepped: Callable[[float], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._loop = loop
        self._resumed = resumed
        self._stepped = stepped
        self._wall = wall

    def start(self) -> None:
        """Look from now on."""
        self._monotonic_was, self._wall_was = self._loop.clock(), self._wall()
        self._boot_was = self._loop.boot() if self._loop.boot is not None else 0.0
        self._loop.call_later(CHECK_SECONDS, self._check)

    def _check(self) -> None:
        passed = self._loop.clock() - self._monotonic_was
        slept = self._loop.boot() - self._boot_was - passed if self._loop.boot is not None else 0.0
        step = self._wall() - self._wall_was - passed - slept
        if self._loop.boot is None and step >= LEAST:
            slept, step = step, 0.0
        stopped = passed - CHECK_SECONDS
        self.start()
        if slept >= LEAST or stopped >= LEAST:
            self._resumed(max(0.0, slept), max(0.0, stopped))
        if abs(step) >= LEAST:
            self._stepped(step)
