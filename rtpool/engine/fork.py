"""
What becomes of a pool in a forked child: it has none of the parent's threads, and the parent's sockets are not its own.

No thread of the parent runs in the child and what one had locked stays locked, so the child goes on with an engine of
its own. What users asked for (`Subscriber`, with its callbacks) is carried over; nothing that was under way is.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

from rtpool.engine.connection import UNDER_WAY
from rtpool.engine.engine import Engine
from rtpool.engine.joins import Outage
from rtpool.engine.mailboxes import make_mailbox, make_subscriber_mailbox
from rtpool.errors import ConnectionFailed, PoolClosed, PoolForked
from rtpool.events import StatusChange
from rtpool.registry import Delivery, Subscriber

__all__ = ["forked", "inherit"]


def forked(topic: str) -> PoolForked:
    """The error for who meets a subscription that the fork ended."""
    return PoolForked(
        f"the subscription of {topic!r} is the parent process's; subscribe anew in this one, or use the option "
        "after_fork='resubscribe'"
    )


def inherit(old: Engine, new: Engine, subscribers: Iterable[Subscriber], *, resubscribe: bool) -> None:
    """
    Make `new` the engine of `subscribers` in a forked child, where `old` is left to the parent.

    Args:
        subscribers: every Channel of the pool that somebody still holds or that is subscribed, oldest first.
        resubscribe: whether those that are subscribed are so again, with threads and a connection of the child's own,
            and a `Gap` from the last proof of life before the fork; else they are closed, and their callbacks stay.
    """
    again = []
    for subscriber in subscribers:
        error = forked(subscriber.topic) if subscriber.attachment is not None else None
        outage = _outage(old, subscriber)
        before = subscriber.inherit(
            make_subscriber_mailbox(new, subscriber),
            stream=None if subscriber.stream is None else make_mailbox(new, subscriber, None, subscriber.stream.limit),
        )
        if before is not None and resubscribe:
            attachment = new.registry.attach(subscriber)
            assert attachment is not None
            attachment.flowing_since, attachment.outage = before.flowing_since, outage
            if before.share.wish is not None and subscriber in before.share.trackers:
                new.registry.track(subscriber, before.share.wish)
            for sink in (subscriber.mailbox, subscriber.stream):
                if sink is not None:
                    new.dispatcher.open(sink, attachment.number)
            attachment.opened = True
            again.append(subscriber)
        else:
            subscriber.forked = before is not None
        if error is not None and any(binding.kind == "status" for binding in subscriber.bindings):
            status = "rejoining" if resubscribe else "closed"
            delivery = Delivery("status", status, StatusChange(subscriber.topic, status, error))
            new.dispatcher.deliver_essential(subscriber.mailbox, subscriber.mailbox.run, delivery)
    if again:
        _start(new, again)


def _start(new: Engine, subscribers: list[Subscriber]) -> None:
    try:
        new.start()
        for key in dict.fromkeys(subscriber.key for subscriber in subscribers):
            new.post(new.coordinator.sync, key)
    except (ConnectionFailed, PoolClosed) as error:  # once it is started, the health check finds who is not joined
        new.warn(f"the Channels could not be subscribed in the forked process: {error}; call connect()")


def _outage(old: Engine, subscriber: Subscriber) -> Outage | None:
    """Since when the child may lack messages that were a Channel's, None when none ever came to it."""
    attachment = subscriber.attachment
    if attachment is None or attachment.flowing_since is None:
        return None
    if attachment.outage is not None:
        return Outage("fork", attachment.outage.lost_from)
    join = old.coordinator.joins.get(subscriber.key)
    if join is None or join.connection is None:
        return Outage("fork", attachment.flowing_since)
    since = datetime.now(timezone.utc) - timedelta(seconds=join.connection.silence)
    for sink in subscriber.sinks:
        if sink.queued:  # what waited for a callback or a reader, the parent's have
            since = min(since, old.dispatcher.waiting_since(sink) - timedelta(seconds=UNDER_WAY))
    return Outage("fork", since)
