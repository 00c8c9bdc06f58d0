"""
A Channel's mailboxes: how an event becomes calls of its callbacks. They refer to neither the Channel nor the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from rtpool.engine.connection import UNDER_WAY
from rtpool.engine.engine import Engine
from rtpool.engine.mailbox import Mailbox
from rtpool.engine.threads import enter_user_code
from rtpool.events import Broadcast, Event, Gap, Message
from rtpool.protocol.messages import BROADCAST
from rtpool.registry import Delivery, Subscriber

__all__ = ["ChannelMailbox"]

#: The kinds of events a Channel still hears of when it has ended.
OUTLIVES = ("status", "gap")


class ChannelMailbox(Mailbox):
    """
    A mailbox of a Channel, announcing what it loses as a `Gap`.

    Args:
        engine: whose workers run it.
        subscriber: the Channel's.
        limit: items it holds, None for the pool's `mailbox_limit`.
        pulled: whether somebody reads it in a loop; else the callbacks are called.
    """

    __slots__ = ("_engine",)

    def __init__(
        self, engine: Engine, subscriber: Subscriber, *, limit: int | None = None, pulled: bool = False
    ) -> None:
        options = engine.options
        super().__init__(subscriber, limit=limit or options.mailbox_limit, overflow=options.overflow, pulled=pulled)
        self._engine = engine

    def run(self, item: Delivery | Broadcast) -> None:
        """Call the callbacks that want one event."""
        self.run_each((item,))

    def run_each(self, items: Sequence[Delivery | Broadcast]) -> None:
        """
        Call the callbacks that want each event.

        All of a message's way to its callback is in one loop: each call in between would cost as much as all the rest.
        """
        engine, subscriber, held = self._engine, self.owner, self.owner.held
        event: Event
        for item in items:
            if isinstance(item, Broadcast):
                kind, name, event = BROADCAST, item.event, item
            else:
                kind, name, event, _, _ = item
            found = held()
            bindings = found.all if found is not None else ()
            for binding in bindings:
                if binding.change is not None or binding.kind != kind:
                    if isinstance(item, Broadcast) or not binding.wants(item):
                        continue
                elif binding.name != name and binding.name != "*":
                    continue
                value = event if binding.kind != "raw" else _raw(subscriber, item)
                # A callback before this one may have called off() or unsubscribe(), or forked and gone on in the child.
                if found is not None and found.all is not bindings and binding not in found.all:
                    continue
                if self.generation != self.taken_at and kind not in OUTLIVES:
                    continue
                if engine.forked:
                    return
                try:
                    enter_user_code(binding.callback, value)
                except BaseException as error:  # a callback that calls sys.exit() must not take a worker along
                    engine.callback_failed(error, binding.callback, value, repr(subscriber.topic))
            self.done += 1
            if self.interrupted:
                return

    def announce_loss(self, first: datetime, last: datetime, count: int) -> Delivery:
        """The `Gap` of events that were lost here."""
        gap = Gap(self.owner.topic, "overflow", first - timedelta(seconds=UNDER_WAY), last, certain=True)
        self._engine.overflow_gap(gap, id(self), count)
        return Delivery("gap", "overflow", gap)

    def callback_count(self, item: Delivery | Broadcast | None) -> int:
        """Those that want it."""
        found = self.owner.held()
        if found is None or item is None:
            return 0
        if isinstance(item, Broadcast):
            return sum(each.kind == BROADCAST and each.name in (item.event, "*") for each in found.all)
        return sum(each.wants(item) for each in found.all)

    def hold(self) -> object:
        """The callbacks."""
        return self.owner.held()


def _raw(subscriber: Subscriber, delivery: Any) -> Message:
    """The Phoenix message behind an event."""
    return Message(subscriber.topic, delivery.wire.event, delivery.wire.payload)
