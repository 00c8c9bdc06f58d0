"""
A Channel's mailboxes: how an event becomes calls of its callbacks. They refer to neither the Channel nor the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from rtpool.engine.connection import UNDER_WAY
from rtpool.engine.dispatcher import Mailbox
from rtpool.engine.engine import Engine
from rtpool.events import Event, Gap, Message
from rtpool.registry import Delivery, Subscriber

__all__ = ["make_mailbox", "make_subscriber_mailbox"]


def make_subscriber_mailbox(engine: Engine, subscriber: Subscriber) -> Mailbox:
    """The mailbox of a Channel's callbacks. It refers to neither the Channel nor the pool."""

    def run(delivery: Delivery) -> None:
        mailbox: Mailbox = subscriber.mailbox
        for binding in subscriber.bindings:
            if not binding.wants(delivery):
                continue
            # A callback before this one may have called off() or unsubscribe().
            if binding not in subscriber.bindings or (mailbox.ended and delivery.kind not in ("status", "gap")):
                continue
            event: Event = delivery.event
            if binding.kind == "raw" and delivery.wire is not None:
                event = Message(subscriber.topic, delivery.wire.event, delivery.wire.payload)
            engine.run_user_code(binding.callback, event, repr(subscriber.topic))

    return make_mailbox(engine, subscriber, run, None)


def make_mailbox(
    engine: Engine, subscriber: Subscriber, run: Callable[[Delivery], None] | None, limit: int | None
) -> Mailbox:
    """A mailbox of a Channel, announcing what it loses as a `Gap`."""

    def announce_loss(first: Any, last: Any, count: int) -> Delivery:
        engine.count_overflow_gap()
        since = first - timedelta(seconds=UNDER_WAY)
        return Delivery("gap", "overflow", Gap(subscriber.topic, "overflow", since, last, certain=True))

    options = engine.options
    return Mailbox(
        subscriber,
        run,
        limit=limit or options.mailbox_limit,
        overflow=options.overflow,
        announce_loss=announce_loss,
        hold=subscriber.held,
    )
