"""
Whether events really flow to each Channel of a join, and telling it: joined, refused, interrupted, what may be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from rtpool.engine.joins import Join, Outage, fail_waiting, interrupt, refused
from rtpool.engine.logs import Log
from rtpool.engine.routing import Router
from rtpool.errors import RtpoolError
from rtpool.events import ChannelState, StatusChange
from rtpool.protocol.refusals import Action, classify_changes
from rtpool.registry import Registry

__all__ = ["Readiness"]

#: Seconds in which the server says that changes flow anew under a token it was given; it takes 1 to 3 (protocol 9.1).
RENEWAL_SECONDS = 6.0


class Readiness:
    """
    Who of a join is served. A sibling's changes feed is no business of those that want no changes.

    Args:
        registry: what users want.
        router: carries what is told.
        wall: aware wall-clock time, for the bounds of gaps.
        log: where trouble with changes feeds is told.

    Thread-safety: confined to the I/O thread.
    """

    def __init__(self, registry: Registry, router: Router, wall: Callable[[], datetime], log: Log) -> None:
        self._registry = registry
        self._router = router
        self._wall = wall
        self._log = log

    def interrupt(self, join: Join, outage: Outage) -> None:
        """Events flow no more: remember since when, for the join and for each member that has something to lose."""
        if interrupt(join.members, join.outage or outage):
            join.outage = join.outage or outage

    def clock_stepped(self, joins: Iterable[Join], seconds: float) -> None:
        """The wall clock was set: interruptions that are still to be told began by the old one."""
        for join in joins:
            if join.outage is not None:
                join.outage = join.outage.shifted(seconds)
            for subscriber in join.members:
                attachment = subscriber.attachment
                if attachment is not None and attachment.outage is not None:
                    attachment.outage = attachment.outage.shifted(seconds)

    def flow(self, join: Join, *, told: bool = False) -> None:
        """
        Let everybody know whose events really flow from now on, and announce to each what may have been lost.

        Args:
            told: whether the members heard the server say just now that changes flow.
        """
        if not join.flows:
            return
        join.outage = None
        for subscriber in join.members:
            attachment = subscriber.attachment
            if attachment is None or attachment.share is not join.share or attachment.flowing:
                continue
            if not join.flows_to(subscriber):
                continue
            attachment.flowing = True
            attachment.flowing_since = attachment.flowing_since or self._wall()
            self._registry.ask_again(subscriber)  # refused before, let in now: a new token, or a healed server
            if attachment.outage is not None:
                self._router.announce_gap(join, subscriber, attachment.outage)
                attachment.outage = None
            self._router.tell(subscriber, StatusChange(subscriber.topic, "joined"))
            if not attachment.ready.done():
                self._router.welcome(join, subscriber, told=told)
                attachment.ready.set_result(None)

    def publish_state(self, join: Join) -> None:
        """Show a join's state to who asks its Channels."""
        connection = join.connection
        if join.blocked is not None:
            join.share.state = ChannelState.ERRORED
            return
        state = connection.session.state(join.topic) if connection else ChannelState.CLOSED
        # Waiting for its turn is joining to its users, unless it is known to be in trouble.
        join.share.state = ChannelState.JOINING if state is ChannelState.CLOSED else state

    def tell_members(self, join: Join, status: str, error: RtpoolError | None) -> None:
        """Tell a status to every Channel of a join."""
        for subscriber in join.members:
            self._router.tell(subscriber, StatusChange(subscriber.topic, status, error))

    def tell_trouble(self, join: Join, status: str, error: RtpoolError) -> None:
        """Tell every Channel of a join what became of its connection; who was never served is still joining."""
        for subscriber in join.members:
            attachment = subscriber.attachment
            anew = attachment is None or attachment.flowing_since is not None or status != "rejoining"
            self._router.tell(subscriber, StatusChange(subscriber.topic, status if anew else "joining", error))

    def feed_spoke(self, join: Join, flowed: bool, alive_at: datetime, now: float) -> None:
        """
        Heed what the server said of a join's changes feed.

        Args:
            flowed: whether changes flowed before.
            alive_at: when the feed had last given a sign of life.
            now: monotonic seconds.
        """
        if join.changes_restarted:
            join.changes_restarted = False
            if join.renewals and now - join.renewed_at < RENEWAL_SECONDS:
                join.renewals -= 1
            else:
                join.renewals = 0
                for subscriber in join.members:
                    if subscriber.is_ready and subscriber.config.changes:
                        self._router.announce_gap(join, subscriber, Outage("feed restart", alive_at))
        if join.changes_flow and not flowed:
            self.flow(join, told=True)
        elif join.changes_error:
            self._feed_failed(join, alive_at)

    def _feed_failed(self, join: Join, alive_at: datetime) -> None:
        """The changes feed is in trouble; what else the join carries is not."""
        words, join.changes_error = join.changes_error, ""
        action = classify_changes(words)
        error = refused(join.name, words, action, self._log.hide)
        concerned = [s for s in join.members if s.config.changes]
        interrupt(concerned, Outage("feed restart", alive_at))
        for subscriber in concerned:
            self._router.tell(subscriber, StatusChange(subscriber.topic, "refused", error))
        self._log.warning("changes_refused", "! the changes of %(topic)r: %(why)s", topic=join.name, error=error)
        join.share.last_error = error
        if action is Action.FATAL:
            join.changes_refused = True
            fail_waiting(join.share, error, changes_only=True)
