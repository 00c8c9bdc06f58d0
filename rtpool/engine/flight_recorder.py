"""
What happened last to a pool, kept while it runs, for whoever asks why.

All that is worth a line in the log is kept here too, whether anybody reads the log or not; `rtpool.engine.logs` does
both in one call.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

from rtpool.unlocked import read_unlocked

__all__ = ["Entry", "FlightRecorder"]

#: Characters of one text in an entry; and of an entry, when it is shown.
TEXT, SHOWN = 300, 1_000
#: Entries that go with the report of an internal error, and the seconds until others go with one again.
WITH_ERROR, ERROR_SECONDS = 20, 60.0


class Entry(NamedTuple):
    """
    Something that happened.

    Attributes:
        at, monotonic: when, by the wall clock (aware) and in monotonic seconds.
        level: of its line in the log.
        words: with the names of fields in them, ``%(topic)r``.
        fields: JSON values; ``event`` is the kind of what happened.
    """

    at: datetime
    monotonic: float
    level: int
    words: str
    fields: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The words of its line in the log."""
        return (self.words % self.fields)[:SHOWN]

    def __str__(self) -> str:
        at = self.at.isoformat(timespec="milliseconds")
        return f"{at} {self.monotonic:.3f} {logging.getLevelName(self.level)} {self.text}"

    def as_dict(self) -> dict[str, Any]:
        """The same as a JSON-able dictionary."""
        return {
            "at": self.at.isoformat(),
            "monotonic": self.monotonic,
            "level": logging.getLevelName(self.level),
            "text": self.text,
            **self.fields,
        }


class FlightRecorder:
    """
    The last entries of a pool: so many about the pool and its connections, and so many about topics and frames, for ten
    thousand joins must not push out why the connection was lost.

    Args:
        size: entries of each kind; 0 keeps none.
        clock, wall: monotonic seconds, aware wall-clock time.

    Thread-safety: every method may be called from any thread and signal handler; no lock is taken.
    """

    def __init__(
        self,
        size: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._clock = clock
        self._wall = wall
        # Appending to these is atomic, dropping the oldest included.
        self._of_pool: deque[Entry] = deque(maxlen=size)
        self._of_topics: deque[Entry] = deque(maxlen=size)
        self._told_at: float | None = None

    def add(self, level: int, words: str, fields: Mapping[str, Any], *, frame: bool = False) -> None:
        """
        Keep an entry. Of its texts `TEXT` characters are kept, and no reference to anything else.

        Args:
            fields: numbers, short texts, None.
            frame: whether it is a frame.
        """
        kept = {name: value[:TEXT] if isinstance(value, str) else value for name, value in fields.items()}
        entries = self._of_topics if frame or "topic" in kept else self._of_pool
        entries.append(Entry(self._wall(), self._clock(), level, words, kept))

    def entries(self) -> list[Entry]:
        """What is kept, oldest first."""
        kept = read_unlocked(lambda: [*self._of_pool, *self._of_topics])
        return sorted(kept, key=lambda entry: entry.monotonic)

    def for_error(self) -> str:
        """The newest entries as text, for the report of an internal error; empty when others had them just now."""
        now = self._clock()
        if self._told_at is not None and now - self._told_at < ERROR_SECONDS:
            return ""
        self._told_at = now
        return "\n".join(map(str, self.entries()[-WITH_ERROR:]))
