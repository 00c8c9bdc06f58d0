"""
What the rules remember from look to look: how long something has been so, and how much a counter grew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

__all__ = ["Memory"]

#: A counter's past is kept at so many instants of its window.
MARKS = 20


class _Counter:
    """What a counter showed within the last `window` seconds, and just before."""

    __slots__ = ("_marks", "_window")

    def __init__(self, window: float, at: float, value: int) -> None:
        self._window = window
        self._marks: deque[tuple[float, int]] = deque([(at, value)])

    def grown(self, at: float, value: int) -> int:
        marks = self._marks
        if value < marks[-1][1]:  # it is another one, which began anew
            marks.clear()
            marks.append((at, 0))
        if len(marks) > 1 and at - marks[-1][0] < self._window / MARKS:
            marks[-1] = marks[-1][0], value
        else:
            marks.append((at, value))
        while len(marks) > 1 and marks[1][0] <= at - self._window:
            marks.popleft()
        return value - marks[0][1]


class _Peak:
    """The highest of what was seen within the last `window` seconds."""

    __slots__ = ("_seen", "_window")

    def __init__(self, window: float) -> None:
        self._window = window
        self._seen: deque[tuple[float, int]] = deque()  # only those that nothing later reaches

    def highest(self, at: float, value: int) -> int:
        while self._seen and self._seen[-1][1] <= value:
            self._seen.pop()
        self._seen.append((at, value))
        while self._seen[0][0] < at - self._window:
            self._seen.popleft()
        return self._seen[0][1]


class Memory:
    """
    Between two calls of `begin` lies one look; what no look asks for is forgotten with it.

    Thread-safety: none; its owner's lock guards it.
    """

    def __init__(self) -> None:
        self._at = 0.0
        self._since: dict[Hashable, float] = {}
        self._counters: dict[Hashable, _Counter] = {}
        self._peaks: dict[Hashable, _Peak] = {}
        self._asked: set[Hashable] = set()

    def begin(self, at: float) -> None:
        """A look begins, at a monotonic instant."""
        for known in (self._since, self._counters, self._peaks):
            for key in [key for key in known if key not in self._asked]:
                del known[key]
        self._asked.clear()
        self._at = at

    def lasted(self, *key: Hashable) -> float:
        """Seconds for which something has been so, at each look until now; to be asked in every look in which it is."""
        self._asked.add(key)
        return self._at - self._since.setdefault(key, self._at)

    def grown(self, *key: Hashable, value: int, window: float, ever: bool = True) -> int:
        """
        How much a counter grew in the last `window` seconds; to be asked in every look.

        Args:
            ever: whether what it shows at the first look is news, too.
        """
        self._asked.add(key)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = _Counter(window, self._at, 0 if ever else value)
        return counter.grown(self._at, value)

    def most(self, *key: Hashable, value: int, window: float) -> int:
        """The highest that something was in the last `window` seconds, as far as it was asked for in every look."""
        self._asked.add(key)
        return self._peaks.setdefault(key, _Peak(window)).highest(self._at, value)
