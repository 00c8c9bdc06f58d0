"""
The table ``realtime.messages`` of the embedded server: what the database sent, kept for replay.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs

__all__ = ["ReplayRefused", "Store", "StoredMessage"]

#: Messages one join gets at most.
MAX_REPLAYED = 25

#: Seconds a message is kept.
KEPT = 72 * 3600.0

#: Largest instant PostgreSQL and Elixir can tell, in milliseconds.
LAST_INSTANT = 253_402_300_799_999


class ReplayRefused(Exception):
    """Replay asked for in a way the server refuses; the words are its own."""


@attrs.frozen
class StoredMessage:
    """
    A row of ``realtime.messages``.

    Attributes:
        topic: as users write it.
        inserted_at: seconds since the epoch.
    """

    id: str
    topic: str
    event: str
    payload: Any
    private: bool
    inserted_at: float


class Store:
    """
    What was sent from the database.

    Args:
        now: the clock, in seconds since the epoch.
        limit: how many messages are kept; the oldest go first.

    Thread-safety: confined to the server's loop.
    """

    def __init__(self, now: Callable[[], float], limit: int) -> None:
        self._now = now
        self._messages: deque[StoredMessage] = deque(maxlen=limit)

    def add(
        self, topic: str, event: str, payload: Any, *, private: bool, id: str | None, inserted_at: float | None
    ) -> StoredMessage:
        """Keep an object or bytes; without an id it gets one, which an object without an ``id`` gets too."""
        number = id or str(uuid.uuid4())
        if isinstance(payload, dict) and "id" not in payload:
            payload = {**payload, "id": number}
        when = self._now() if inserted_at is None else inserted_at
        message = StoredMessage(number, topic, event, payload, private, when)
        if isinstance(payload, (dict, bytes)):
            self._messages.append(message)
        return message

    def all(self) -> list[StoredMessage]:
        """Every message, in the order of sending."""
        return list(self._messages)

    def clear(self) -> None:
        """Forget everything."""
        self._messages.clear()

    def replay(self, topic: str, wanted: Any) -> list[StoredMessage]:
        """
        What a join that asked for `wanted` gets, oldest first: the newest ones, as many as it may.

        Raises:
            ReplayRefused: `since` or `limit` is no integer, or `since` is out of any calendar.
        """
        if not isinstance(wanted, dict):
            return []
        since, limit = wanted.get("since"), wanted.get("limit", MAX_REPLAYED)
        if type(since) is not int or type(limit) is not int or abs(since) > LAST_INSTANT:
            raise ReplayRefused("Replay params are not valid")
        oldest = max(since / 1000, self._now() - KEPT)
        found = [m for m in self._messages if m.private and m.topic == topic and m.inserted_at >= oldest]
        found.sort(key=lambda message: message.inserted_at)
        return found[-min(max(limit, 1), MAX_REPLAYED) :]
