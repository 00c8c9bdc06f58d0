"""
Which connection hosts a topic: fill first, over as few sockets as possible.

Every socket counts against the project's quota of users, and one topic over several sockets is billed several times.
So a socket is filled before another is opened; a topic may stand once per socket, because the server closes the first
of two.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any, NamedTuple

__all__ = ["OPEN", "Slot", "place"]

#: `place` says: open another connection.
OPEN = -1


class Slot(NamedTuple):
    """
    What placement needs to know of a connection.

    Attributes:
        connection_id: its number.
        topics: the topics placed on it, joined or not.
        used: how many those are.
        capacity: how many it may hold; lower than the option after the server said so.
    """

    connection_id: int
    topics: Container[Any]
    used: int
    capacity: int


def place(topic: str, slots: Iterable[Slot], *, max_connections: int) -> int | None:
    """
    Choose the fullest connection that has room for `topic` and does not hold it yet.

    Args:
        topic: the wire topic.
        slots: every connection there is.
        max_connections: how many there may be.

    Returns:
        The connection's id, `OPEN` for a new one, or None when there is no room. Among equally full connections the
        oldest wins, so the younger can run empty.
    """
    count = 0
    best: Slot | None = None
    for slot in slots:
        count += 1
        if slot.used >= slot.capacity or topic in slot.topics:
            continue
        if best is None or (slot.used, -slot.connection_id) > (best.used, -best.connection_id):
            best = slot
    if best is not None:
        return best.connection_id
    return OPEN if count < max_connections else None
