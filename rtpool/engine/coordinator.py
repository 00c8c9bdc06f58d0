"""
Makes the server agree with the registry: places joins on connections, joins, leaves, pushes, and brings back what was
lost. Everything here runs on the I/O thread.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from typing import Any

from rtpool.engine.connection import Connection
from rtpool.engine.connections import Connections
from rtpool.engine.dialer import Dialer, Endpoint
from rtpool.engine.dispatcher import Dispatcher
from rtpool.engine.io_loop import IoLoop, Timer
from rtpool.engine.joins import Join, Outage, fail_waiting, failure_of, refused, was_ready
from rtpool.engine.outgoing import Outgoing, SendBudget
from rtpool.engine.routing import Router
from rtpool.engine.tokens import Tokens, TokenSource
from rtpool.errors import (
    ConnectionFailed,
    JoinTimeout,
    PoolClosed,
    PoolExhausted,
    RtpoolError,
)
from rtpool.events import ChannelState, StatusChange
from rtpool.options import PoolOptions
from rtpool.protocol.json_engine import dumps
from rtpool.protocol.messages import ACCESS_TOKEN, PRESENCE, JsonBody
from rtpool.protocol.pace import Pace
from rtpool.protocol.placement import OPEN, place
from rtpool.protocol.presence import track_body
from rtpool.protocol.refusals import Action, classify_changes, classify_system
from rtpool.protocol.session import ChannelLost, Joined, JoinFailed, Left, PushSettled, Received, SessionEvent
from rtpool.registry import Attachment, Registry, ShareKey, Subscriber, merge_configs

__all__ = ["Coordinator"]

log = logging.getLogger("rtpool.io")

#: Seconds before a join is tried again after "too many …": sooner only makes it worse.
LONG_BACK_OFF = 10.0


class Coordinator:
    """
    The pool's will on the I/O thread.

    Args:
        name: the pool's.
        registry: what users want.
        dispatcher, loop, dialer, budget: the engine's other parts.
        announce: hands a pool-level `StatusChange` to listeners.
        rng: source of jitter.
        wall: aware wall-clock time, for the bounds of gaps.

    Thread-safety: confined to the I/O thread.
    """

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        options: PoolOptions,
        *,
        pool_token: str | Callable[[], str] | None,
        registry: Registry,
        dispatcher: Dispatcher,
        loop: IoLoop,
        dialer: Dialer,
        budget: SendBudget,
        announce: Callable[[StatusChange], None],
        rng: random.Random | None = None,
        wall: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._name = name
        self._options = options
        self._supabase = options.topic_prefix.startswith("realtime:")
        self._registry = registry
        self._dispatcher = dispatcher
        self._loop = loop
        self._budget = budget
        self._rng = rng or random.Random()
        self._wall = wall
        self._tokens = Tokens(loop, dialer)
        self._pool_source = TokenSource(pool_token)
        self.router = Router(dispatcher, wall, supabase=self._supabase)
        self.joins: dict[ShareKey, Join] = {}
        self._queue: deque[Join] = deque()
        self._homeless: dict[ShareKey, None] = {}  # joins without a place, oldest first; tried when one is free
        self._pace = Pace(options.max_joins_per_second)
        self._pacing: Timer | None = None
        self._stopping = False
        self.connections = Connections(
            name, endpoint, options, loop=loop, dialer=dialer, tenant=self, announce=announce
        )
        self.pushes_sent = 0

    # Commands from other threads

    def sync(self, key: ShareKey) -> None:
        """Make the server agree with the registry about one share key."""
        share = self._registry.share(key)
        join = self.joins.get(key)
        if share is None:
            if join is not None:
                self._end(join)
            return
        if self._stopping:
            # It was accepted in the very moment of the close; nobody else will answer it.
            fail_waiting(share, PoolClosed(f"the pool {self._name} was closed"))
            return
        if join is not None and join.leaving:
            join.share, join.members = share, ()
            share.state = ChannelState.LEAVING
            return  # `Left` comes back here
        if join is None:
            token = share.subscribers[0].token
            source = self._pool_source if token is None else TokenSource(token)
            join = self.joins[key] = Join(share, source)
        elif join.share is not share:
            join.share = share  # everybody left and somebody came before the I/O thread looked
        # By what they wait for, not by who they are: one may have left and come back before this thread looked.
        added = [s for s in share.subscribers if (a := s.attachment) is not None and not a.ready.done()]
        join.members = share.subscribers
        self._converge(join, added)
        self._overflowed(self.router.flush())

    def detached(self, attachment: Attachment) -> None:
        """A Channel left; `attachment.left` is done when the server knows, or need not because others stay."""
        key = attachment.share.key
        self.sync(key)
        join = self.joins.get(key)
        if join is not None and join.leaving:
            join.leavers.append(attachment)
        else:
            attachment.left.set_result(None)

    def push(self, outgoing: Outgoing) -> None:
        """Send a push now, or keep it until its Channel is joined."""
        join = self.joins.get(outgoing.subscriber.key)
        if join is None or join.leaving or self._stopping:
            self._budget.settle(outgoing, None, outgoing.unsubscribed())
            return
        if join.buffer or not self._hand_over(join, outgoing):
            join.buffer.append(outgoing)
            self._loop.call_at(outgoing.deadline, lambda: self._expire_buffered(join, outgoing))

    def set_token(self, token: str | Callable[[], str]) -> None:
        """Use a new pool-wide token: on live joins now, on every later join too."""
        source = self._pool_source
        source.provider = token if callable(token) else None
        source.value, source.fresh = (None, False) if callable(token) else (token, True)
        for join in self.joins.values():
            if join.source is source:
                self._renew_token(join)

    def resume(self, mailbox: Any) -> None:
        """A full mailbox has room again: read on."""
        for connection in self.connections.all:
            connection.paused_by.discard(mailbox)

    def shutdown(self, deadline: float) -> None:
        """Send what was accepted as far as `deadline` allows, say goodbye on every connection, then end the loop."""
        if self._stopping:
            return
        self._stopping = True
        self._queue.clear()
        self.connections.close_all(deadline)

    def abandon(self, error: RtpoolError) -> None:
        """The end: fail everybody who waits, drop every socket. Also called when the loop failed."""
        self._stopping = True
        self.connections.abandon(error)
        for join in self.joins.values():
            for outgoing in join.buffer:
                self._budget.settle(outgoing, None, error.again())
            join.buffer.clear()
            self._tell_members(join, "closed", error)
            fail_waiting(join.share, error)
            for attachment in join.leavers:
                attachment.left.set_result(None)
            join.share.state = ChannelState.CLOSED
        for attachment in self._registry.clear():
            attachment.share.state = ChannelState.CLOSED
            if not attachment.ready.done():
                attachment.ready.set_exception(error.again())
        self.joins.clear()

    # Joins

    def _converge(self, join: Join, added: list[Subscriber]) -> None:
        if join.connection is None and not self._place(join):
            return
        state = join.connection.session.state(join.topic) if join.connection else ChannelState.CLOSED
        if join.requested:
            pass
        elif state in (ChannelState.JOINED, ChannelState.JOINING):
            if not join.config.covers(merge_configs(s.config for s in join.members)):
                # Only who was ready has something to lose by the new join.
                if state is ChannelState.JOINED:
                    join.outage = join.outage or Outage("rejoin", self._wall())
                self._request(join)
            elif join.ready:
                self._admit(join, added)
        elif join.blocked is not None:
            if added:  # a new Channel is a new wish: it is asked once more
                join.blocked, join.attempts = None, 0
                self._request(join)
        elif join.retry is None:
            self._request(join)
        self._publish_state(join)

    def _place(self, join: Join) -> bool:
        slots = [connection.slot() for connection in self.connections.all]
        choice = place(join.topic, slots, max_connections=self._options.max_connections)
        if choice is None:
            error = PoolExhausted(
                f"no room for {join.name!r}: {len(slots)} connections are open, each is full or holds this "
                f"topic; raise max_connections ({self._options.max_connections}) or unsubscribe",
                topic=join.name,
            )
            join.share.last_error = error
            if join.share.key not in self._homeless:
                self._homeless[join.share.key] = None
                self._tell_members(join, "refused", error)
            fail_waiting(join.share, error)
            return False
        self._homeless.pop(join.share.key, None)
        connection = self.connections.new() if choice == OPEN else self.connections.get(choice)
        connection.joins[join.topic] = join
        join.connection = connection
        if connection.state == "error":
            self.connections.dial(connection)
        return True

    def _request(self, join: Join) -> None:
        """Queue a join; it is sent when its connection is open, its token known and the pace allows."""
        if join.retry is not None:
            join.retry.cancel()
            join.retry = None
        if join.requested:
            return
        join.requested = True
        self._queue.append(join)
        self._send_joins()

    def _send_joins(self) -> None:
        """Send what may be sent: a sliding window over the pool, a few in flight per socket, oldest first."""
        if self._pacing is not None:
            self._pacing.cancel()
            self._pacing = None
        if self._stopping:
            return
        waiting: deque[Join] = deque()
        room: dict[Connection, int] = {}
        while self._queue:
            join = self._queue.popleft()
            connection = join.connection
            if not join.requested or connection is None or connection.state != "open":
                # Not now: what it waits for puts it back.
                join.requested = False
                continue
            free = room.get(connection)
            if free is None:
                free = connection.session.joins_available
            if free <= 0:
                waiting.append(join)
                room[connection] = 0
                continue
            if not self._pace.grant(self._loop.now):
                waiting.append(join)
                waiting.extend(self._queue)
                self._queue.clear()
                self._pacing = self._loop.call_at(self._pace.next_at(), self._send_joins)
                break
            room[connection] = free - 1
            self._tokens.resolve(join.source, lambda token, error, join=join: self._send_join(join, token, error))  # type: ignore[misc]
        self._queue = waiting

    def _send_join(self, join: Join, token: str | None, error: RtpoolError | None) -> None:
        connection = join.connection
        if not join.requested or connection is None or self.joins.get(join.share.key) is not join:
            return
        join.requested = False
        if error is not None:
            self._join_failed(join, error, Action.BACK_OFF)
            return
        if connection.state != "open":
            return  # the reconnect asks again
        join.token = token
        join.config = merge_configs(s.config for s in join.members)
        join.presence.rejoined()
        join.changes_flow, join.changes_message, join.system_error = False, None, ""
        join.echoes.clear()
        first = join.outage is None and not join.attempts
        connection.session.join(join.topic, join.body(supabase=self._supabase), self._loop.now)
        self._publish_state(join)
        self._tell_members(join, "joining" if first else "rejoining", None)

    def _joined(self, join: Join, response: Any) -> None:
        join.attempts, join.share.last_error, join.blocked = 0, None, None
        self.router.joined(join, response)
        self._publish_state(join)
        if join.ready:
            self._flow(join)
        if join.share.tracked is not None:
            # The server forgets a presence with the join it belonged to.
            self._say(join, PRESENCE, track_body(join.share.tracked[1]))
        self._flush_buffer(join)
        # Somebody may have come, gone or changed while the join was under way.
        self._loop.post(self.sync, join.share.key)

    def _say(self, join: Join, event: str, body: JsonBody) -> None:
        """Push on a live join without waiting for an answer."""
        if join.connection is not None and self._supabase:
            now = self._loop.now
            deadline = now + self._options.join_timeout
            join.connection.session.push(
                join.topic, event, body, token=None, wants_reply=False, deadline=deadline, now=now
            )

    def _flow(self, join: Join) -> None:
        """Events really flow: announce what may have been lost, and let everybody know."""
        if join.outage is not None:
            self.router.announce_gap(join, join.outage)
            join.outage = None
        self._admit(join, list(join.members))

    def _admit(self, join: Join, members: list[Subscriber]) -> None:
        """Members whose events flow from now on: tell them, and give latecomers what the server said before."""
        for subscriber in members:
            attachment = subscriber.attachment
            if attachment is None or attachment.share is not join.share:
                continue
            if attachment.ready.done() and attachment.ready.exception() is not None:
                attachment.ready = Future()  # refused before, let in now: a new token, or a healed server
            late = not attachment.ready.done()
            self.router.tell(subscriber, StatusChange(subscriber.topic, "joined"))
            if late:
                self.router.catch_up(join, subscriber)
                attachment.ready.set_result(None)

    def _join_failed(self, join: Join, error: RtpoolError, action: Action) -> None:
        join.share.last_error = error
        self._publish_state(join)
        if not action.retryable:
            self._refuse(join, error)
            return
        timed_out = isinstance(error, JoinTimeout)
        self._tell_members(join, "timed_out" if timed_out else "refused", error)
        connection = join.connection
        may_open = len(self.connections.all) < self._options.max_connections
        if action is Action.OTHER_SOCKET and connection is not None and may_open:
            connection.capacity = max(1, min(connection.capacity, len(connection.joins) - 1))
            self._unplace(join)
            if self._place(join):
                self._request(join)
            return
        join.attempts += 1
        delay = min(self._options.max_delay, self._options.base_delay * 2.0 ** min(join.attempts - 1, 32))
        if action is Action.BACK_OFF_LONG:
            delay = max(delay, LONG_BACK_OFF)
        join.retry = self._loop.call_later(delay * self._rng.uniform(0.5, 1.0), lambda: self._retry(join))

    def _retry(self, join: Join) -> None:
        join.retry = None
        if self.joins.get(join.share.key) is join and not join.leaving:
            self._request(join)

    def _refuse(self, join: Join, error: RtpoolError) -> None:
        """Trying again cannot help: say so once, and wait for a new token or a new wish."""
        join.blocked = error
        join.share.state = ChannelState.ERRORED
        self._tell_members(join, "refused", error)
        fail_waiting(join.share, error)
        for outgoing in join.buffer:
            self._budget.settle(outgoing, None, error.again())
        join.buffer.clear()

    def _renew_token(self, join: Join) -> None:
        if join.blocked is not None and join.connection is not None:
            join.blocked = None
            self._request(join)
        elif join.joined:
            self._tokens.resolve(join.source, lambda token, error: self._send_token(join, token))

    def _send_token(self, join: Join, token: str | None) -> None:
        if token is not None and join.joined:
            join.token = token
            self._say(join, ACCESS_TOKEN, JsonBody(dumps({"access_token": token})))

    def _end(self, join: Join) -> None:
        """Nobody wants it any more."""
        for outgoing in join.buffer:
            self._budget.settle(outgoing, None, outgoing.unsubscribed())
        join.buffer.clear()
        join.members = ()
        join.requested = False
        if join.retry is not None:
            join.retry.cancel()
            join.retry = None
        connection = join.connection
        if join.leaving:
            return
        if connection is None or connection.session.state(join.topic) is ChannelState.CLOSED:
            self._forget(join)
            return
        join.leaving = True
        connection.session.leave(join.topic, self._loop.now)
        connection.tick(self._loop.now)

    def _forget(self, join: Join) -> None:
        self._unplace(join)
        leavers, join.leavers = join.leavers, []
        for attachment in leavers:
            attachment.left.set_result(None)
        if self.joins.get(join.share.key) is join:
            del self.joins[join.share.key]
            self._homeless.pop(join.share.key, None)
        join.share.state = ChannelState.CLOSED
        self.sync(join.share.key)  # a Channel that came while the leave was under way

    def _unplace(self, join: Join) -> None:
        connection, join.connection = join.connection, None
        if connection is None:
            return
        connection.joins.pop(join.topic, None)
        for key in self._homeless:
            self._loop.post(self.sync, key)
        if not connection.joins:
            self.connections.close_when_idle(connection)

    # Pushes

    def _hand_over(self, join: Join, outgoing: Outgoing) -> bool:
        if not join.joined or join.connection is None:
            return False
        accepted = join.connection.session.push(
            join.topic,
            outgoing.event,
            outgoing.body,
            token=(join, outgoing),
            wants_reply=outgoing.wants_reply,
            deadline=outgoing.deadline,
            now=self._loop.now,
        )
        if accepted:
            self.router.sent(join, outgoing)
        return accepted

    def _flush_buffer(self, join: Join) -> None:
        while join.buffer and self._hand_over(join, join.buffer[0]):
            join.buffer.popleft()

    def _expire_buffered(self, join: Join, outgoing: Outgoing) -> None:
        if outgoing in join.buffer:
            join.buffer.remove(outgoing)
            self._budget.settle(outgoing, None, outgoing.timed_out(written=False))

    def _push_settled(self, event: PushSettled, unsent: list[tuple[Join, Outgoing]]) -> None:
        if event.written:
            self.pushes_sent += 1
        if event.token is None:
            return
        join, outgoing = event.token
        if event.outcome == "lost" and not event.written and not self._stopping and not join.leaving:
            unsent.append((join, outgoing))  # the server cannot have seen it whole: it may be sent again
            return
        error = outgoing.error_of(event)
        if error is None:
            self.router.loop_back(join, outgoing)
        self._budget.settle(outgoing, event.response, error)

    # Connections

    def opened(self, connection: Connection) -> None:
        """Join all that live there."""
        for join in list(connection.joins.values()):
            if join.blocked is None and join.retry is None and not join.leaving:
                self._request(join)

    def lost(self, connection: Connection, error: ConnectionFailed) -> None:
        """Note since when messages may be missing, and have token callables asked again."""
        silence = max(0.0, self._loop.now - connection.proof_of_life)
        last_life = self._wall() - timedelta(seconds=silence)
        for join in list(connection.joins.values()):
            if join.outage is None and any(was_ready(s) for s in join.members):
                join.outage = Outage(error.cause, last_life)
            self._publish_state(join)
        self._tokens.expire()

    def failing(self, connection: Connection, error: RtpoolError) -> None:
        """Tell who lives there."""
        for join in connection.joins.values():
            join.share.last_error = error
            self._tell_members(join, "rejoining", error)

    def given_up(self, connection: Connection, error: RtpoolError) -> None:
        """Nobody is to wait for it any longer."""
        for join in list(connection.joins.values()):
            fail_waiting(join.share, error)

    def all_closed(self) -> None:
        """The last goodbye is said: end."""
        self.abandon(PoolClosed(f"the pool {self._name} was closed"))
        self._loop.stop()

    # What sessions say

    def heard(self, connection: Connection, events: list[SessionEvent]) -> None:
        """Act on what a session said, in order."""
        unsent: list[tuple[Join, Outgoing]] = []
        joins_answered = False
        for event in events:
            if isinstance(event, Received):
                join = connection.joins.get(event.topic)
                if join is not None:
                    self._received(join, event)
            elif isinstance(event, PushSettled):
                self._push_settled(event, unsent)
            elif isinstance(event, (Joined, JoinFailed, ChannelLost, Left)):
                joins_answered = True
                join = connection.joins.get(event.topic)
                if join is not None:
                    self._channel_event(join, event)
        for join, outgoing in reversed(unsent):
            join.buffer.appendleft(outgoing)
            self._loop.call_at(outgoing.deadline, lambda j=join, o=outgoing: self._expire_buffered(j, o))  # type: ignore[misc]
        self._overflowed(self.router.flush())
        if joins_answered:
            self._send_joins()

    def _received(self, join: Join, event: Received) -> None:
        flowed = join.ready
        self.router.route(join, event.message)
        if join.ready and not flowed:
            self._flow(join)
        elif join.changes_error:
            words, join.changes_error = join.changes_error, ""
            action = classify_changes(words)
            join.share.last_error = error = refused(join.name, words, action)
            self._tell_members(join, "refused", error)
            if action is Action.FATAL:
                fail_waiting(join.share, error)

    def _channel_event(self, join: Join, event: Joined | JoinFailed | ChannelLost | Left) -> None:
        if isinstance(event, Left):
            join.leaving = False
            self._forget(join)
        elif isinstance(event, Joined):
            self._joined(join, event.response)
        elif isinstance(event, JoinFailed):
            self._join_failed(join, *failure_of(join.name, event, self._options.join_timeout))
        else:
            self._channel_lost(join, event)

    def _channel_lost(self, join: Join, event: ChannelLost) -> None:
        if join.outage is None:
            join.outage = Outage("token" if join.system_error.startswith("Token") else "rejoin", self._wall())
        action = classify_system(join.system_error)
        words = join.system_error or f"the server ended the channel ({event.cause})"
        join.system_error = ""
        self._join_failed(join, refused(join.name, words, action), action)

    def _overflowed(self, mailboxes: list[Any]) -> None:
        for mailbox in mailboxes:
            subscriber: Subscriber = mailbox.owner
            join = self.joins.get(subscriber.key)
            if join is None:
                continue
            if mailbox.overflow == "block":
                if join.connection is not None:
                    join.connection.paused_by.add(mailbox)
            elif self._registry.detach(subscriber) is not None:
                self.router.overflow_closed(subscriber, mailbox)
                self._registry.left(subscriber)
                self._loop.post(self.sync, subscriber.key)

    # Saying what is

    def _publish_state(self, join: Join) -> None:
        connection = join.connection
        if join.blocked is not None:
            join.share.state = ChannelState.ERRORED
            return
        state = connection.session.state(join.topic) if connection else ChannelState.CLOSED
        # Waiting for its turn is joining to its users, unless it is known to be in trouble.
        join.share.state = ChannelState.JOINING if state is ChannelState.CLOSED else state

    def _tell_members(self, join: Join, status: str, error: RtpoolError | None) -> None:
        for subscriber in join.members:
            self.router.tell(subscriber, StatusChange(subscriber.topic, status, error))
