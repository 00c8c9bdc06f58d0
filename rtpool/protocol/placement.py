"""
Which connection hosts a topic: fill first, over as few sockets as possible.

Every socket counts against the project's quota of users, and one topic over several sockets is billed several times.
So a socket is filled before another is opened; a topic may stand once per socket, because the server closes the first
of two.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from typing import NamedTuple

__all__ = ["Merge", "OPEN", "Slot", "merge_plan", "place"]

#: `place` says: open another connection.
OPEN = -1
#: How full merging may make a connection: the next topics are to find room without another socket.
FULL_ENOUGH = 0.9


class Slot(NamedTuple):
    """
    What placement needs to know of a connection.

    Attributes:
        connection_id: its number.
        topics: the topics placed on it, joined or not.
        used: how many those are.
        capacity: how many it may hold; lower than the option after the server said so.
        is_open: whether it serves now; one that is away is no place for a newcomer while another has room.
    """

    connection_id: int
    topics: Collection[str]
    used: int
    capacity: int
    is_open: bool = True


def place(topic: str, slots: Iterable[Slot], *, max_connections: int) -> int | None:
    """
    Choose the fullest connection that has room for `topic` and does not hold it yet; one that is open, if there is.

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
        if best is None or _rank(slot) > _rank(best):
            best = slot
    if best is not None:
        return best.connection_id
    return OPEN if count < max_connections else None


def _rank(slot: Slot) -> tuple[bool, int, int]:
    return slot.is_open, slot.used, -slot.connection_id


class Merge(NamedTuple):
    """A connection that can be emptied, and where each of its topics goes."""

    connection_id: int
    moves: dict[str, int]


def merge_plan(slots: Iterable[Slot], movable: Container[int]) -> Merge | None:
    """
    Find a connection whose topics all fit into the others, none of which becomes fuller than `FULL_ENOUGH`.

    Topics only go to fuller connections, and among equally full ones to older: that is where `place` would put them,
    so what was merged does not come apart again.

    Args:
        slots: every connection there is.
        movable: the ids of those all of whose topics can be moved now.

    Returns:
        The emptiest such connection, the youngest of equals; None when there is none.
    """
    fullest_first = sorted((s for s in slots if s.used), key=lambda s: (-s.used, s.connection_id))
    for index in range(len(fullest_first) - 1, 0, -1):
        source = fullest_first[index]
        if source.connection_id in movable:
            moves = _moves(source, fullest_first[:index])
            if moves is not None:
                return Merge(source.connection_id, moves)
    return None


def _moves(source: Slot, targets: list[Slot]) -> dict[str, int] | None:
    room = {target.connection_id: int(target.capacity * FULL_ENOUGH) - target.used for target in targets}
    hosts = {topic: [t.connection_id for t in targets if topic not in t.topics] for topic in source.topics}
    moves = {}
    for topic in sorted(hosts, key=lambda topic: (len(hosts[topic]), topic)):  # those that few can take come first
        host = next((host for host in hosts[topic] if room[host] > 0), None)
        if host is None:
            return None
        moves[topic] = host
        room[host] -= 1
    return moves
