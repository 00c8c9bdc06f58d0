"""
What the pool's parts tell each other on the I/O thread: commands of users, the fate of connections, the words of
sessions. Everything here runs there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from typing import Any

from rtpool.engine.audit import Audit
from rtpool.engine.clock_watch import ClockWatch
from rtpool.engine.connection import Connection
from rtpool.engine.connections import GOODBYE_SECONDS, Connections
from rtpool.engine.dialer import Dialer, Endpoint
from rtpool.engine.dispatcher import Dispatcher, Mailbox
from rtpool.engine.io_loop import IoLoop
from rtpool.engine.joining import Joining
from rtpool.engine.joins import Join, Outage, fail_waiting, failure_of
from rtpool.engine.logs import Logs
from rtpool.engine.mover import Mover
from rtpool.engine.outgoing import Outgoing, SendBudget
from rtpool.engine.pushes import Pushes
from rtpool.engine.readiness import Readiness
from rtpool.engine.routing import Router
from rtpool.errors import (
    ConnectionFailed,
    NotSubscribed,
    PoolClosed,
    RtpoolError,
)
from rtpool.events import ChannelState, Heartbeat, StatusChange
from rtpool.options import PoolOptions
from rtpool.protocol.messages import SYSTEM, Broadcasts, WireMessage
from rtpool.protocol.session_events import (
    ChannelEvent,
    HeartbeatLost,
    HeartbeatReplied,
    HeartbeatSent,
    Joined,
    JoinFailed,
    Left,
    PushSettled,
    SessionEvent,
)
from rtpool.registry import Attachment, Registry, ShareKey, Subscriber

__all__ = ["Coordinator"]


#: Seconds between two tries to start threads that the system had none for.
REVIVE_SECONDS = 5.0


class Coordinator:
    """
    The pool's will on the I/O thread.

    Args:
        name: the pool's.
        registry: what users want.
        dispatcher, loop, dialer, callers, deciders, budget: the engine's other parts; `callers` are threads for token
            callables, `deciders` for reconnect strategies.
        logs: the engine's.
        announce, tell_heartbeat: hand a pool-level `StatusChange`, a `Heartbeat`, to listeners.
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
        callers: Dialer,
        deciders: Dialer,
        budget: SendBudget,
        announce: Callable[[StatusChange], None],
        tell_heartbeat: Callable[[Heartbeat], None],
        logs: Logs,
        rng: random.Random | None = None,
        wall: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._name = name
        self._options = options
        self._registry = registry
        self._dispatcher = dispatcher
        self._loop = loop
        self._dialers = (dialer, callers, deciders)
        self._wall = wall
        self._heartbeat_listener = tell_heartbeat
        self._logs, self._log = logs, logs.session
        self.router = Router(dispatcher, wall, supabase=options.is_supabase, log=logs.session)
        self.readiness = Readiness(registry, self.router, wall, logs.session)
        self.pushes = Pushes(loop, budget, self.router, options, logs.session)
        self._stopping = False
        self._parting: Callable[[], None] | None = None  # says goodbye, once those are joined whose pushes wait for it
        rng = rng or random.Random()
        self.connections = Connections(
            name,
            endpoint,
            options,
            loop=loop,
            dialer=dialer,
            deciders=deciders,
            tenant=self,
            announce=announce,
            rng=rng,
            log=logs.io,
        )
        self.joining = Joining(
            name,
            options,
            pool_token=pool_token,
            registry=registry,
            loop=loop,
            callers=callers,
            connections=self.connections,
            router=self.router,
            readiness=self.readiness,
            pushes=self.pushes,
            resync=self.sync,
            disturbed=lambda join: self.mover.disturbed(join),
            rng=rng,
            wall=wall,
            log=self._log,
        )
        self.joins = self.joining.joins
        self.mover = Mover(
            options,
            loop=loop,
            connections=self.connections,
            joining=self.joining,
            router=self.router,
            pushes=self.pushes,
            deliver=self._received,
            flush=lambda: self._overflowed(self.router.flush()),
            log=self._log,
        )
        self.audit = self._make_audit()
        self._watch = ClockWatch(
            loop, resumed=self._resumed, stepped=self._clock_stepped, wall=lambda: self._wall().timestamp()
        )

    def _make_audit(self) -> Audit:
        return Audit(
            self._name,
            self._options,
            registry=self._registry,
            loop=self._loop,
            connections=self.connections,
            joining=self.joining,
            resync=self.sync,
            merge=self.mover.merge,
            log=self._logs.io,
        )

    # Time

    def start(self) -> None:
        """The I/O thread runs."""
        self._watch.start()
        self.audit.start()
        self._revive()

    def _revive(self) -> None:
        """Threads that could not be started are tried again."""
        for dialer in self._dialers:
            dialer.revive()
        self._loop.call_later(REVIVE_SECONDS, self._revive)

    def clean_up(self, done: Future[int]) -> None:
        """Mend what should not be, and close idle connections now; `done` gets the number of those."""
        self.audit.run(at_once=True)
        self.connections.close_idle(done)
        self.joining.queue.run()  # forgets those that are closed

    def _resumed(self, slept: float, stopped: float) -> None:
        """The machine slept, or this process was stopped: ask at once who is still there."""
        words = "! pool %(pool)s stood still for %(seconds).1f s; its connections are asked for a sign of life"
        self._logs.io.warning("stood_still", words, seconds=slept + stopped)
        for connection in self.connections.all:
            if connection.state == "open":
                connection.session.probe(self._loop.now)
        if slept:  # a process that is starved again and again is no reason for hope
            self.connections.hurry(afresh=False)
        self.joining.clocks_parted()

    def _clock_stepped(self, seconds: float) -> None:
        words = "! the wall clock was set by %(seconds)+.1f s; tokens are renewed by the new time"
        self._logs.io.warning("clock_set", words, seconds=seconds)
        self.readiness.clock_stepped(self.joins.values(), seconds)
        self.joining.clocks_parted()

    # Commands from other threads

    def sync(self, key: ShareKey) -> None:
        """Make the server agree with the registry about one share key."""
        self.joining.sync(key)
        self._overflowed(self.router.flush())

    def asked(self, key: ShareKey) -> None:
        """Something was asked of a share, unless an earlier look has seen it: a thousand Channels are not as many."""
        share = self._registry.share(key)
        if share is None or share.news:
            self.sync(key)

    def detached(self, attachment: Attachment) -> None:
        """A Channel left; `attachment.left` is done when the server knows, or need not because others stay."""
        key = attachment.share.key
        if not attachment.ready.done():  # somebody on another thread waits for what was just given up
            topic = key.topic.removeprefix(self._options.topic_prefix)
            words = f"{topic!r} was unsubscribed before it was ready"
            attachment.ready.set_exception(NotSubscribed(words, topic=topic))
        self.asked(key)
        join = self.joins.get(key)
        if join is not None and join.leaving:
            join.leavers.append(attachment)
        else:
            attachment.left.set_result(None)

    def push(self, outgoing: Outgoing) -> None:
        """Send a push now, or keep it until its Channel is joined."""
        join = self.joins.get(outgoing.subscriber.key)
        if self._stopping:
            self.pushes.refuse(outgoing, PoolClosed(f"the pool {self._name} was closed"))
        elif join is None or join.leaving:
            self.pushes.refuse(outgoing, outgoing.unsubscribed())
        else:
            self.pushes.push(join, outgoing)

    def set_token(self, token: str | Callable[[], str]) -> None:
        """Use a new pool-wide token: on live joins now, on every later join too."""
        self.joining.set_pool_token(token)
        self.connections.hurry(afresh=True)

    def resume(self, mailbox: Any) -> None:
        """A full mailbox has room again: read on."""
        for connection in self.connections.all:
            connection.paused_by.discard(mailbox)

    def shutdown(self, deadline: float) -> None:
        """Send what was accepted as far as `deadline` allows, say goodbye on every connection, then end the loop."""
        if self._stopping:
            return
        self._stopping = True
        self.mover.stop()
        self.joining.stop()
        left = deadline - self._loop.now
        # The rest is for threads to end. Where nobody waits for them, peers still get the time to answer.
        last_words = self._loop.now + (left - min(GOODBYE_SECONDS, left / 2) if left > 0 else GOODBYE_SECONDS)
        self._parting = lambda: self.pushes.queue.drain(last_words, lambda: self.connections.close_all(last_words))
        self._loop.call_at(last_words, self._part)
        self._part_when_joined()

    def _part_when_joined(self) -> None:
        """Pushes that wait for a join that is under way wait for its answer."""
        if self._parting is not None and not any(join.buffer and join.is_under_way for join in self.joins.values()):
            self._loop.post(self._part)  # not in the middle of what a session says

    def _part(self) -> None:
        part, self._parting = self._parting, None
        if part is not None:
            part()

    def abandon(self, error: RtpoolError) -> None:
        """The end: fail everybody who waits, drop every socket. Also called when the loop failed."""
        self._stopping, self._parting = True, None
        self.mover.stop()
        self.pushes.queue.stop()
        self.connections.abandon(error)
        for join in self.joins.values():
            self.pushes.fail(join, error)
            self.readiness.tell_members(join, "closed", error)
            fail_waiting(join.share, error)
            for attachment in join.leavers:
                attachment.left.set_result(None)
            join.share.state = ChannelState.CLOSED
        for attachment in self._registry.clear():
            attachment.share.state = ChannelState.CLOSED
            if not attachment.ready.done():
                attachment.ready.set_exception(error.again())
        self.joins.clear()

    # Connections

    def opened(self, connection: Connection) -> None:
        """Join all that live there."""
        self.joining.find_homes()
        with self.joining.queue.together():
            for join in list(connection.joins.values()):
                if join.blocked is None and join.retry is None and not join.leaving:
                    self.joining.request(join)

    def lost(self, connection: Connection, error: ConnectionFailed) -> None:
        """Note since when messages may be missing, and have token callables asked again."""
        self.mover.lost(connection)
        self.joining.queue.run()  # who waited for this socket waits for it no more, but for its successor
        last_life = self._wall() - timedelta(seconds=connection.silence)
        for join in list(connection.joins.values()):
            self.readiness.interrupt(join, Outage(error.cause, last_life))
            self.joining.interrupted(join)
            join.echoes.clear()  # what the server had not sent back is lost
            join.answered = False
            self.joining.tokens.expire(join.source)
            self.readiness.publish_state(join)

    def retrying(self, connection: Connection, error: RtpoolError) -> None:
        """Tell who lives there."""
        self._tell_trouble(connection, "rejoining", error)

    def given_up(self, connection: Connection, error: RtpoolError) -> None:
        """Nobody is to wait for it any longer."""
        self._tell_trouble(connection, "error", error)
        for join in list(connection.joins.values()):
            fail_waiting(join.share, join.blocked or error)

    def _tell_trouble(self, connection: Connection, status: str, error: RtpoolError) -> None:
        self.joining.queue.heed(error)
        for join in connection.joins.values():
            if join.blocked is None:  # else it was told why, and comes back with no connection
                join.share.last_error = error
                self.readiness.tell_trouble(join, status, error)

    def all_closed(self) -> None:
        """The last goodbye is said: end."""
        self.abandon(PoolClosed(f"the pool {self._name} was closed"))
        self._loop.stop()

    # What sessions say

    def heard(self, connection: Connection, events: list[SessionEvent]) -> None:
        """Act on what a session said, in order."""
        unsent: list[tuple[Join, Outgoing]] = []
        may_join = False
        # Behind a mailbox that is full, a connection is read at its end for answers alone.
        joins = {} if connection.state == "closing" and connection.paused_by else connection.joins
        mover = self.mover
        for event in events:
            if isinstance(event, Broadcasts):
                join = joins.get(event.topic)
                if mover.move is not None:
                    for message in event.messages():
                        if not mover.heard(connection, message):
                            self._received(joins.get(event.topic), message)
                elif join is not None:
                    join.heard_at = self._loop.now
                    self.router.broadcasts(join, event.payloads, self._received)
            elif mover.move is not None and mover.heard(connection, event):
                continue
            elif isinstance(event, WireMessage):
                self._received(joins.get(event.topic), event)
            elif isinstance(event, PushSettled):
                self._push_settled(event, unsent)
            elif isinstance(event, (HeartbeatSent, HeartbeatReplied, HeartbeatLost)):
                may_join = True  # while an answer was late, none went out
                self._tell_heartbeat(connection, event)
            elif isinstance(event, ChannelEvent):
                may_join = True
                join = connection.joins.get(event.topic)
                if join is not None:
                    self._channel_event(join, event)
        self.pushes.keep_unsent(unsent)
        self._overflowed(self.router.flush())
        self.pushes.tell_settled()
        if may_join:
            self.joining.queue.run()
        self._part_when_joined()

    def _push_settled(self, event: PushSettled, unsent: list[tuple[Join, Outgoing]]) -> None:
        join: Join | None = event.token[0] if event.token is not None else None
        replaying = join is not None and join.replaying
        kept = self.pushes.settled(event, keep=not self._stopping)
        if kept is not None:
            unsent.append(kept)
        if join is not None and replaying and not join.replaying and join.replay is not None:
            if join.replay.finished():
                self.router.announce_cut(join)
            self.readiness.flow(join)

    def _received(self, join: Join | None, message: WireMessage) -> None:
        if join is None:
            return
        join.heard_at = self._loop.now
        try:
            if message.event == SYSTEM:
                flowed, alive_at = join.changes_flow, join.changes_alive_at or self._wall()
                self.router.route(join, message)
                self.readiness.feed_spoke(join, flowed, alive_at, self._loop.now)
            else:
                self.router.route(join, message)
        except Exception:  # whatever a server sends: one frame costs one frame, never the pool
            words = "! a message %(what)r on %(topic)r could not be understood"
            self._log.bug("not_understood", words, what=message.event, topic=join.name)

    def _channel_event(self, join: Join, event: ChannelEvent) -> None:
        if isinstance(event, Left):
            join.leaving = False
            self.joining.forget(join)
        elif isinstance(event, Joined):
            self.joining.joined(join, event.response)
        elif isinstance(event, JoinFailed):
            failures = join.refused_again(event)
            failure = failure_of(join.name, event, self._options.join_timeout, self._log.hide, failures)
            self.joining.failed(join, *failure)
        else:
            self.joining.channel_lost(join, event)

    def _overflowed(self, mailboxes: list[Any]) -> None:
        for mailbox in mailboxes:
            subscriber: Subscriber = mailbox.owner
            if mailbox.overflow.startswith("drop"):
                self._tell_drop(mailbox)
                continue
            join = self.joins.get(subscriber.key)
            if join is None:
                continue
            if mailbox.overflow == "block":
                if join.connection is not None:
                    join.connection.paused_by.add(mailbox)
                continue
            attachment = subscriber.attachment
            if attachment is None or attachment.number != mailbox.overflowed:
                continue  # another subscription than the one that fell behind
            bindings = subscriber.held()  # nobody may hold its Channel, and it is to be told
            if bindings is not None and self._registry.detach(subscriber, only=attachment) is not None:
                error = self.router.overflow_closed(subscriber, mailbox, attachment)
                self._logs.dispatch.warning("overflow", "! %(why)s", topic=subscriber.topic, error=error)
                if not attachment.ready.done():
                    attachment.ready.set_exception(error)
                attachment.left.set_result(None)
                self._registry.left(subscriber)
                self._loop.post(self.sync, subscriber.key)

    # Saying what is

    def _tell_drop(self, mailbox: Mailbox) -> None:
        words = "! %(topic)r loses events: %(limit)d wait for its callbacks already, and the policy is %(policy)s"
        fields = {"topic": mailbox.owner.topic, "limit": mailbox.limit, "policy": mailbox.overflow}
        self._logs.dispatch.rarely(id(mailbox), "overflow", words, dropped=mailbox.dropped, **fields)

    def _tell_heartbeat(self, connection: Connection, event: HeartbeatSent | HeartbeatReplied | HeartbeatLost) -> None:
        number = connection.connection_id
        if isinstance(event, HeartbeatReplied):
            self._heartbeat_listener(Heartbeat(number, "ok", event.latency))
        elif isinstance(event, HeartbeatLost):
            self._heartbeat_listener(Heartbeat(number, "timeout", event.waited))
        else:
            self._heartbeat_listener(Heartbeat(number, "sent"))
