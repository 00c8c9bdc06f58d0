"""
What waits for one Channel; the dispatcher fills and empties it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

__all__ = ["Essential", "InHand", "Loss", "Mailbox", "Waiting"]

#: So often per full mailbox it is noted when an item came.
MARKS = 16


class Essential(NamedTuple):
    """
    An item that is never dropped and does not count: a status, a gap, a push's callback; and what must live until then.
    """

    run: Callable[[Any], None]
    item: Any
    held: object


class Loss:
    """What an overflow lost, from the first event to the last; becomes one announcement."""

    __slots__ = ("after", "count", "first", "last")

    def __init__(self, at: datetime, after: int) -> None:
        self.count = 0
        self.first = self.last = at
        self.after = after  # how many ordinary items had been put in when it began: it stands behind them


class Waiting(NamedTuple):
    """
    What of a mailbox was not handed over yet.

    Attributes:
        since: since when, at the latest, None when nothing waits and nothing was lost unsaid.
        items: what waits, what is essential included, and what a worker has in its hands; it may be through with some.
    """

    since: datetime | None
    items: list[Any]


class InHand(NamedTuple):
    """
    What a worker has in hand.

    Attributes:
        mailbox: what it took that from.
        worker: its thread's number.
        begun: when, monotonic.
        place: what changes when the worker is through with an item.
        first: whether the item in progress is the first of them, so that it began then.
        item: the item in progress, None when the worker is through with all of them.
    """

    mailbox: Mailbox
    worker: int
    begun: float
    place: tuple[int, int]
    first: bool
    item: Any

    @property
    def several(self) -> bool:
        """Whether more than one callback is called with the item, one after another. Not under a lock."""
        return self.mailbox.callback_count(self.item) > 1


class Mailbox:
    """
    What waits for one Channel. A kind of mailbox says in `run` what becomes of an item, on a worker.

    Args:
        owner: whose it is, for who decides about an overflow.
        limit: items it holds; what is essential comes on top.
        overflow: see `PoolOptions.overflow`.
        pulled: whether it is read with `Dispatcher.take`; workers run only what is essential then.

    Thread-safety: every attribute belongs to the dispatcher's lock, but for `done` and `slow`, which are its worker's;
    the counters and `interrupted` may be read anywhere.
    """

    __slots__ = (
        "alone",
        "appended",
        "begun",
        "blocked",
        "callback_seconds",
        "counted",
        "counted_at",
        "delivered",
        "done",
        "dropped",
        "ended",
        "generation",
        "hand",
        "holder",
        "interrupted",
        "items",
        "limit",
        "loss",
        "lost",
        "marks",
        "ordinary",
        "overflow",
        "overflowed",
        "owner",
        "pulled",
        "received",
        "removed",
        "running",
        "runs",
        "scheduled",
        "slow",
        "spare",
        "taken_at",
    )

    def __init__(self, owner: Any, *, limit: int, overflow: str, pulled: bool = False) -> None:
        self.owner = owner
        self.pulled = pulled
        self.limit = limit
        self.overflow = overflow
        # None, for an empty deque has 760 bytes and most mailboxes wait for hours; what came first, as it came; a deque
        # once there is more, see `queue`.
        self.items: Sequence[Any] | None = None
        self.ordinary = 0  # of the items; the others are essential, and come on top of the limit
        # Ordinary items put in and taken out since it was opened, and when some of them came: (how many had, when).
        self.appended = self.removed = 0
        self.marks: list[tuple[int, datetime]] | None = None
        self.spare: deque[Any] | None = None  # essential: never dropped, counted neither as delivered nor as queued
        self.hand: Sequence[Any] = ()  # a worker's, from when it took them until it is through with all of them
        self.loss: Loss | None = None
        self.scheduled = False
        self.running: int | None = None  # the worker's thread id
        self.begun = 0.0  # when it took what it has in hand, monotonic
        self.runs = 0
        self.interrupted = False  # the worker is to look up after the item in progress
        self.done = 0  # items of its hand the worker is through with
        self.slow = False  # the last of them took long
        self.alone = False  # no other mailbox waited when they were taken
        self.counted, self.counted_at = (
            0,
            0.0,
        )  # of those so many are counted as delivered, and when that was, monotonic
        self.blocked = False
        self.ended = True  # closed to ordinary items until its Channel is attached
        self.overflowed = 0  # the number of the subscription that fell behind
        self.holder = 0  # the number of the subscription it is, or was last, open for
        # Of the subscription, and when a worker took what it has in hand: it drops what an earlier one left there.
        self.generation = self.taken_at = 0
        self.received = 0
        self.delivered = 0
        self.dropped = 0
        self.lost = 0  # of the dropped ones, those for which it had no room
        self.callback_seconds = 0.0  # for which it was in workers' hands

    # What a kind of mailbox says; called without a lock.

    def run(self, item: Any) -> None:
        """Do with an item, on a worker, what it is for."""
        raise NotImplementedError

    def run_each(self, items: Sequence[Any]) -> None:
        """`run` with each item, counting in `done`, until the worker is to look up."""
        for item in items:
            self.run(item)
            self.done += 1
            if self.interrupted:
                return

    def announce_loss(self, first: datetime, last: datetime, count: int) -> Any:
        """Make the item that tells of lost ones, from the first and last time of loss and their number."""
        raise NotImplementedError

    def callback_count(self, item: Any) -> int:
        """How many callbacks are called with an item, one after another, at most."""
        raise NotImplementedError

    def hold(self) -> object:
        """What must live as long as something essential waits: the callbacks it is for."""
        return None

    # Under the dispatcher's lock

    @property
    def queued(self) -> int:
        """Ordinary items that wait, or that a worker has in its hands."""
        return self.received - self.delivered - self.dropped

    def queue(self) -> deque[Any]:
        """The items, to add to and to take from."""
        items = self.items
        if not isinstance(items, deque):
            self.items = items = deque(items or ())
        return items

    def essentials(self) -> deque[Any]:
        """The spare items, to add to."""
        if self.spare is None:
            self.spare = deque()
        return self.spare

    @property
    def ordinary_in_hand(self) -> int:
        """How many items that are not essential a worker has in its hands."""
        hand = self.hand
        return 0 if not hand or isinstance(hand[0], Essential) else len(hand)

    def count(self, done: int, now: float) -> tuple[int, float]:
        """
        A worker is through with so many of the items in its hands: count those that were not, and its time since.

        Returns:
            What was added to `delivered` and to `callback_seconds`.
        """
        more, took = 0, now - self.counted_at
        if self.ordinary_in_hand:
            more = done - self.counted
        self.counted, self.counted_at = done, now
        self.delivered += more
        self.callback_seconds += took
        return more, took

    def in_hand(self, worker: int) -> InHand:
        """What a worker has in its hands, as a look from another thread sees it."""
        first = len(self.hand) == 1 or (self.ordinary_in_hand > 0 and not self.done)
        hand, done = self.hand, self.done
        item = hand[done] if done < len(hand) else None
        return InHand(self, worker, self.begun, (self.runs, done), first, getattr(item, "item", item))

    def mark(self, now: datetime) -> None:
        """Note when the next item comes, if it is time for that."""
        marks = self.marks
        if marks is None or not (self.ordinary or self.hand):
            self.marks = [(self.appended, now)]
            return
        if self.ordinary and self.appended - marks[-1][0] < self.limit / MARKS:
            return
        marks.append((self.appended, now))
        of_interest = self.removed - self.ordinary_in_hand
        while len(marks) > 1 and marks[1][0] <= of_interest:
            del marks[0]

    def came_at(self, index: int, now: datetime) -> datetime:
        """When the item of this number came, or some time before."""
        came = now
        for count, at in reversed(self.marks or ()):
            came = at
            if count <= index:
                break
        return came

    def oldest_came_at(self, now: datetime) -> datetime:
        """When the oldest item came that waits, or that a worker has in its hands, or some time before."""
        return self.came_at(self.removed - self.ordinary_in_hand, now)

    def waiting(self, now: datetime) -> Waiting:
        """What waits, and what was lost and not announced yet."""
        times = [self.oldest_came_at(now)] if self.queued else []
        times += [self.loss.first] if self.loss is not None else []
        items = (*self.hand, *(self.spare or ()), *(self.items or ()))
        return Waiting(min(times, default=None), [item.item if isinstance(item, Essential) else item for item in items])

    def due_loss(self) -> Loss | None:
        """A loss that stands before the next item, to be announced now."""
        loss = self.loss
        if loss is None or loss.after > self.removed:
            return None
        self.loss = None
        return loss

    def lose(self, items: Sequence[Any], lost: int, now: datetime) -> Sequence[Any]:
        """Drop so many of what waits and of `items` that come, as the policy says; those of `items` that go in."""
        room, loss = len(items) - lost, self.loss
        if loss is None and self.overflow == "drop_oldest":
            loss = Loss(self.came_at(self.removed, now) if self.ordinary else now, 0)
        elif loss is None:
            loss = Loss(now, self.appended + room)
        self.loss = loss
        loss.count += lost
        loss.last = now
        if self.overflow == "drop_newest":
            return items[:room]
        of_old = min(lost, self.ordinary)
        self.remove_oldest(of_old)
        self.appended += lost - of_old  # came, and went at once
        self.removed += lost
        return items[lost - of_old :]

    def remove_oldest(self, count: int) -> None:
        """Take out so many ordinary items, the oldest."""
        queue, essentials = self.queue(), []
        self.ordinary -= count
        while count:
            item = queue.popleft()
            if isinstance(item, Essential):
                essentials.append(item)
            else:
                count -= 1
        queue.extendleft(reversed(essentials))

    def next_batch(self, size: int) -> Sequence[Any]:
        """Take out up to so many items that are all essential, or all ordinary, with no loss between them."""
        batch: Sequence[Any]
        if self.spare:
            batch, self.spare = tuple(self.spare), None
            return batch
        items = self.items
        if not items or self.pulled:
            return ()
        if self.ordinary == len(items) <= size and self.loss is None:  # as it mostly is
            self.items, self.ordinary = None, 0
            self.removed += len(items)
            return tuple(items) if isinstance(items, deque) else items
        essential = isinstance(items[0], Essential)
        if not essential and self.loss is not None:
            size = min(size, self.loss.after - self.removed)
        if essential or self.ordinary < len(items):
            same = itertools.takewhile(lambda item: isinstance(item, Essential) is essential, items)
            batch = tuple(itertools.islice(same, size))
        else:
            batch = tuple(itertools.islice(items, size))
        if len(batch) == len(items):
            self.items = None
        else:
            items = self.queue()
            for _ in batch:
                items.popleft()
        if not essential:
            self.ordinary -= len(batch)
            self.removed += len(batch)
        return batch
