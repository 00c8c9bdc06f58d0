"""
From a message of a join to the mailboxes of the Channels that share it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs

from rtpool.engine.connection import UNDER_WAY
from rtpool.engine.dispatcher import Dispatcher, Mailbox
from rtpool.engine.joins import Echo, Join, Outage, content_of
from rtpool.engine.logs import Log
from rtpool.engine.outgoing import Outgoing
from rtpool.errors import MailboxOverflow
from rtpool.events import Broadcast, BroadcastFields, Gap, Message, Presence, StatusChange, SystemMessage
from rtpool.protocol.json_engine import loads
from rtpool.protocol.messages import (
    BROADCAST,
    POSTGRES_CHANGES,
    PRESENCE_DIFF,
    PRESENCE_STATE,
    SYSTEM,
    WireMessage,
)
from rtpool.protocol.postgres import ChangeBinding, index_ids, matching, parse_change
from rtpool.protocol.presence import PresenceChange
from rtpool.protocol.refusals import words_of
from rtpool.registry import Attachment, Delivery, Subscriber
from rtpool.stats import GAP_CAUSES

__all__ = ["GAP", "Router", "gap_fields"]


#: The line that tells of a gap.
GAP = "! %(topic)r may lack messages from %(lost_from)s to %(lost_to)s (%(cause)s)"


def gap_fields(cause: str, lost_from: datetime, lost_to: datetime) -> dict[str, str]:
    """The fields of a line that tells of a gap."""
    return {"cause": cause, "lost_from": lost_from.isoformat(), "lost_to": lost_to.isoformat()}


#: Events of a join that go to the same mailboxes: to those of which members, the topic as they call it, the events,
#: whether one of the members hears raw messages. No class of its own: with a message or two for each of many joins, it
#: would be much of what they cost.
_Run = tuple[tuple[Subscriber, ...], str, list[Delivery | Broadcast], bool]


class Router:
    """
    Fans a join's messages out. Deliveries are collected and handed over together by `flush`.

    Args:
        wall: aware wall-clock time, for the bounds of gaps.
        supabase: False for plain Phoenix, where every event is the application's own.
        log: where gaps are told.

    Thread-safety: none; confined to the I/O thread.
    """

    def __init__(self, dispatcher: Dispatcher, wall: Callable[[], datetime], *, supabase: bool, log: Log) -> None:
        self._dispatcher = dispatcher
        self._wall = wall
        self._supabase = supabase
        self._log = log
        self._untold: dict[tuple[str, str], list[Gap]] = {}  # gaps the log does not know of, by topic and cause
        # What was routed and not handed over yet, in order; the last run of each join, which may be added to; who wants
        # the changes that some of the server's bindings are for.
        self._batch: list[tuple[Mailbox, list[Delivery | Broadcast]]] = []
        self._last: dict[Join, _Run] = {}
        self._audiences: dict[tuple[Join, frozenset[ChangeBinding]], tuple[Subscriber, ...]] = {}
        self._full: list[Mailbox] = []
        self._handlers: dict[str, Callable[[Join, WireMessage], None]] = {
            PRESENCE_STATE: self._presence_state,
            PRESENCE_DIFF: self._presence_diff,
        }
        if supabase:
            self._handlers |= {
                BROADCAST: self._broadcast,
                POSTGRES_CHANGES: self._postgres_changes,
                SYSTEM: self._system,
            }
        #: Announced, by cause.
        self.gaps = Counter(dict.fromkeys(GAP_CAUSES, 0))

    def flush(self) -> list[Mailbox]:
        """Hand over what was collected; return the mailboxes that overflowed and need a decision."""
        self._hand_over()
        if self._untold:
            self._tell_gaps()
        full, self._full = self._full, []
        return full

    def _tell_gaps(self) -> None:
        """One line for all Channels of a join."""
        untold, self._untold = self._untold, {}
        for (topic, cause), gaps in untold.items():
            bounds = min(gap.lost_from for gap in gaps), max(gap.lost_to for gap in gaps)
            self._log.warning("gap", GAP, topic=topic, channels=len(gaps), **gap_fields(cause, *bounds))

    def _hand_over(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._last.clear()
            self._audiences.clear()
            self._full += self._dispatcher.deliver(batch)

    def route(self, join: Join, message: WireMessage) -> None:
        """Deliver one message of a join."""
        self._handlers.get(message.event, self._raw)(join, message)

    def broadcasts(self, join: Join, payloads: list[Any], otherwise: Callable[[Join, WireMessage], None]) -> None:
        """
        Deliver broadcasts of a join, in order; with one that is not plain, as most are, does `otherwise`.

        All that a plain one needs is in one loop: a call for each would cost as much as the rest.
        """
        deliver: Callable[[Broadcast], None] | None = None
        if self._supabase and not join.echoes and join.replay is None:
            _, _, deliveries, hears_raw = self._run(join, join.members)
            deliver = None if hears_raw else deliveries.append
        topic = join.name
        for payload in payloads:
            if deliver is not None and isinstance(payload, dict) and "meta" not in payload:
                name = payload.get("event")
                if isinstance(name, str):
                    event: Any = BroadcastFields(topic, name, payload.get("payload"), None, False)
                    event.__class__ = Broadcast
                    deliver(event)
                    continue
            otherwise(join, WireMessage(None, None, join.topic, BROADCAST, payload))

    # By event

    def _raw(self, join: Join, message: WireMessage) -> None:
        event = Message(join.name, message.event, message.payload)
        self._deliver(join, join.members, Delivery("raw", message.event, event, message))

    def _broadcast(self, join: Join, message: WireMessage) -> None:
        payload = message.payload
        name = payload.get("event") if isinstance(payload, dict) else None
        if not isinstance(name, str):
            self._raw(join, message)
            return
        members, message_id, replayed = join.members, None, False
        meta = payload.get("meta")
        if isinstance(meta, dict):
            message_id = meta["id"] if isinstance(meta.get("id"), str) else None
            replayed = meta.get("replayed") is True
        event = Broadcast(join.name, name, payload.get("payload"), message_id, replayed)
        if join.echoes and message_id is None:
            sender = join.claim_echo(name, event.payload, self._wall().timestamp())
            if sender is not None and not sender.receive_own:
                members = tuple(s for s in members if s is not sender)
        if join.replay is not None and message_id is not None:
            if not join.replay.take(message_id, replayed=replayed):
                return
            join.replay.remember(Delivery(BROADCAST, name, event, message))
            if replayed:
                members = tuple(s for s in members if s.attachment is not None and s.attachment.caught_up)
        _, _, deliveries, hears_raw = self._run(join, members)
        deliveries.append(Delivery(BROADCAST, name, event, message) if hears_raw else event)

    def _postgres_changes(self, join: Join, message: WireMessage) -> None:
        change = parse_change(join.name, message.payload)
        if change is None:
            self._raw(join, message)
            return
        join.changes_alive_at = self._wall()
        changes = matching(join.ids, message.payload, change.type)
        delivery = Delivery("postgres_changes", change.type, change, message, changes)
        audience = self._audiences.get((join, changes))
        if audience is None:
            audience = tuple(s for s in join.members if not changes.isdisjoint(s.config.changes))
            self._audiences[join, changes] = audience
        self._deliver(join, audience, delivery)

    def _system(self, join: Join, message: WireMessage) -> None:
        payload = message.payload if isinstance(message.payload, dict) else {}
        event = SystemMessage(
            join.name,
            words_of(payload.get("extension", "")),
            words_of(payload.get("status", "")),
            words_of(payload.get("message", "")),
        )
        if event.extension == POSTGRES_CHANGES and not join.answered:
            pass  # of the join before this one
        elif event.extension == POSTGRES_CHANGES and event.status == "ok":
            # A second one on a healthy join: the server restarted the feed and told nobody what it missed.
            join.changes_restarted = join.changes_flow
            join.changes_flow, join.changes_message, join.changes_error = True, event, ""
            join.changes_alive_at = self._wall()
        elif event.extension == POSTGRES_CHANGES:
            join.changes_flow, join.changes_error = False, event.message
        elif event.extension == SYSTEM and event.status == "error":
            join.system_error = event.message
        self._deliver(join, join.members, Delivery("system", event.status, event, message))

    def _presence_state(self, join: Join, message: WireMessage) -> None:
        self._raw_presence(join, message)
        if join.answered:
            self._presence_changed(join, join.presence.sync_state(message.payload))

    def _presence_diff(self, join: Join, message: WireMessage) -> None:
        self._raw_presence(join, message)
        if not join.config.presence:
            return  # public channels get diffs without having asked, and never a state to apply them to
        changes = join.presence.sync_diff(message.payload)
        if changes is not None:
            self._presence_changed(join, changes)

    def _raw_presence(self, join: Join, message: WireMessage) -> None:
        """For who listens to the Phoenix event itself; on plain Phoenix also for who reads a Channel in a loop."""
        delivery = Delivery("raw", message.event, Message(join.name, message.event, message.payload), message)
        for subscriber in join.members:
            if any(b.kind == "raw" and b.name in ("*", message.event) for b in subscriber.bindings):
                self._deliver_to(subscriber.mailbox, delivery)
            elif not self._supabase and not subscriber.config.presence:
                self._deliver(join, (subscriber,), delivery)

    def _presence_changed(self, join: Join, changes: list[PresenceChange]) -> None:
        join.share.presence = join.presence.snapshot()
        seeing = tuple(
            s for s in join.members if s.config.presence and s.attachment is not None and s.attachment.sees_presence
        )
        self._tell_presence(join, seeing, changes)
        self.introduce(join, join.members)

    def introduce(self, join: Join, members: tuple[Subscriber, ...]) -> None:
        """Tell members that do not know it yet who is present, as soon as that is known."""
        if not join.presence.synced:
            return
        for subscriber in members:
            attachment = subscriber.attachment
            if attachment is None:
                continue
            wants = subscriber.config.presence
            if wants and not attachment.sees_presence:
                changes = [PresenceChange("join", key, metas, ()) for key, metas in join.share.presence.items()]
                self._tell_presence(join, (subscriber,), changes)
            attachment.sees_presence = wants

    def _tell_presence(self, join: Join, members: tuple[Subscriber, ...], changes: list[PresenceChange]) -> None:
        if not members:
            return
        for change in changes:
            event = Presence(join.name, change.type, change.key, change.metas, change.current)
            self._deliver(join, members, Delivery("presence", change.type, event))
        sync = Presence(join.name, "sync", state=join.share.presence)
        self._deliver(join, members, Delivery("presence", "sync", sync))

    # By what we do

    def joined(self, join: Join, response: Any) -> None:
        """Learn the ids of a join reply."""
        join.ids = index_ids(join.config.changes, response)

    def sent(self, join: Join, outgoing: Outgoing) -> None:
        """A push is on its way; when the server echoes it and its sender is not to hear it, remember whose it is."""
        broadcast = outgoing.broadcast
        if broadcast is not None and join.config.receive_own and not outgoing.subscriber.receive_own:
            content = content_of(broadcast.data if broadcast.is_binary else loads(broadcast.data))
            join.await_echo(Echo(outgoing, content, self._wall().timestamp()))

    def loop_back(self, join: Join, outgoing: Outgoing) -> None:
        """Siblings hear a broadcast that the server does not send back to the socket it came from."""
        broadcast = outgoing.broadcast
        if broadcast is None or join.config.receive_own:
            return
        siblings = tuple(s for s in join.members if s is not outgoing.subscriber)
        if not siblings and join.handover is None:
            return
        payload = broadcast.data if broadcast.is_binary else loads(broadcast.data)
        wire = WireMessage(
            None, None, join.topic, BROADCAST, {"type": BROADCAST, "event": broadcast.event, "payload": payload}
        )
        if join.handover is not None:
            join.handover.live(wire)  # to the second channel it is a stranger's
        event = Broadcast(join.name, broadcast.event, payload)
        self._deliver(join, siblings, Delivery("broadcast", broadcast.event, event, wire))

    def catch_up(self, join: Join) -> None:
        """Give members that came since what was stored before; from now on they get what is replayed."""
        for subscriber in join.members:
            attachment = subscriber.attachment
            if join.replay is None or attachment is None or attachment.caught_up or not subscriber.replay:
                continue
            attachment.caught_up = True
            for delivery in join.replay.recent:
                event = attrs.evolve(delivery.event, replayed=True)
                self._deliver(join, (subscriber,), delivery._replace(event=event))

    def welcome(self, join: Join, subscriber: Subscriber, *, told: bool) -> None:
        """Give a Channel that came late what it would have been told on a join of its own, and was not `told`."""
        if join.changes_message is not None and subscriber.config.changes and not told:
            self._deliver(join, (subscriber,), Delivery("system", "ok", join.changes_message))
        self.introduce(join, (subscriber,))

    def announce_gap(self, join: Join, subscriber: Subscriber, outage: Outage) -> None:
        """Tell a Channel in which time it may have lost messages."""
        attachment = subscriber.attachment
        since = attachment.flowing_since if attachment is not None else None
        lost_from = (
            outage.lost_from if since is None else max(outage.lost_from, since)
        )  # before, nothing was its to lose
        gap = Gap(join.name, outage.cause, lost_from, max(self._wall(), lost_from))
        if join.replay is not None and join.replay_request is not None and attachment and attachment.caught_up:
            gap = attrs.evolve(gap, replay=join.replay.count, truncated=join.replay.truncated)
        self._gap(subscriber, gap)

    def announce_cut(self, join: Join) -> None:
        """The first replay of a join may lack its beginning: tell those it was for."""
        if join.replay is None or join.replay_request is None:
            return
        since = datetime.fromtimestamp(join.replay_request.since / 1000, timezone.utc)
        gap = Gap(join.name, "replay", since, self._wall(), replay=join.replay.count, truncated=True)
        for subscriber in join.members:
            if subscriber.attachment is not None and subscriber.attachment.caught_up:
                self._gap(subscriber, gap)

    def _gap(self, subscriber: Subscriber, gap: Gap) -> None:
        self._count(gap)
        self._essential(subscriber, Delivery("gap", gap.cause, gap))

    def tell(self, subscriber: Subscriber, change: StatusChange) -> None:
        """Queue a status for a Channel's listeners, behind what it was sent before."""
        self._essential(subscriber, Delivery("status", change.status, change))

    def overflow_closed(self, subscriber: Subscriber, mailbox: Mailbox, attachment: Attachment) -> MailboxOverflow:
        """End a Channel whose policy is to be closed when it falls behind; what it is told."""
        error = MailboxOverflow(
            f"{subscriber.topic!r} fell {mailbox.limit} events behind and was unsubscribed, as overflow='close' asks",
            limit=mailbox.limit,
        )
        self._essential(subscriber, Delivery("gap", "overflow", self._overflow_gap(subscriber, mailbox)))
        self._essential(subscriber, Delivery("status", "closed", StatusChange(subscriber.topic, "closed", error)))
        for sink in subscriber.sinks:
            self._dispatcher.end(sink, attachment.number, wait=False)
        return error

    def _overflow_gap(self, subscriber: Subscriber, mailbox: Mailbox) -> Gap:
        since = self._dispatcher.waiting_since(mailbox) - timedelta(seconds=UNDER_WAY)
        gap = Gap(subscriber.topic, "overflow", since, self._wall(), certain=True)
        self._count(gap)
        return gap

    def _count(self, gap: Gap) -> None:
        self.gaps[gap.cause] += 1
        self._untold.setdefault((gap.topic, gap.cause), []).append(gap)

    # Inside

    def _deliver(self, join: Join, members: tuple[Subscriber, ...], delivery: Delivery) -> None:
        self._run(join, members)[2].append(delivery)

    def _run(self, join: Join, members: tuple[Subscriber, ...]) -> _Run:
        """What to add events for these members to, behind all that the join was sent before."""
        run = self._last.get(join)
        if run is not None and run[0] is members:
            return run
        deliveries: list[Delivery | Broadcast] = []
        hears_raw = False
        for member in members:
            if member.stream is None:
                self._batch.append((member.mailbox, deliveries))
            else:
                self._batch += [(sink, deliveries) for sink in member.sinks]
            hears_raw = hears_raw or member.hears_raw
        run = self._last[join] = members, join.name, deliveries, hears_raw
        return run

    def _deliver_to(self, sink: Mailbox, delivery: Delivery) -> None:
        self._last.clear()  # what comes after it comes after it
        self._batch.append((sink, [delivery]))

    def _essential(self, subscriber: Subscriber, delivery: Delivery) -> None:
        if any(binding.kind == delivery.kind for binding in subscriber.bindings):
            self._hand_over()  # keeps the order
            self._dispatcher.deliver_essential(subscriber.mailbox, subscriber.mailbox.run, delivery)
        if subscriber.stream is not None and isinstance(delivery.event, Gap):
            self._deliver_to(subscriber.stream, delivery)
