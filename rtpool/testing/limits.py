"""
Rates, counted as a Realtime server counts them: an average over a minute, judged every five seconds; or at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["Rate"]

#: Ticks the average is taken over.
TICKS = 12


class Rate:
    """
    Events a second of one kind.

    Args:
        now: the clock, in seconds.
        tick: seconds between two judgements of the average; 0 judges each event by the second before it.

    Thread-safety: confined to the server's loop.
    """

    def __init__(self, now: Callable[[], float], tick: float) -> None:
        self._now, self._tick = now, tick
        self._started: float | None = None  # with the first event
        self._recent: deque[tuple[float, int]] = deque()  # of the last second
        self._sum = 0
        self._ticks: deque[int] = deque([0], maxlen=TICKS)
        self._judged = 0.0

    def count(self, events: int = 1) -> None:
        """So many happened now."""
        if self._tick > 0:
            self._started = self._now() if self._started is None else self._started
            self._turn()
            self._ticks[-1] += events
        elif events:
            self._forget()
            self._recent.append((self._now(), events))
            self._sum += events

    @property
    def average(self) -> float:
        """Events a second, as judged last."""
        if self._tick > 0:
            self._turn()
            return self._judged
        self._forget()
        return float(self._sum)

    def over(self, limit: int | None) -> bool:
        """Whether `limit` a second is reached."""
        return limit is not None and self.average >= limit

    def _forget(self) -> None:
        now = self._now()
        while self._recent and now - self._recent[0][0] >= 1.0:
            self._sum -= self._recent.popleft()[1]

    def _turn(self) -> None:
        while self._started is not None and self._now() - self._started >= self._tick:
            self._judged = sum(self._ticks) / (len(self._ticks) * self._tick)
            self._ticks.append(0)
            self._started += self._tick
