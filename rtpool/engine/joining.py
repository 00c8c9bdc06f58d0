"""
Joins: asked for, placed, paced, refused, tried again, given up, left. Everything here runs on the I/O thread.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from rtpool.actions import LONG_BACK_OFF, Action
from rtpool.engine.connection import Connection
from rtpool.engine.connections import Connections
from rtpool.engine.dialer import Dialer
from rtpool.engine.io_loop import IoLoop
from rtpool.engine.join_queue import JoinQueue
from rtpool.engine.joins import Join, Outage, fail_waiting, refused
from rtpool.engine.logs import Log
from rtpool.engine.pushes import Pushes
from rtpool.engine.readiness import Readiness
from rtpool.engine.routing import Router
from rtpool.engine.tokens import UNAVAILABLE, Tokens, TokenSource
from rtpool.errors import JoinRefused, JoinTimeout, PoolClosed, PoolExhausted, RtpoolError
from rtpool.events import ChannelState, StatusChange
from rtpool.options import PoolOptions
from rtpool.protocol.json_engine import dumps
from rtpool.protocol.messages import ACCESS_TOKEN, JsonBody
from rtpool.protocol.placement import OPEN, place
from rtpool.protocol.presence import PresenceCalls
from rtpool.protocol.refusals import TOKEN_CODES, classify_system
from rtpool.protocol.replay import Replay, ReplayRequest
from rtpool.protocol.session import UNMATCHED_TOPIC
from rtpool.protocol.session_events import ChannelLost
from rtpool.registry import Registry, ShareKey, merge_configs

__all__ = ["Joining"]

#: Sockets tried one after the other when each is said to be full; then the join backs off.
MAX_MOVES = 3
#: Seconds until changes must flow, or the server say why they do not: a cold start takes 8 to 15 (protocol 6.5), and so
#: long it waits itself for what it reads from the database.
CHANGES_SECONDS = 60.0
#: The server's code when a node of it is going away (protocol 8.1).
RESTARTING = "RealtimeRestarting"
#: The server's word when it ends a channel for a presence over its limit (protocol 8.2).
TRACK_TOO_BIG = "Track message size exceeded"


class Joining:
    """
    Makes the server's channels agree with the registry.

    Args:
        name: the pool's.
        options: the pool's.
        pool_token: the pool's token, str or callable.
        registry, loop, connections, router, readiness, pushes: the engine's other parts.
        callers: threads for token callables.
        resync: has the I/O thread look at a share key again.
        disturbed: called with a join that is about to be left, joined anew or given another token.
        rng: source of jitter.
        wall: aware wall-clock time.
        log: where failures are told.

    Thread-safety: confined to the I/O thread, except `joins`, whose length may be read anywhere.
    """

    def __init__(
        self,
        name: str,
        options: PoolOptions,
        *,
        pool_token: str | Callable[[], str] | None,
        registry: Registry,
        loop: IoLoop,
        callers: Dialer,
        connections: Connections,
        router: Router,
        readiness: Readiness,
        pushes: Pushes,
        resync: Callable[[ShareKey], None],
        disturbed: Callable[[Join], None],
        rng: random.Random,
        wall: Callable[[], datetime],
        log: Log,
    ) -> None:
        self._name = name
        self._options = options
        self._supabase = options.is_supabase
        self._registry = registry
        self._loop = loop
        self._connections = connections
        self._router = router
        self._readiness = readiness
        self._pushes = pushes
        self._resync = resync
        self._disturbed = disturbed
        self._rng = rng
        self._wall = wall
        self._log = log
        self.joins: dict[ShareKey, Join] = {}
        #: What joins of before a fork had of stored broadcasts; each goes on with the join that takes its place.
        self.inherited: dict[ShareKey, Replay] = {}
        self.tokens = Tokens(
            loop,
            callers,
            patience=options.join_timeout,
            base_delay=options.base_delay,
            max_delay=options.max_delay,
            in_use=lambda source: any(join.source is source for join in self.joins.values()),
            renewed=self._renewed,
            rng=rng,
            wall=wall,
            log=log,
        )
        self._sources: dict[Any, TokenSource] = {None: TokenSource(pool_token)}  # by the token of share keys
        self.queue = JoinQueue(loop, options.max_joins_per_second, self._send_join, log)
        self._homeless: dict[ShareKey, None] = {}  # joins without a place, oldest first; tried when one is free
        self._stopping = False

    @property
    def is_calm(self) -> bool:
        """Whether no join waits for anything: for its turn, a token, a place, another attempt."""
        return not self._homeless and not any(j.requested or j.retry is not None for j in self.joins.values())

    def is_homeless(self, join: Join) -> bool:
        """Whether it waits for a place."""
        return join.share.key in self._homeless

    def awaits_its_turn(self, join: Join) -> bool:
        """Whether a join that is `requested` waits for its token, or in the queue."""
        return bool(join.source.waiters) or self.queue.holds(join)

    def stop(self) -> None:
        """Ask for no join any more."""
        self._stopping = True
        self.queue.stop()

    @property
    def pool_token(self) -> TokenSource:
        """What every join has that was given no token of its own; there may be none."""
        return self._sources[None]

    def set_pool_token(self, token: str | Callable[[], str]) -> None:
        """Use a new pool-wide token: on live joins now, on every later join too."""
        self.tokens.replace(self.pool_token, token)

    def sync(self, key: ShareKey) -> None:
        """Make the server agree with the registry about one share key."""
        share = self._registry.share(key)
        join = self.joins.get(key)
        if share is None:
            if join is not None:
                self._end(join)
            return
        share.news = False
        if self._stopping:
            # It was accepted in the very moment of the close; nobody else will answer it.
            fail_waiting(share, PoolClosed(f"the pool {self._name} was closed"))
            return
        if join is not None and join.leaving:
            join.share, join.members = share, ()
            share.state = ChannelState.LEAVING
            return  # `Left` comes back here
        members = tuple(s for s in share.subscribers if (a := s.attachment) is not None and a.opened)
        if not members:
            return  # whoever comes says so as soon as its mailbox is open
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
        added = [s for s in members if (a := s.attachment) is not None and not a.ready.done()]
        join.members = members
        if join.replay is None and any(s.replay for s in join.members):
            join.replay = self.inherited.pop(key, None) or Replay(key.replay)
            if join.joined:
                join.replay.joined(self._now_ms(join))
        if join.replay is not None and join.replay.has_joined:
            self._router.catch_up(join)
        self._converge(join, asking=bool(added))
        if join.presence.synced:
            self._router.introduce(join, tuple(s for s in join.members if s.is_ready))  # a callback may have come late
        self._pushes.say_presence(join)  # who left may have been the one that was present

    def _converge(self, join: Join, *, asking: bool) -> None:
        if join.connection is None and not self._place(join):
            return
        if asking and join.connection is not None and join.connection.state == "error":
            self._connections.dial(join.connection)  # a new wish is a new attempt
        state = join.connection.session.state(join.topic) if join.connection else ChannelState.CLOSED
        if join.requested:
            pass
        elif state in (ChannelState.JOINED, ChannelState.JOINING):
            wanted = merge_configs(s.config for s in join.members)
            # Bindings the server refused hold up the others: without them it is asked again.
            freed = join.changes_refused and wanted.changes != join.config.changes
            if freed or not join.config.covers(wanted):
                if state is ChannelState.JOINED:
                    self._readiness.interrupt(join, Outage("rejoin", self._wall()))
                self.request(join)
            else:
                self._readiness.flow(join)
        elif join.blocked is not None:
            # A new Channel is a new wish, and so is another config: it is asked once more.
            if asking or merge_configs(s.config for s in join.members) != join.config:
                join.blocked, join.second_chance, join.attempts = None, None, 0
                self.request(join)
        elif join.retry is None:
            self.request(join)
        self._readiness.publish_state(join)

    def _place(self, join: Join) -> bool:
        slots = [connection.slot() for connection in self._connections.all]
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
                self._log.warning("join_refused", "- %(why)s", **self._about(join), error=error)
                self._readiness.tell_members(join, "refused", error)
            fail_waiting(join.share, error)
            return False
        self._house(join, choice)
        return True

    def _house(self, join: Join, choice: int) -> None:
        self._homeless.pop(join.share.key, None)
        connection = self._connections.new() if choice == OPEN else self._connections.get(choice)
        connection.joins[join.topic] = join
        join.connection = connection
        if connection.state == "error":
            self._connections.dial(connection)

    def request(self, join: Join) -> None:
        """Ask for a join: it waits for its token, then for its turn, then for its connection."""
        self._disturbed(join)
        if join.retry is not None:
            join.retry.cancel()
            join.retry = None
        if not join.requested:
            join.requested = True
            self.tokens.resolve(join.source, lambda token, error: self._has_token(join, error))

    def _has_token(self, join: Join, error: RtpoolError | None) -> None:
        if not join.requested or self.joins.get(join.share.key) is not join:
            return
        if error is None:
            self.queue.add(join)
        else:
            join.requested = False
            self.failed(join, error, Action.BACK_OFF)

    def _send_join(self, join: Join) -> None:
        connection = join.connection
        join.requested = False
        if connection is None or self.joins.get(join.share.key) is not join:
            return
        token = join.source.value
        if join.second_chance is not None and token == join.joined_with:
            self.failed(join, join.second_chance, Action.NEW_TOKEN)
            return
        join.token = join.joined_with = token
        if (known := self._refused_lately(join)) is not None:
            self.failed(join, known, Action.NEW_TOKEN)
            return
        join.config = merge_configs(s.config for s in join.members)
        join.replay_request = self._replay_request(join)
        join.answered = join.replaying = join.changes_refused = join.changes_flow = False
        join.changes_message, join.system_error = None, ""
        join.presence.rejoined()
        self._pushes.rejoining(join)
        first = join.outage is None and not join.attempts
        connection.session.join(join.topic, join.body(supabase=self._supabase), self._loop.now)
        words = "= %(topic)r joining on connection %(connection)d"
        self._log.debug("joining", words, **self._about(join), attempt=join.attempts + 1)
        self._readiness.publish_state(join)
        self._readiness.tell_members(join, "joining" if first else "rejoining", None)

    def _refused_lately(self, join: Join) -> RtpoolError | None:
        """
        The refusal of the token that a join would be sent with, which holds for every topic.

        Each such join would hold up its whole socket for some 5 s (protocol 4.2).
        """
        source = join.source
        if source.bad is None or source.bad != join.token or self._loop.now >= source.bad_until:
            return None
        return refused(join.name, source.bad_words, Action.NEW_TOKEN, self._log.hide)

    def joined(self, join: Join, response: Any) -> None:
        """The server let a join in."""
        self.queue.succeeded(join)
        join.answered, join.suspect, join.source.attempts = True, False, 0
        join.joined_at = at = self._loop.now
        if join.config.changes:
            self._loop.call_later(CHANGES_SECONDS, lambda: self._changes_overdue(join, at))
        join.refusal, join.same_refusals = "", 0
        if join.connection is not None and join.connection.draining:
            join.connection.draining = False
            self.find_homes()
        join.heard_at = self._loop.now
        self._log.debug("joined", "= %(topic)r joined on connection %(connection)d", **self._about(join))
        join.share.last_error, join.blocked, join.second_chance = None, None, None
        self._router.joined(join, response)
        self._readiness.publish_state(join)
        if join.replay is not None:
            join.replaying = join.replay.joined(self._now_ms(join))
            self._router.catch_up(join)
        if join.source.fresh:  # there may be another token since the join went out
            self._send_token(join, join.source.value)
        # The server forgot who is present with the channel of before; and its answer ends what it replays.
        self._pushes.say_presence(join)
        self._readiness.flow(join)
        self._pushes.flush(join)

    def _changes_overdue(self, join: Join, joined_at: float) -> None:
        """The server let a join in and never said that changes flow, nor why they do not: ask anew."""
        waiting = join.joined and not (join.changes_flow or join.changes_refused or join.changes_error)
        if join.joined_at != joined_at or not waiting or join.leaving or join.requested:
            return
        words = f"the changes of {join.name!r} do not flow {CHANGES_SECONDS:g} s after it was joined; it is joined anew"
        join.share.last_error = error = JoinTimeout(words, topic=join.name, timeout=CHANGES_SECONDS)
        self._log.warning("changes_late", "! %(why)s", **self._about(join), error=error)
        for subscriber in join.members:
            if subscriber.config.changes:
                self._router.tell(subscriber, StatusChange(subscriber.topic, "timed_out", error))
        self._readiness.interrupt(join, Outage("rejoin", self._wall()))
        self.request(join)

    def _replay_request(self, join: Join) -> ReplayRequest | None:
        if join.replay is None:
            return None
        bridged = [a for s in join.members if (a := s.attachment) is not None and a.caught_up]
        outages = [a.outage for a in bridged if a.outage is not None]
        if bridged and join.outage is not None:
            outages = [join.outage]
        return join.replay.request(min((self._ms(join, outage.lost_from) for outage in outages), default=None))

    def _ms(self, join: Join, at: datetime) -> int:
        """An instant of ours as the server's clock shows it, milliseconds since the epoch."""
        skew = join.connection.clock_skew if join.connection is not None else 0.0
        return int((at.timestamp() + skew) * 1000)

    def _now_ms(self, join: Join) -> int:
        return self._ms(join, self._wall())

    def failed(self, join: Join, error: RtpoolError, action: Action) -> None:
        """A join was refused or not answered, or its channel was ended: do what `action` says."""
        self.queue.failed(join)
        self.queue.heed(error)
        if action is Action.NEW_TOKEN and isinstance(error, JoinRefused) and error.code in TOKEN_CODES:
            join.source.found_bad(join.token, f"{error.code}: {error.reason}", self._loop.now)
        join.share.last_error = error
        self._readiness.publish_state(join)
        newer = join.source.value != join.joined_with  # than the server can mean
        if action is Action.NEW_TOKEN and join.second_chance is None and (newer or join.source.provider is not None):
            join.second_chance = error
            if join.source.value == join.token:
                self.tokens.expire(join.source)
            if join.attempts:  # it was put out soon after it was let in with another
                self._readiness.tell_members(join, "refused", error)
            self._try_again(join, error, Action.BACK_OFF if join.attempts else Action.RETRY)
            return
        if not action.retryable:
            join.needs_token = action is Action.NEW_TOKEN
            self._refuse(join, error)
            if join.needs_token:
                self.tokens.refused(join.source, join.token)
            return
        timed_out = isinstance(error, JoinTimeout)
        self._readiness.tell_members(join, "timed_out" if timed_out else "refused", error)
        join.suspect = True
        if action is Action.OTHER_SOCKET and join.attempts < MAX_MOVES and self._move(join, error):
            join.attempts += 1
            return
        self._try_again(join, error, action)

    def _try_again(self, join: Join, error: RtpoolError, action: Action) -> None:
        """At once or after a while, as `action` says."""
        join.attempts += 1
        if action is Action.RETRY and error.retry_after is None:
            self._tell_refusal(join, error, 0.0)
            self.request(join)
            return
        delay = min(self._options.max_delay, self._options.base_delay * 2.0 ** min(join.attempts - 1, 32))
        delay *= self._rng.uniform(0.5, 1.0)
        at_least = error.retry_after
        if at_least is None:
            at_least = LONG_BACK_OFF if action is Action.BACK_OFF_LONG else 0.0
        delay = max(delay, at_least * self._rng.uniform(1.0, 1.5))
        self._tell_refusal(join, error, delay)
        join.retry = self._loop.call_later(delay, lambda: self._retry(join))

    def _tell_refusal(self, join: Join, error: RtpoolError, delay: float | None) -> None:
        """Say why a join failed, and when another attempt is made: None for never."""
        about = {**self._about(join), "attempt": join.attempts + 1, "delay": delay}
        again = "" if delay is None else "; asked again in %(delay).2f s, attempt %(attempt)d"
        self._log.warning("join_refused", f"! %(topic)r not joined: %(why)s{again}", **about, error=error)

    @staticmethod
    def _about(join: Join) -> dict[str, Any]:
        """The fields of every line about a join."""
        return {"topic": join.name, "connection": join.connection.connection_id if join.connection else None}

    def _move(self, join: Join, error: RtpoolError) -> bool:
        """Ask on another socket; False when there is none to be had."""
        refusing = join.connection
        if refusing is None:
            return False
        others = [connection for connection in self._connections.all if connection is not refusing]
        restarting = isinstance(error, JoinRefused) and error.code == RESTARTING
        if restarting and any(connection.draining for connection in others):
            return False  # it is not one node of the server, and more sockets would be its last straw
        slots = [connection.slot() for connection in others]
        choice = place(join.topic, slots, max_connections=self._options.max_connections - 1)
        if choice is None:
            return False
        if restarting:
            refusing.draining = True
        else:
            refusing.capacity = max(1, min(refusing.capacity, len(refusing.joins) - 1))
        words = "- %(topic)r leaves connection %(connection)d for another: %(why)s"
        self._log.warning("join_elsewhere", words, **self._about(join), error=error)
        self._unplace(join)
        self._house(join, choice)
        self.request(join)
        return True

    def _retry(self, join: Join) -> None:
        join.retry = None
        if self.joins.get(join.share.key) is join and not join.leaving:
            self.request(join)

    def _refuse(self, join: Join, error: RtpoolError) -> None:
        """Trying again cannot help: say so once, and wait for a new token or a new wish."""
        join.blocked = error
        join.share.state = ChannelState.ERRORED
        self._tell_refusal(join, error, None)
        self._readiness.tell_members(join, "refused", error)
        fail_waiting(join.share, error)
        self._pushes.fail(join, error)

    def clocks_parted(self) -> None:
        """The wall clock is another: every token is renewed by it."""
        for source in self._sources.values():
            self.tokens.clocks_parted(source)

    def _renewed(self, source: TokenSource) -> None:
        """There is another token: on live joins now, and what waited for one asks again."""
        joins = [join for join in self.joins.values() if join.source is source]
        self._log.debug("token_renewed", "= another access token for %(joins)d joins", joins=len(joins))
        for join in joins:
            self._renew_token(join)

    def _renew_token(self, join: Join) -> None:
        if join.blocked is not None:
            if join.needs_token and join.connection is not None:
                join.blocked = None
                self.request(join)
        elif join.retry is not None and getattr(join.share.last_error, "code", None) in (*TOKEN_CODES, UNAVAILABLE):
            self.request(join)
        elif join.joined:
            self._send_token(join, join.source.value)

    def _send_token(self, join: Join, token: str | None) -> None:
        if token is not None and token != join.token and join.joined and self._supabase:
            self._disturbed(join)
            join.token = token
            if not token.startswith("sb_"):  # the server ignores those
                join.renewals, join.renewed_at = join.renewals + 1, self._loop.now
            self._pushes.say(join, ACCESS_TOKEN, JsonBody(dumps({"access_token": token})))
            join.presence_calls.permission_changed()
            self._pushes.say_presence(join)

    def _end(self, join: Join) -> None:
        """Nobody wants it any more."""
        self._disturbed(join)
        self._pushes.fail(join)
        join.members = ()
        join.requested = False
        if join.retry is not None:
            join.retry.cancel()
            join.retry = None
        connection = join.connection
        if join.leaving:
            return
        if connection is None or connection.session.state(join.topic) is ChannelState.CLOSED:
            self.forget(join)
            return
        join.leaving = True
        connection.session.leave(join.topic, self._loop.now)
        connection.tick(self._loop.now)

    def forget(self, join: Join) -> None:
        """The server has no channel for a join any more, and nobody wants one, unless somebody came meanwhile."""
        self._unplace(join)
        if self.joins.get(join.share.key) is join:
            self._log.debug("left", "= %(topic)r left", topic=join.topic.removeprefix(self._options.topic_prefix))
            del self.joins[join.share.key]
            self._homeless.pop(join.share.key, None)
            self.tokens.release(join.source)
            if join.share.key.token is not None and not any(j.source is join.source for j in self.joins.values()):
                self._sources.pop(join.share.key.token, None)
        join.share.state = ChannelState.CLOSED
        leavers, join.leavers = join.leavers, []
        for attachment in leavers:  # who is woken by this finds nothing of it any more
            attachment.left.set_result(None)
        self.sync(join.share.key)  # a Channel that came while the leave was under way

    def _unplace(self, join: Join) -> None:
        connection, join.connection = join.connection, None
        if connection is None:
            return
        connection.joins.pop(join.topic, None)
        self.vacated(connection)

    def find_homes(self) -> None:
        """There may be room again for those that had none."""
        for key in self._homeless:
            self._loop.post(self._resync, key)

    def vacated(self, connection: Connection) -> None:
        """There is room on a connection again: for those that have none, or for nobody."""
        self.find_homes()
        if connection.is_idle:
            self._connections.close_when_idle(connection)

    def interrupted(self, join: Join) -> None:
        """A channel that was joined is gone: if it lasted, what it took to join it is forgiven."""
        if self._loop.now - join.joined_at >= self._options.stable_after:
            join.attempts = 0
        join.joined_at = math.inf

    def channel_lost(self, join: Join, event: ChannelLost) -> None:
        """The server ended a channel that was joined."""
        self.interrupted(join)
        action = classify_system(join.system_error or event.cause)
        if action is Action.RETRY and join.attempts:
            action = Action.BACK_OFF
        silence = join.connection.silence if join.connection is not None else 0.0
        if event.cause == UNMATCHED_TOPIC:  # nor since when
            silence += self._loop.now - join.heard_at
        lost_from = self._wall() - timedelta(seconds=silence)
        self._readiness.interrupt(join, Outage("token" if action is Action.NEW_TOKEN else "rejoin", lost_from))
        join.answered = False
        self._pushes.queue.heed(join.system_error)
        words = join.system_error or f"the server ended the channel ({event.cause})"
        join.system_error = ""
        if words == TRACK_TOO_BIG:
            self._registry.refuse_tracking(join.share)  # the same payload would end the next join too
            self._pushes.fail_presence(join, refused(join.name, words, Action.FATAL, self._log.hide))
        self.failed(join, refused(join.name, words, action, self._log.hide), action)
