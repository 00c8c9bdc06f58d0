"""
The server's clock: real, or standing still until it is told to move.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Clock", "Timer"]

#: Turns of the loop after which what sockets had to say has been read and answered.
SETTLE_TURNS = 25


class Timer:
    """A call to come; `cancel` takes it back."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call: Callable[[], Any] | None = call

    def cancel(self) -> None:
        """Do not call. Idempotent."""
        self.call = None


class Clock:
    """
    Seconds since the epoch, and timers by them.

    Args:
        at: where it stands, moved by `advance` alone; None runs with real time.

    Thread-safety: `now` from any thread, all else on the server's loop.
    """

    def __init__(self, at: float | None = None) -> None:
        self._frozen = at is not None
        self._base = time.time() if at is None else at
        self._started = time.monotonic()
        self._due: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._armed: asyncio.TimerHandle | None = None
        self._sweep_at = 64

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._base + (0.0 if self._frozen else time.monotonic() - self._started)

    def call_later(self, seconds: float, call: Callable[[], Any]) -> Timer:
        """Call in so many seconds of this clock."""
        timer = Timer(call)
        if len(self._due) >= self._sweep_at:  # most wait for a far expiry and are taken back long before
            self._due = [entry for entry in self._due if entry[2].call is not None]
            heapq.heapify(self._due)
            self._sweep_at = 2 * len(self._due) + 64
        heapq.heappush(self._due, (self.now() + seconds, next(self._numbers), timer))
        self._arm()
        return timer

    async def sleep(self, seconds: float, *until: asyncio.Event) -> None:
        """Return after so many seconds of this clock, or earlier when one of `until` is set."""
        over = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not over.done():
                over.set_result(None)

        timer = self.call_later(seconds, wake)
        waiting = {asyncio.ensure_future(event.wait()) for event in until}
        try:
            await asyncio.wait({over, *waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            for task in waiting:
                task.cancel()

    async def advance(self, seconds: float) -> None:
        """Let time pass: every timer at its turn, and between two of them what follows from the first."""
        await self.settle()
        end = self.now() + seconds
        while self._due and self._due[0][0] <= end:
            when, _, timer = heapq.heappop(self._due)
            if timer.call is None:
                continue
            self._base += max(0.0, when - self.now())
            timer.call()
            await self.settle()
        self._base += max(0.0, end - self.now())

    def skip(self, seconds: float) -> None:
        """Be later; nothing is due while no loop runs."""
        self._base += seconds

    def forget(self) -> None:
        """Drop every timer: the loop has ended."""
        self._due.clear()
        self._armed = None

    async def settle(self) -> None:
        """Give what is going on the time to end."""
        for _ in range(SETTLE_TURNS):
            await asyncio.sleep(0)

    def _arm(self) -> None:
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        while self._due and self._due[0][2].call is None:
            heapq.heappop(self._due)
        if self._due and not self._frozen:
            self._armed = asyncio.get_running_loop().call_later(max(0.0, self._due[0][0] - self.now()), self._run_due)

    def _run_due(self) -> None:
        self._armed = None
        while self._due and self._due[0][0] <= self.now():
            timer = heapq.heappop(self._due)[2]
            if timer.call is not None:
                timer.call()
        self._arm()
