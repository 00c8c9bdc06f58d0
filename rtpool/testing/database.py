"""
What can be wrong with the embedded server's database, and what those that need it are told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

import attrs

from rtpool.testing.records import JoinRefusal
from rtpool.testing.refusals import Join, Rest, System

__all__ = ["Database", "Trouble", "Words"]

#: ``down``: its pool times out, as after a crash; ``unreachable``: nothing answers there; ``initializing`` and
#: ``connecting``: it is being set up; ``full``: it takes no more connections; ``busy``: the pool is exhausted;
#: ``slow``: statements are cancelled; ``no partition``: the table of messages lacks today's.
Trouble = Literal["down", "unreachable", "initializing", "connecting", "full", "busy", "slow", "no partition"]


@attrs.frozen
class Words:
    """What a join, a REST call for one private event, and a channel with a new token are told."""

    join: Callable[[], JoinRefusal]
    rest: Rest
    system: System
    everybody: bool = False  # public joins wait for a connection, too


def _cancelled() -> JoinRefusal:
    return Join.QUERY_CANCELED(error="ERROR 57014 (query_canceled) canceling statement due to statement timeout")


_WORDS: dict[Trouble, Words] = {
    "down": Words(Join.INCREASE_POOL, Rest.DATABASE_UNAVAILABLE, System.INCREASE_POOL),
    "unreachable": Words(Join.UNABLE_TO_CONNECT, Rest.DATABASE_UNAVAILABLE, System.UNABLE_TO_CONNECT, True),
    "initializing": Words(Join.INITIALIZING, Rest.INITIALIZING, System.INITIALIZING, True),
    "connecting": Words(Join.CONNECTING, Rest.CONNECTING, System.CONNECTING, True),
    "full": Words(Join.DATABASE_FULL, Rest.DATABASE_FULL, System.DATABASE_FULL, True),
    "busy": Words(Join.INCREASE_POOL, Rest.POOL_EXHAUSTED, System.INCREASE_POOL),
    "slow": Words(_cancelled, Rest.QUERY_CANCELED, System.QUERY_CANCELED),
    "no partition": Words(Join.MISSING_PARTITION, Rest.MISSING_PARTITION, System.UNABLE_TO_CONNECT),
}
_RATE = Words(Join.DATABASE_RATE, Rest.DATABASE_RATE, System.DATABASE_RATE)


class Database:
    """
    The state of the database, and how often it was tried in vain.

    Args:
        now: the clock, in seconds.

    Attributes:
        trouble: what is wrong; None is nothing.

    Thread-safety: confined to the server's loop; `trouble` may be read from any thread.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.trouble: Trouble | None = None
        self._errors: deque[float] = deque()

    def attempt(self, *, private: bool, limit: int | None, window: float) -> Words | None:
        """
        Need the database for a channel; None when it is there, or when public channels do without.

        Args:
            limit: after so many attempts in vain within `window` seconds no more are made; None makes all.
        """
        if self.trouble is None or not (private or _WORDS[self.trouble].everybody):
            return None
        now = self._now()
        while self._errors and now - self._errors[0] >= window:
            self._errors.popleft()
        if limit is not None and len(self._errors) >= limit:
            return _RATE
        self._errors.append(now)
        return _WORDS[self.trouble]
