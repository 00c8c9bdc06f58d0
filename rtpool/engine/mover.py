"""
Empties sparse sockets: moves their joins to others, one by one, so that no Channel notices. Everything here runs on the
I/O thread.

A join is first made a second time, on the other socket; `rtpool.protocol.handover` says when that one may take over.
Until then any trouble ends the move, and nothing has happened to the join.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable

import attrs

from rtpool.actions import Action
from rtpool.engine.connection import Connection
from rtpool.engine.connections import Connections
from rtpool.engine.io_loop import IoLoop, Timer
from rtpool.engine.joining import Joining
from rtpool.engine.joins import Join
from rtpool.engine.logs import Log
from rtpool.engine.pushes import Pushes
from rtpool.engine.routing import Router
from rtpool.events import ChannelState
from rtpool.options import PoolOptions
from rtpool.protocol.handover import Handover
from rtpool.protocol.messages import POSTGRES_CHANGES, SYSTEM, WireMessage
from rtpool.protocol.placement import merge_plan
from rtpool.protocol.refusals import classify_join
from rtpool.protocol.session_events import (
    ChannelEvent,
    Fenced,
    Joined,
    JoinFailed,
    Left,
    PushSettled,
    SessionEvent,
)

__all__ = ["Mover"]

#: Seconds that every connection was open before sockets are merged.
CALM_SECONDS = 30.0
#: Seconds after which all that was sent to the first channel alone has been sent. Nodes of a cluster hear of each other
#: within about 1.5 s (protocol 6.4); what is read from the database before a subscription may be sent long after it.
SETTLE_SECONDS, CHANGES_SETTLE_SECONDS = 2.0, 10.0
#: Seconds by which the two sockets may get a message at different times.
MARGIN_SECONDS = 0.5
#: Seconds a move may take until the guest takes over; pushes may be held before that, and again after it.
MOVE_SECONDS, HOLD_SECONDS = 60.0, 1.0
#: Seconds without merging after a move failed; twice as many after each that follows.
RETRY_SECONDS, MAX_RETRY_SECONDS = 60.0, 3_600.0
#: Seconds until a join that can wait asks again whether it may go out.
PATIENCE_SECONDS = 0.5


class _Phase(enum.Enum):
    """Where a move is."""

    BEGINNING = "beginning"  #: what was said before it is known of must have been heard
    JOINING = "joining"  #: the guest awaits its answer, or that changes flow
    WATCHING = "watching"  #: both get all there is, and it is found out what that is
    HOLDING = "holding"  #: the guest may take over as soon as no push awaits an answer
    LEAVING = "leaving"  #: the guest has taken over; the old channel is being left
    ENDING = "ending"  #: what the old channel delivered may still come by the new one
    GIVEN_UP = "given up"  #: the guest is leaving


_BEFORE = (_Phase.BEGINNING, _Phase.JOINING, _Phase.WATCHING, _Phase.HOLDING)


@attrs.define(eq=False, repr=False)
class _Move:
    """One join on its way from one connection to another."""

    join: Join
    topic: str
    source: Connection
    target: Connection
    handover: Handover
    deadline: Timer
    phase: _Phase = _Phase.BEGINNING
    response: object = None
    timer: Timer | None = None
    fence: tuple[Connection, str] | None = None


class Mover:
    """
    Merges sparse sockets into fewer.

    Joins stay where they are that are present (others would see them leave and come), that are in any trouble or
    replaying, and all of a plain Phoenix server (a join may do anything there).

    Args:
        options: the pool's.
        loop, connections, joining, router, pushes: the engine's other parts.
        deliver: takes a message of a join as if its connection had just said it.
        flush: hands over what was delivered.
        log: where moves are told.

    Thread-safety: confined to the I/O thread, except `moved`, which may be read anywhere.
    """

    def __init__(
        self,
        options: PoolOptions,
        *,
        loop: IoLoop,
        connections: Connections,
        joining: Joining,
        router: Router,
        pushes: Pushes,
        deliver: Callable[[Join, WireMessage], None],
        flush: Callable[[], None],
        log: Log,
    ) -> None:
        self._supabase = options.is_supabase
        self._loop = loop
        self._connections = connections
        self._joining = joining
        self._router = router
        self._pushes = pushes
        self._deliver = deliver
        self._flush = flush
        self._log = log
        #: The one that is under way, None while nothing moves; for reading only.
        self.move: _Move | None = None
        self._source: Connection | None = None
        self._to_move: deque[tuple[str, int]] = deque()  # topics of the source, and the connections they go to
        self._failures = 0
        self._not_before = 0.0
        self._stopped = False
        #: Joins moved so far.
        self.moved = 0

    # What the audit asks

    @property
    def is_merging(self) -> bool:
        """Whether a connection is being emptied."""
        return self._source is not None or self.move is not None

    def merge(self) -> bool:
        """Begin to empty a connection if that can be done; whether one is being emptied."""
        if self.is_merging:
            return True
        if self._stopped or not self._supabase or self._loop.now < self._not_before or not self._is_calm():
            return False
        slots = {connection: connection.slot() for connection in self._connections.all}
        plan = merge_plan(slots.values(), {c.connection_id for c in slots if all(map(_is_movable, c.joins.values()))})
        if plan is None:
            return False
        self._source = self._connections.get(plan.connection_id)
        self._to_move = deque(plan.moves.items())
        into = ", ".join(map(str, sorted(set(plan.moves.values()))))
        words = "= merging connection %(connection)d into %(into)s: %(joins)d joins"
        self._log.info("merge_begun", words, connection=plan.connection_id, into=into, joins=len(plan.moves))
        self._next()
        return True

    def _is_calm(self) -> bool:
        since = self._loop.now - CALM_SECONDS
        return self._joining.is_calm and all(c.state == "open" and c.opened_at <= since for c in self._connections.all)

    def _next(self) -> None:
        """Move the next join of the source, or end."""
        source = self._source
        if source is None or self._stopped or self.move is not None:
            return
        if not self._to_move:
            self._source = None
            words = "= connection %(connection)d is merged: %(joins)d joins left"
            self._log.info("merge_ended", words, connection=source.connection_id, joins=len(source.joins))
            return
        topic, target_id = self._to_move[0]
        join = source.joins.get(topic)
        target = next((c for c in self._connections.all if c.connection_id == target_id), None)
        if join is None:  # it was left meanwhile
            self._to_move.popleft()
            self._loop.post(self._next)
        elif target is None or not self._has_room(target, topic) or source.state != "open" or not _is_movable(join):
            self._source = None
            words = "= connection %(connection)d is merged no further: things changed"
            self._log.info("merge_ended", words, connection=source.connection_id, joins=len(source.joins))
        else:
            self._to_move.popleft()
            self._begin(join, source, target)

    def _has_room(self, target: Connection, topic: str) -> bool:
        slot = target.slot()
        return target.state == "open" and topic not in slot.topics and slot.used < slot.capacity

    # What disturbs a move

    def disturbed(self, join: Join) -> None:
        """A join is about to be left, joined anew, or given another token."""
        move = self.move
        if move is None or move.join is not join:
            return
        if move.phase in _BEFORE:
            self._give_up("it changes meanwhile")
        else:
            self._release(join)  # what was said before comes first

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        move = self.move
        if move is None or connection not in (move.source, move.target):
            return
        if move.phase in _BEFORE:
            self._give_up(f"connection {connection.connection_id} was lost")
        elif connection is move.target and move.phase is not _Phase.GIVEN_UP:
            move.handover.forget()  # the join lives there now, and comes back there
            if move.phase is _Phase.ENDING:
                self._over(move)

    def stop(self) -> None:
        """The pool ends: move nothing any more, and hold nothing back."""
        self._stopped, self._source = True, None
        move, self.move = self.move, None
        if move is not None:
            self._let_go(move)

    # What sessions say

    def heard(self, connection: Connection, event: SessionEvent) -> bool:
        """Heed what a session said; True when it is nobody else's business."""
        move = self.move
        if move is None:
            return False
        if isinstance(event, Fenced):
            if move.fence == (connection, event.ref):
                self._fenced(move, connection)
            return True
        if isinstance(event, PushSettled) and event.token is not None and event.token[0] is move.join:
            if event.outcome == "timeout":
                self._give_up("a push was not answered")  # the guest may hear it all the same
            elif move.phase is _Phase.HOLDING:
                self._loop.post(self._cut_when_answered)  # once it is seen to
        if not isinstance(event, WireMessage | ChannelEvent) or event.topic != move.topic:
            return False
        if connection is move.target:
            return self._target_said(move, event)
        return connection is move.source and self._source_said(move, event)

    def _source_said(self, move: _Move, event: WireMessage | ChannelEvent) -> bool:
        if move.phase in _BEFORE:
            if isinstance(event, WireMessage):
                move.handover.live(event)
                self._give_up_in_trouble(move)
            else:
                self._give_up("its channel ended")
        elif move.phase is _Phase.LEAVING:
            if isinstance(event, Left):
                self._left_source(move)
            return True
        return False

    def _target_said(self, move: _Move, event: WireMessage | ChannelEvent) -> bool:
        if move.phase is _Phase.GIVEN_UP:
            if isinstance(event, Left):
                self._over(move)
            return True
        if move.phase not in _BEFORE and move.target.joins.get(move.topic) is not move.join:
            move.handover.forget()  # it was left, and what is said there is for who came since
            return False
        if move.phase not in _BEFORE:
            return isinstance(event, WireMessage) and self._new_channel_said(move, event)
        if isinstance(event, Joined):
            move.response = event.response
            if not move.join.config.changes:
                self._watch(move, SETTLE_SECONDS)
        elif isinstance(event, WireMessage):
            self._guest_said(move, event)
        else:
            if isinstance(event, JoinFailed) and classify_join(event.response) is Action.OTHER_SOCKET:
                move.target.capacity = min(move.target.capacity, len(move.target.joins))
            self._give_up(f"connection {move.target.connection_id} does not take it")
        return True

    def _guest_said(self, move: _Move, message: WireMessage) -> None:
        payload = message.payload
        if message.event == SYSTEM and isinstance(payload, dict):
            if payload.get("status") != "ok":
                self._give_up(f"the server said {payload.get('message')!r}")
                return
            if payload.get("extension") == POSTGRES_CHANGES and move.phase is _Phase.JOINING:
                self._watch(move, CHANGES_SETTLE_SECONDS)
                return
        move.handover.guest(message)
        self._give_up_in_trouble(move)

    def _new_channel_said(self, move: _Move, event: WireMessage) -> bool:
        news = move.handover.guest(event)
        if news is not None and news is not event:
            self._deliver(move.join, news)
        return news is not event

    # The steps

    def _begin(self, join: Join, source: Connection, target: Connection) -> None:
        deadline = self._loop.call_later(MOVE_SECONDS, lambda: self._give_up("it takes too long"))
        move = self.move = _Move(join, join.topic, source, target, Handover(), deadline)
        join.handover = move.handover
        target.guests.add(move.topic)
        # The guest hears from the server what we say on the old channel. All of that must be known here: so what was
        # said until now has to be there before the guest.
        self._fence_in(move, 0.0, source)

    def _invite(self, move: _Move) -> None:
        """Join the topic on the other socket, unless other joins come first."""
        if self._joining.queue.spare(move.target):
            move.phase = _Phase.JOINING
            move.target.session.join(move.topic, move.join.body(supabase=True, replay=False), self._loop.now)
        else:
            move.timer = self._loop.call_later(PATIENCE_SECONDS, lambda: self._invite(move))

    def _watch(self, move: _Move, settle: float) -> None:
        move.phase = _Phase.WATCHING
        self._fence_in(move, settle, move.source)

    def _fence_in(self, move: _Move, delay: float, connection: Connection) -> None:
        def begin() -> None:
            if connection.state == "open":
                move.fence = connection, connection.session.fence(self._loop.now)
                if move.phase is _Phase.WATCHING and connection is move.source:
                    move.handover.live_fence_begun()
            elif move.phase is _Phase.ENDING:
                self._over(move)

        move.timer = self._loop.call_later(delay, begin)

    def _fenced(self, move: _Move, connection: Connection) -> None:
        move.fence = None
        if move.phase is _Phase.ENDING:
            self._over(move)
        elif move.phase is _Phase.BEGINNING:
            move.timer = self._loop.call_later(MARGIN_SECONDS, lambda: self._invite(move))
        if move.phase is not _Phase.WATCHING:
            return
        of_source = connection is move.source
        (move.handover.live_fenced if of_source else move.handover.guest_fenced)()
        if self._give_up_in_trouble(move):
            return
        if move.handover.ready:
            move.phase = _Phase.HOLDING
            move.join.held = True
            move.timer = self._loop.call_later(HOLD_SECONDS, lambda: self._give_up("its pushes are not answered"))
            self._loop.post(self._cut_when_answered)
        else:
            self._fence_in(move, MARGIN_SECONDS, move.target if of_source else move.source)

    def _cut_when_answered(self) -> None:
        move = self.move
        if move is None or move.phase is not _Phase.HOLDING or move.source.session.awaits_reply(move.topic):
            return
        if move.source.session.has_events:  # it may have been answered, and nobody looked yet
            self._loop.post(self._cut_when_answered)
        elif _is_movable(move.join) and move.handover.ready:
            self._cut(move)
        else:
            self._give_up("it changed meanwhile")

    def _cut(self, move: _Move) -> None:
        """The guest takes over."""
        join, source, target, topic = move.join, move.source, move.target, move.topic
        self._cancel(move)
        present = {meta["phx_ref"] for metas in join.presence.snapshot().values() for meta in metas}
        kept = move.handover.cut(present)
        move.phase = _Phase.LEAVING
        del source.joins[topic]
        source.guests.add(topic)
        target.guests.discard(topic)
        target.joins[topic] = join
        join.connection = target
        join.replay_request, join.renewals = None, 0
        join.presence_calls.rejoined()
        self._router.joined(join, move.response)
        source.session.leave(topic, self._loop.now)
        # In order after what was said on the old channel, but late for nobody.
        move.timer = self._loop.call_later(HOLD_SECONDS, lambda: self._release(join))
        for message in kept:
            self._deliver(join, message)
        self._flush()
        self.moved, self._failures = self.moved + 1, 0
        words = (
            "= %(topic)r moved from connection %(origin)d to %(connection)d; %(first)d messages came there first, "
            "%(later)d later"
        )
        fields = {"origin": source.connection_id, "connection": target.connection_id}
        self._log.info("join_moved", words, topic=join.name, first=len(kept), later=move.handover.owed, **fields)

    def _left_source(self, move: _Move) -> None:
        """The server has done all that was pushed on the old channel: what came since goes out by the new one."""
        move.phase = _Phase.ENDING
        self._cancel(move)
        move.source.guests.discard(move.topic)
        self._joining.vacated(move.source)
        self._release(move.join)
        self._fence_in(move, SETTLE_SECONDS, move.target)

    def _over(self, move: _Move) -> None:
        """The move has come to an end, or to none."""
        given_up = move.phase is _Phase.GIVEN_UP
        self.move = None
        self._let_go(move)
        for connection in (move.source, move.target):
            if move.topic in connection.guests:
                connection.guests.discard(move.topic)
                self._joining.vacated(connection)
        if given_up:
            self._source = None
        else:
            self._loop.post(self._next)

    def _give_up_in_trouble(self, move: _Move) -> bool:
        if move.handover.trouble:
            self._give_up(move.handover.trouble)
        return bool(move.handover.trouble)

    def _give_up(self, why: str) -> None:
        """The join stays where it is."""
        move = self.move
        if move is None or move.phase not in _BEFORE:
            return
        words = "= %(topic)r stays on connection %(connection)d: %(why)s"
        self._log.info("join_not_moved", words, topic=move.join.name, connection=move.source.connection_id, why=why)
        self._not_before = self._loop.now + min(MAX_RETRY_SECONDS, RETRY_SECONDS * 2.0 ** min(self._failures, 32))
        self._failures += 1
        move.phase = _Phase.GIVEN_UP
        self._let_go(move)
        session = move.target.session
        session.leave(move.topic, self._loop.now)
        if move.target.state != "open":
            session.events()  # that it has left; nothing else happens to a session without a socket
        if session.state(move.topic) is not ChannelState.LEAVING:
            self._over(move)

    def _let_go(self, move: _Move) -> None:
        self._cancel(move)
        if move.join.handover is move.handover:
            move.join.handover = None
            self._release(move.join)

    def _release(self, join: Join) -> None:
        """Send what was held back."""
        if join.held:
            join.held = False
            self._pushes.flush(join)
            self._pushes.say_presence(join)

    def _cancel(self, move: _Move) -> None:
        move.deadline.cancel()
        if move.timer is not None:
            move.timer.cancel()


def _is_movable(join: Join) -> bool:
    """Whether all is well with a join, and nobody would see it move."""
    calls, share = join.presence_calls, join.share
    return (
        all(map(join.flows_to, join.members))
        and bool(join.members)
        and not (join.requested or join.leaving or join.changes_refused or join.changes_error)
        and join.blocked is None
        and join.outage is None
        and share.wish is None
        and not (calls.in_flight or calls.has_news(None, asked=False))
        and (join.held or not join.buffer)
    )
