"""
Makes the server agree with the registry: places joins on connections, joins, leaves, pushes, and brings back what was
lost. Everything here runs on the I/O thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from rtpool.engine.connection import Connection
from rtpool.engine.connections import Connections
from rtpool.engine.dialer import Dialer, Endpoint
from rtpool.engine.dispatcher import Dispatcher
from rtpool.engine.io_loop import IoLoop
from rtpool.engine.join_queue import JoinQueue
from rtpool.engine.joins import Join, Outage, fail_waiting, failure_of, refused
from rtpool.engine.logs import logger_for
from rtpool.engine.outgoing import Outgoing, SendBudget
from rtpool.engine.pushes import Pushes
from rtpool.engine.readiness import Readiness
from rtpool.engine.routing import Router
from rtpool.engine.tokens import Tokens, TokenSource
from rtpool.errors import (
    ConnectionFailed,
    JoinTimeout,
    NotSubscribed,
    PoolClosed,
    PoolExhausted,
    RtpoolError,
)
from rtpool.events import ChannelState, Heartbeat, StatusChange
from rtpool.options import PoolOptions
from rtpool.protocol.json_engine import dumps
from rtpool.protocol.messages import ACCESS_TOKEN, JsonBody
from rtpool.protocol.placement import OPEN, place
from rtpool.protocol.presence import PresenceCalls
from rtpool.protocol.refusals import Action, classify_system
from rtpool.protocol.replay import Replay, ReplayRequest
from rtpool.protocol.session import (
    ChannelLost,
    HeartbeatLost,
    HeartbeatReplied,
    HeartbeatSent,
    Joined,
    JoinFailed,
    Left,
    PushSettled,
    Received,
    SessionEvent,
)
from rtpool.registry import Attachment, Registry, ShareKey, Subscriber, merge_configs

__all__ = ["Coordinator"]

#: Sockets tried one after the other when each is said to be full; then the join backs off.
MAX_MOVES = 3
#: The server's word when it ends a channel for a presence over its limit (protocol 8.2).
TRACK_TOO_BIG = "Track message size exceeded"
#: Seconds before a join is tried again after "too many …": sooner only makes it worse.
LONG_BACK_OFF = 10.0


class Coordinator:
    """
    The pool's will on the I/O thread.

    Args:
        name: the pool's.
        registry: what users want.
        dispatcher, loop, dialer, callers, budget: the engine's other parts; `callers` are threads for token callables.
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
        budget: SendBudget,
        announce: Callable[[StatusChange], None],
        tell_heartbeat: Callable[[Heartbeat], None],
        rng: random.Random | None = None,
        wall: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._name = name
        self._options = options
        self._supabase = options.is_supabase
        self._registry = registry
        self._dispatcher = dispatcher
        self._loop = loop
        self._budget = budget
        self._rng = rng or random.Random()
        self._wall = wall
        self._heartbeat_listener = tell_heartbeat
        self._log = logger_for(options, "io")
        self._tokens = Tokens(
            loop,
            callers,
            patience=options.join_timeout,
            base_delay=options.base_delay,
            max_delay=options.max_delay,
            in_use=lambda source: any(join.source is source for join in self.joins.values()),
            renewed=self._renewed,
            rng=self._rng,
            wall=wall,
            log=self._log,
        )
        self._sources: dict[Any, TokenSource] = {None: TokenSource(pool_token)}  # by the token of share keys
        self.router = Router(dispatcher, wall, supabase=self._supabase)
        self.readiness = Readiness(registry, self.router, wall)
        self.pushes = Pushes(loop, budget, self.router, reply_timeout=options.join_timeout)
        self.joins: dict[ShareKey, Join] = {}
        self._queue = JoinQueue(loop, options.max_joins_per_second, self._send_join)
        self._homeless: dict[ShareKey, None] = {}  # joins without a place, oldest first; tried when one is free
        self._stopping = False
        self.connections = Connections(
            name, endpoint, options, loop=loop, dialer=dialer, tenant=self, announce=announce
        )

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
            source = self._sources.get(key.token)
            if source is None:
                source = self._sources[key.token] = TokenSource(share.subscribers[0].token)
            calls = PresenceCalls(self._options.max_presence_calls, self._options.presence_window)
            join = self.joins[key] = Join(share, source, calls)
        elif join.share is not share:
            join.share = share  # everybody left and somebody came before the I/O thread looked
            share.presence = join.presence.snapshot()
        # By what they wait for, not by who they are: one may have left and come back before this thread looked.
        added = [s for s in share.subscribers if (a := s.attachment) is not None and not a.ready.done()]
        join.members = share.subscribers
        if join.replay is None and any(s.replay for s in join.members):
            join.replay = Replay(key.replay)
            if join.joined:
                join.replay.joined(self._now_ms(join))
        if join.replay is not None and join.replay.has_joined:
            self.router.catch_up(join)
        self._converge(join, asking=bool(added))
        self.router.introduce(join, tuple(s for s in join.members if s.is_ready))  # a callback may have come late
        self.pushes.say_presence(join)  # who left may have been the one that was present
        self._overflowed(self.router.flush())

    def detached(self, attachment: Attachment) -> None:
        """A Channel left; `attachment.left` is done when the server knows, or need not because others stay."""
        key = attachment.share.key
        if not attachment.ready.done():  # somebody on another thread waits for what was just given up
            attachment.ready.set_exception(NotSubscribed(f"{key.topic!r} was unsubscribed before it was ready"))
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
            self.pushes.refuse(outgoing, outgoing.unsubscribed())
        else:
            self.pushes.push(join, outgoing)

    def set_token(self, token: str | Callable[[], str]) -> None:
        """Use a new pool-wide token: on live joins now, on every later join too."""
        self._tokens.replace(self._sources[None], token)

    def resume(self, mailbox: Any) -> None:
        """A full mailbox has room again: read on."""
        for connection in self.connections.all:
            connection.paused_by.discard(mailbox)

    def shutdown(self, deadline: float) -> None:
        """Send what was accepted as far as `deadline` allows, say goodbye on every connection, then end the loop."""
        if self._stopping:
            return
        self._stopping = True
        self._queue.stop()
        self.connections.close_all(deadline)

    def abandon(self, error: RtpoolError) -> None:
        """The end: fail everybody who waits, drop every socket. Also called when the loop failed."""
        self._stopping = True
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

    # Joins

    def _converge(self, join: Join, *, asking: bool) -> None:
        if join.connection is None and not self._place(join):
            return
        state = join.connection.session.state(join.topic) if join.connection else ChannelState.CLOSED
        if join.requested:
            pass
        elif state in (ChannelState.JOINED, ChannelState.JOINING):
            wanted = merge_configs(s.config for s in join.members)
            # Bindings the server refused hold up the others: without them it is asked again.
            freed = join.changes_refused and wanted.changes != join.config.changes
            if freed or not join.config.covers(wanted):
                if state is ChannelState.JOINED:
                    self.readiness.interrupt(join, Outage("rejoin", self._wall()))
                self._request(join)
            else:
                self.readiness.flow(join)
        elif join.blocked is not None:
            if asking:  # a new Channel is a new wish: it is asked once more
                join.blocked, join.second_chance, join.attempts = None, None, 0
                self._request(join)
        elif join.retry is None:
            self._request(join)
        self.readiness.publish_state(join)

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
                self.readiness.tell_members(join, "refused", error)
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
        """Ask for a join: it waits for its token, then for its turn, then for its connection."""
        if join.retry is not None:
            join.retry.cancel()
            join.retry = None
        if not join.requested:
            join.requested = True
            self._tokens.resolve(join.source, lambda token, error: self._has_token(join, error))

    def _has_token(self, join: Join, error: RtpoolError | None) -> None:
        if not join.requested or self.joins.get(join.share.key) is not join:
            return
        if error is None:
            self._queue.add(join)
        else:
            join.requested = False
            self._join_failed(join, error, Action.BACK_OFF)

    def _send_join(self, join: Join) -> None:
        connection = join.connection
        join.requested = False
        if connection is None or self.joins.get(join.share.key) is not join:
            return
        token = join.source.value
        if join.second_chance is not None and token == join.token:
            self._join_failed(join, join.second_chance, Action.NEW_TOKEN)
            return
        join.token = token
        join.config = merge_configs(s.config for s in join.members)
        join.replay_request = self._replay_request(join)
        join.answered = join.replaying = join.changes_refused = join.changes_flow = False
        join.changes_message, join.system_error = None, ""
        join.presence.rejoined()
        self.pushes.rejoining(join)
        first = join.outage is None and not join.attempts
        connection.session.join(join.topic, join.body(supabase=self._supabase), self._loop.now)
        self.readiness.publish_state(join)
        self.readiness.tell_members(join, "joining" if first else "rejoining", None)

    def _joined(self, join: Join, response: Any) -> None:
        join.answered, join.attempts, join.source.attempts = True, 0, 0
        join.share.last_error, join.blocked, join.second_chance = None, None, None
        self.router.joined(join, response)
        self.readiness.publish_state(join)
        if join.replay is not None:
            join.replaying = join.replay.joined(self._now_ms(join))
            self.router.catch_up(join)
        if join.source.fresh:  # there may be another token since the join went out
            self._send_token(join, join.source.value)
        # The server forgot who is present with the channel of before; and its answer ends what it replays.
        self.pushes.say_presence(join)
        self.readiness.flow(join)
        self.pushes.flush(join)
        # Somebody may have come, gone or changed while the join was under way.
        self._loop.post(self.sync, join.share.key)

    def _replay_request(self, join: Join) -> ReplayRequest | None:
        if join.replay is None:
            return None
        lost_from = None
        if join.outage is not None and any(s.attachment is not None and s.attachment.caught_up for s in join.members):
            lost_from = self._ms(join, join.outage.lost_from)
        return join.replay.request(lost_from)

    def _ms(self, join: Join, at: datetime) -> int:
        """An instant of ours as the server's clock shows it, milliseconds since the epoch."""
        skew = join.connection.clock_skew if join.connection is not None else 0.0
        return int((at.timestamp() + skew) * 1000)

    def _now_ms(self, join: Join) -> int:
        return self._ms(join, self._wall())

    def _join_failed(self, join: Join, error: RtpoolError, action: Action) -> None:
        join.share.last_error = error
        self.readiness.publish_state(join)
        if action is Action.NEW_TOKEN and join.source.provider is not None and join.second_chance is None:
            join.second_chance = error
            if join.source.value == join.token:
                self._tokens.expire(join.source)
            self._request(join)
            return
        if not action.retryable:
            join.needs_token = action is Action.NEW_TOKEN
            self._refuse(join, error)
            if join.needs_token:
                self._tokens.refused(join.source, join.token)
            return
        timed_out = isinstance(error, JoinTimeout)
        self.readiness.tell_members(join, "timed_out" if timed_out else "refused", error)
        connection = join.connection
        join.attempts += 1
        may_open = len(self.connections.all) < self._options.max_connections
        # The first of the pool's sockets may be the one that is full or going away, and so may the next.
        if action is Action.OTHER_SOCKET and connection is not None and may_open and join.attempts <= MAX_MOVES:
            connection.capacity = min(connection.capacity, len(connection.joins) - 1)
            self._unplace(join)
            if self._place(join):
                self._request(join)
            return
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
        self.readiness.tell_members(join, "refused", error)
        fail_waiting(join.share, error)
        self.pushes.fail(join, error)

    def _renewed(self, source: TokenSource) -> None:
        """There is another token: on live joins now, and what waited for one asks again."""
        for join in list(self.joins.values()):
            if join.source is source:
                self._renew_token(join)

    def _renew_token(self, join: Join) -> None:
        if join.blocked is not None:
            if join.needs_token and join.connection is not None:
                join.blocked = None
                self._request(join)
        elif join.joined:
            self._send_token(join, join.source.value)

    def _send_token(self, join: Join, token: str | None) -> None:
        if token is not None and token != join.token and join.joined and self._supabase:
            join.token = token
            if not token.startswith("sb_"):  # the server ignores those
                join.renewals, join.renewed_at = join.renewals + 1, self._loop.now
            self.pushes.say(join, ACCESS_TOKEN, JsonBody(dumps({"access_token": token})))
            join.presence_calls.permission_changed()
            self.pushes.say_presence(join)

    def _end(self, join: Join) -> None:
        """Nobody wants it any more."""
        self.pushes.fail(join)
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
            self._tokens.release(join.source)
            if join.share.key.token is not None and not any(j.source is join.source for j in self.joins.values()):
                self._sources.pop(join.share.key.token, None)
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
            self.readiness.interrupt(join, Outage(error.cause, last_life))
            join.echoes.clear()  # what the server had not sent back is lost
            join.answered = False
            self._tokens.expire(join.source)
            self.readiness.publish_state(join)

    def failing(self, connection: Connection, error: RtpoolError) -> None:
        """Tell who lives there."""
        for join in connection.joins.values():
            join.share.last_error = error
            self.readiness.tell_members(join, "rejoining", error)

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
            elif isinstance(event, (HeartbeatSent, HeartbeatReplied, HeartbeatLost)):
                self._tell_heartbeat(connection, event)
            elif isinstance(event, (Joined, JoinFailed, ChannelLost, Left)):
                joins_answered = True
                join = connection.joins.get(event.topic)
                if join is not None:
                    self._channel_event(join, event)
        self.pushes.keep_unsent(unsent)
        self._overflowed(self.router.flush())
        if joins_answered:
            self._queue.run()

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

    def _received(self, join: Join, event: Received) -> None:
        flowed, alive_at = join.changes_flow, join.changes_alive_at or self._wall()
        try:
            self.router.route(join, event.message)
        except Exception:  # whatever a server sends: one frame costs one frame, never the pool
            self._log.exception("! a message %r on %r could not be understood", event.message.event, join.name)
            return
        self.readiness.feed_spoke(join, flowed, alive_at, self._loop.now)

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
        action = classify_system(join.system_error)
        self.readiness.interrupt(join, Outage("token" if action is Action.NEW_TOKEN else "rejoin", self._wall()))
        join.answered = False
        words = join.system_error or f"the server ended the channel ({event.cause})"
        join.system_error = ""
        if words == TRACK_TOO_BIG:
            self._registry.refuse_tracking(join.share)  # the same payload would end the next join too
            self.pushes.fail_presence(join, refused(join.name, words, Action.FATAL))
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

    def _tell_heartbeat(self, connection: Connection, event: HeartbeatSent | HeartbeatReplied | HeartbeatLost) -> None:
        number = connection.connection_id
        if isinstance(event, HeartbeatReplied):
            self._heartbeat_listener(Heartbeat(number, "ok", event.latency))
        elif isinstance(event, HeartbeatLost):
            self._heartbeat_listener(Heartbeat(number, "timeout", event.waited))
        else:
            self._heartbeat_listener(Heartbeat(number, "sent"))
