"""
How fast joins may go out: a sliding window, so that no second ever sees more than the limit, and none is wasted.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Pace"]


class Pace:
    """
    At most `per_second` grants in any span of a second; for less than one a second, one in ``1 / per_second`` seconds.

    Args:
        per_second: > 0.

    Thread-safety: none; confined to the I/O thread.
    """

    def __init__(self, per_second: float) -> None:
        self._limit = max(1, int(per_second))
        self._window = self._limit / per_second
        self._granted: deque[float] = deque(maxlen=self._limit)

    def grant(self, now: float) -> bool:
        """Whether one more may go now; if so it counts."""
        if len(self._granted) == self._limit and now - self._granted[0] < self._window:
            return False
        self._granted.append(now)
        return True

    def next_at(self) -> float:
        """The instant at which `grant` will next say yes, after it said no."""
        return self._granted[0] + self._window
