"""
What waits for one Channel; the dispatcher fills and empties it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any

__all__ = ["Loss", "Mailbox"]


class Loss:
    """What an overflow lost, from the first event to the last; becomes one announcement."""

    __slots__ = ("count", "first", "last")

    def __init__(self, at: datetime) -> None:
        self.count = 0
        self.first = self.last = at


class Mailbox:
    """
    What waits for one Channel.

    Args:
        owner: whose it is, for who decides about an overflow.
        run: called on a worker with each item; None for a mailbox that is read with `Dispatcher.take`.
        limit: items it holds; what is essential comes on top.
        overflow: see `PoolOptions.overflow`.
        announce_loss: makes the item that tells of lost ones, from the first and last time of loss and their number.
        hold: gives what must live as long as something essential waits: the callbacks it is for.

    Thread-safety: every attribute belongs to the dispatcher's lock; the counters may be read anywhere.
    """

    __slots__ = (
        "announce_loss",
        "appended",
        "blocked",
        "delivered",
        "dropped",
        "ended",
        "generation",
        "hand",
        "hold",
        "holder",
        "interrupted",
        "items",
        "limit",
        "loss",
        "marks",
        "ordinary",
        "overflow",
        "overflowed",
        "owner",
        "received",
        "removed",
        "run",
        "running",
        "runs",
        "scheduled",
        "spare",
    )

    def __init__(
        self,
        owner: Any,
        run: Callable[[Any], None] | None,
        *,
        limit: int,
        overflow: str,
        announce_loss: Callable[[datetime, datetime, int], Any],
        hold: Callable[[], object] = lambda: None,
    ) -> None:
        self.owner = owner
        self.hold = hold
        self.run = run
        self.limit = limit
        self.overflow = overflow
        self.announce_loss = announce_loss
        self.items: deque[Any] = deque()
        self.ordinary = 0  # of the items; the others are essential, and come on top of the limit
        # Ordinary items put in and taken out since it was opened, and when some of them came: (how many had, when).
        self.appended = self.removed = 0
        self.marks: deque[tuple[int, datetime]] = deque()
        self.spare: deque[Any] = deque()  # essential: never dropped, counted neither as delivered nor as queued
        self.hand: list[Any] = []  # a worker's, from when it took them until it is through with all of them
        self.loss: Loss | None = None
        self.scheduled = False
        self.running: int | None = None  # the worker's thread id
        self.runs = 0
        self.interrupted = False
        self.blocked = False
        self.ended = True  # closed to ordinary items until its Channel is attached
        self.overflowed = 0  # the number of the subscription that fell behind
        self.holder = 0  # the number of the subscription it is, or was last, open for
        self.generation = 0  # of the subscription; a worker drops what an earlier one left in its hands
        self.received = 0
        self.delivered = 0
        self.dropped = 0

    @property
    def queued(self) -> int:
        """Ordinary items that wait, or that a worker has in its hands."""
        return self.received - self.delivered - self.dropped
