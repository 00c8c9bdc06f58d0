"""
What becomes of a pool in a forked child: it has none of the parent's threads, and the parent's sockets are not its own.

No thread of the parent runs in the child and what one had locked stays locked, so the child goes on with an engine of
its own. What users asked for (`Subscriber`, with its callbacks) is carried over; nothing that was under way is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

from rtpool.engine.connection import UNDER_WAY
from rtpool.engine.engine import Engine
from rtpool.engine.joins import Outage
from rtpool.engine.mailboxes import ChannelMailbox
from rtpool.errors import ConnectionFailed, PoolClosed, PoolForked
from rtpool.events import Gap, StatusChange
from rtpool.registry import Attachment, Delivery, Subscriber

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
        new: not started; stopped for a pool that was closed, or about to be, at the fork: it stays so in the child.
        subscribers: every Channel of the pool that somebody still holds or that is subscribed, oldest first.
        resubscribe: whether those that are subscribed are so again, with threads and a connection of the child's own,
            and a `Gap` from the last proof of life before the fork; else they are closed, and their callbacks stay.
    """
    words = "= pool %(pool)s goes on in process %(child)d, which was forked"
    new.logs.pool.note("pool_forked", words, child=os.getpid())  # a handler may need what is not here any more
    again = []
    for subscriber in subscribers:
        outage = _outage(old, subscriber) if resubscribe else None
        before = subscriber.inherit(
            ChannelMailbox(new, subscriber),
            stream=subscriber.stream and ChannelMailbox(new, subscriber, limit=subscriber.stream.limit, pulled=True),
        )
        # By an earlier fork, and not subscribed since: a daemon is a child of a child.
        subscriber.forked = not new.closed and (before is not None or subscriber.forked)
        if not subscriber.forked:
            continue
        if before is not None and resubscribe:
            _attach(old, new, subscriber, before, outage)
            again.append(subscriber)
        if any(binding.kind == "status" for binding in subscriber.bindings):
            status = "rejoining" if resubscribe else "closed"
            change = StatusChange(subscriber.topic, status, forked(subscriber.topic))
            new.dispatcher.deliver_essential(
                subscriber.mailbox, subscriber.mailbox.run, Delivery("status", status, change)
            )
    if again:
        _start(new, again)


def _attach(old: Engine, new: Engine, subscriber: Subscriber, before: Attachment, outage: Outage | None) -> None:
    """Subscribe a Channel again as it was by `before`, the parent's."""
    attachment = new.registry.attach(subscriber)
    assert attachment is not None
    attachment.flowing_since, attachment.outage = before.flowing_since, outage
    join = old.coordinator.joins.get(subscriber.key)
    if join is not None and join.replay is not None and join.replay.started:  # what was had is not to come twice
        attachment.caught_up = before.caught_up
        new.coordinator.joining.inherited[subscriber.key] = join.replay
    if before.share.wish is not None and subscriber in before.share.trackers:
        new.registry.track(subscriber, before.share.wish)
    for sink in (subscriber.mailbox, subscriber.stream):
        if sink is not None:
            new.dispatcher.open(sink, attachment.number)
    attachment.opened = True


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
    join = old.coordinator.joins.get(subscriber.key)
    if attachment.outage is not None:
        since = attachment.outage.lost_from
    elif join is None or join.connection is None:
        since = attachment.flowing_since
    else:
        since = datetime.now(timezone.utc) - timedelta(seconds=join.connection.silence)
    for sink in subscriber.sinks:  # what waited for a callback or a reader, the parent's have
        waited = old.dispatcher.waiting(sink)
        if waited.since is not None:
            since = min(since, waited.since - timedelta(seconds=UNDER_WAY))
        gaps = (item.event for item in waited.items if isinstance(item, Delivery) and isinstance(item.event, Gap))
        since = min((since, *(gap.lost_from for gap in gaps)))  # and nobody here was told of those
    return Outage("fork", since)
