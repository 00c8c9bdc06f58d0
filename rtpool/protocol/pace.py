"""
How fast joins and broadcasts may go out: a sliding window, which a refusal of the server's makes smaller for a while.
"""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Pace"]

#: Seconds of the window. The server judges by the sum of five seconds, first of the first five alone, and refuses *at*
#: the limit (protocol 7). Of windows of one second six fit into those, the edges counted; of these four, with 0.2 s to
#: spare for what comes faster than it was sent.
WINDOW = 1.3
#: A window is spent in so many parts, each with its share of the time: what a busy server works off late is then never
#: met by a whole second's worth of what follows.
PARTS = 4
#: Seconds in which the server does not judge anew: refusals so close are one.
ONE_REFUSAL = 5.0
#: Seconds without a refusal after which the pace doubles: what the server averages over.
RECOVERY = 60.0
#: A second; no refusal makes the pace slower.
SLOWEST = 1.0


class Pace:
    """
    ``per_second / WINDOW`` grants a second, at most ``per_second / PARTS`` of them at once, so that no second ever sees
    more than `per_second`, and a server with this very limit never finds it reached.

    A refusal halves the pace. It doubles with every minute that passes without another: who is refused is so mostly
    because everybody joins at once, after an outage, and that passes; by steps of one it would take an hour.

    Args:
        per_second: > 0.

    Thread-safety: none; confined to the I/O thread, except `per_second`, which may be called anywhere.
    """

    def __init__(self, per_second: float) -> None:
        self._full = per_second
        self._granted: deque[float] = deque(maxlen=max(1, int(per_second / PARTS)))
        self._slowed_to = per_second
        self._slowed_at = self._refused_at = -math.inf

    def per_second(self, now: float) -> float:
        """The present pace."""
        if self._slowed_to >= self._full:
            return self._full
        minutes = max(0.0, min((now - self._refused_at) // RECOVERY, 64.0))
        return min(self._full, self._slowed_to * math.pow(2.0, minutes))

    def grant(self, now: float) -> bool:
        """Whether one more may go now; if so it counts."""
        if now < self.next_at(now):
            return False
        self._granted.append(now)
        return True

    def next_at(self, now: float) -> float:
        """The instant from which `grant` says yes; it may have passed."""
        rate = self.per_second(now)
        at_once = max(1, int(rate / PARTS))
        return self._granted[-at_once] + WINDOW * at_once / rate if len(self._granted) >= at_once else now

    def slow_down(self, now: float) -> bool:
        """
        The server refused because of too many.

        Returns:
            False when it is slower already, because of the same trouble or because it cannot be any slower.
        """
        present = self.per_second(now)
        slower = max(min(SLOWEST, self._full), present / 2)
        halve = now - self._slowed_at >= ONE_REFUSAL
        self._slowed_to = slower if halve else present
        self._refused_at = now
        if halve:
            self._slowed_at = now
        return halve and slower < present
