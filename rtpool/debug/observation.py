"""
What the rules look at: one picture of a pool, taken from any thread.

Most of it can be read anywhere. What belongs to the I/O thread is put together there, in one turn, and waited for; a
pool whose I/O thread does not answer is looked at without that.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, NamedTuple

import attrs

from rtpool.engine import engine as engines
from rtpool.engine.audit import NEVER_FOR_A_MOMENT, Finding
from rtpool.engine.connection import Connection
from rtpool.engine.engine import Engine
from rtpool.engine.joins import Join
from rtpool.engine.mailbox import InHand, Mailbox
from rtpool.engine.snapshot import stats_of
from rtpool.engine.threads import outcome_of
from rtpool.engine.tokens import TokenSource
from rtpool.errors import RtpoolError
from rtpool.options import PoolOptions
from rtpool.protocol.jwt import claims_of, expiry_of
from rtpool.protocol.placement import Slot
from rtpool.registry import Share, ShareKey, Subscriber
from rtpool.stats import PoolStats

__all__ = [
    "ChannelSeen",
    "ConnectionSeen",
    "Inside",
    "JoinSeen",
    "MailboxSeen",
    "Misplaced",
    "Observation",
    "TokenSeen",
    "is_service_key",
    "observe",
]

#: Seconds the I/O thread may take to answer; one that is busy is looked at without it.
PATIENCE = 2.0
#: Characters of an error that are shown.
WORDS = 300


class ConnectionSeen(NamedTuple):
    """
    One connection.

    Attributes:
        number, state, attempts, error: as in the statistics; the last error, empty without one.
        slot: what placement sees.
        limit: how many channels the server has let on it, at the most.
        idle: nobody lives there.
        read: whether it is read at present; not so behind a full mailbox.
        heartbeat_latency, heartbeat_awaited: seconds of the last round trip, and for which an answer has been awaited.
    """

    number: int
    state: str
    attempts: int
    error: str
    slot: Slot
    limit: int
    idle: bool
    read: bool
    heartbeat_latency: float
    heartbeat_awaited: float


class JoinSeen(NamedTuple):
    """
    One join that is not being left: its topic as users write it, where it lives, whether it was refused, and whether
    the health check leaves it where it is.
    """

    name: str
    key: ShareKey
    connection: int | None
    blocked: bool
    homeless: bool
    moving: bool
    stays: bool


class TokenSeen(NamedTuple):
    """
    A token, by whose it is: ``"pool 1"`` or a topic; what it claims; whether it was given as text, and is of use to a
    join.
    """

    whose: str
    expires: float | None
    role: str | None
    static: bool
    used: bool


class Misplaced(NamedTuple):
    """What the audit found: its kind, what it is about, by identity and name, in words; if it is so for certain."""

    kind: str
    identity: tuple[object, ...]
    subject: str
    words: str
    certain: bool


@attrs.frozen(kw_only=True)
class Inside:
    """What only the I/O thread knows."""

    connections: tuple[ConnectionSeen, ...]
    joins: Mapping[ShareKey, JoinSeen]
    tokens: tuple[TokenSeen, ...]
    misplaced: tuple[Misplaced, ...]
    merging: bool


class MailboxSeen(NamedTuple):
    """
    One mailbox.

    Attributes:
        identity: tells it from others.
        waiting, limit, lost, overflow: events that wait for their callbacks, those included that a worker has taken and
            not begun; how many may without them; how many met a full mailbox, and what then.
        oldest: seconds for which the oldest has waited, 0 when none waits.
        pulled: whether a reader takes from it, not callbacks.
        unread: whether there never was a reader, and none is missed: its Channel is there to be asked who is present,
            and what it drops holds up nobody.
        full: whether its connection is not read because of it.
    """

    identity: int
    waiting: int
    limit: int
    lost: int
    overflow: str
    oldest: float
    pulled: bool
    unread: bool
    full: bool


class ChannelSeen(NamedTuple):
    """
    One subscribed Channel.

    Attributes:
        topic, number, key, state: as its user wrote it; of its subscription; what it shares; a `ChannelState` value.
        ready: whether all that it asked for flows.
        away: seconds since events last flowed, as far as known; 0 when they do or never did.
        served: seconds since they first flowed, 0 when they never did.
        error: why not, empty when unknown.
        listens: whether it has a callback or a reader, or was asked who is present.
        speaks: whether it ever pushed anything, or is present.
        unsettled: its pushes on their way.
        mailboxes: of its callbacks, of its readers.
    """

    topic: str
    number: int
    key: ShareKey
    state: str
    ready: bool
    away: float
    served: float
    error: str
    listens: bool
    speaks: bool
    unsettled: int
    mailboxes: tuple[MailboxSeen, ...]


@attrs.frozen(kw_only=True)
class Observation:
    """
    One look at a pool.

    Attributes:
        at, wall: monotonic seconds, seconds since the epoch.
        name, options, stats: the pool's.
        started, closed: where it is in its life.
        orphaned: whether the thread that started it has ended.
        stalled: seconds for which the I/O thread has not come round, if it did not answer.
        inside: what only the I/O thread knows; None when it did not tell.
        channels: every subscribed one.
        in_hand: what the workers are at.
        siblings: names of other running pools of the same URL and key.
        service_key, service_header, service_param: whether the key, or one in a header or a parameter of the URL,
            passes over row-level security.
        key_expires: when it expires, seconds since the epoch.
        slowed: how often the server ended channels because of too many events.
        overflowed, too_big_sent, too_big_received: events that met a full mailbox, messages over a limit.
        rest_broadcasts, losses: requests that were begun, open connections that broke; ever.
    """

    at: float
    wall: float
    name: str
    options: PoolOptions
    stats: PoolStats
    started: bool
    closed: bool
    orphaned: bool
    stalled: float
    inside: Inside | None
    channels: tuple[ChannelSeen, ...]
    in_hand: tuple[InHand, ...]
    siblings: tuple[str, ...]
    service_key: bool
    service_header: bool
    service_param: bool
    key_expires: float | None
    slowed: int
    overflowed: int
    too_big_sent: int
    rest_broadcasts: int
    losses: int
    too_big_received: int

    @property
    def pool(self) -> str:
        """The subject of what is about the whole pool."""
        return f"pool {self.name}"


def observe(engine: Engine) -> Observation:
    """Look at a pool; may wait `PATIENCE` seconds for its I/O thread."""
    now = datetime.datetime.now(datetime.timezone.utc)
    coordinator, dispatcher, key = engine.coordinator, engine.dispatcher, engine.endpoint.api_key
    live = engine.started and not engine.closed
    inside = _ask_inside(engine) if live else None
    starter = engine.started_by() if engine.started_by is not None else None
    return Observation(
        inside=inside,
        at=time.monotonic(),
        wall=now.timestamp(),
        name=engine.name,
        options=engine.options,
        stats=stats_of(engine),
        started=engine.started,
        closed=engine.closed,
        orphaned=engine.started and (starter is None or not starter.is_alive()),
        stalled=engine.loop.clock() - engine.loop.now if live and inside is None else 0.0,
        channels=tuple(seen for s in engine.registry.subscribers() if (seen := _channel(engine, s, now)) is not None),
        in_hand=tuple(dispatcher.in_hand()) if live else (),
        siblings=tuple(sorted(other.name for other in engines.running() if live and _is_sibling(engine, other))),
        service_key=is_service_key(key),
        service_header=any(is_service_key(text) for _, text in engine.options.headers),
        service_param=any(is_service_key(text) for _, text in engine.options.params),
        key_expires=expiry_of(key) if key else None,
        slowed=coordinator.pushes.queue.refusals,
        overflowed=dispatcher.lost,
        too_big_sent=engine.too_big,
        rest_broadcasts=engine.rest_broadcasts,
        losses=coordinator.connections.losses,
        too_big_received=coordinator.connections.too_big,
    )


def is_service_key(key: str | None) -> bool:
    """Whether a key, or a token, passes over row-level security, as far as its looks tell."""
    if not key:
        return False
    bare = key.removeprefix("Bearer ").strip()
    return bare.startswith("sb_secret_") or (claims_of(bare) or {}).get("role") == "service_role"


def _is_sibling(engine: Engine, other: Engine) -> bool:
    mine, theirs = engine.endpoint, other.endpoint
    same = other is not engine and mine.url == theirs.url and mine.api_key == theirs.api_key
    return same and engine.options.is_supabase == other.options.is_supabase and other.started and not other.closed


def _channel(engine: Engine, subscriber: Subscriber, now: datetime.datetime) -> ChannelSeen | None:
    attachment = subscriber.attachment
    if attachment is None:  # it left just now
        return None
    share, ready = attachment.share, subscriber.is_ready
    outage, since = attachment.outage, attachment.flowing_since
    speaks = subscriber.pushed or share.wish is not None
    read = subscriber.stream_claimed or not subscriber.polled
    return ChannelSeen(
        topic=subscriber.topic,
        number=attachment.number,
        key=share.key,
        state=share.state.value,
        ready=ready,
        away=_seconds(now, outage.lost_from) if outage is not None and not ready else 0.0,
        served=_seconds(now, since) if since is not None else 0.0,
        error="" if ready else _words(engine, share.last_error),
        listens=bool(subscriber.bindings) or subscriber.stream_claimed or subscriber.polled,
        speaks=speaks,
        unsettled=subscriber.unsettled,
        mailboxes=tuple(
            _mailbox(engine, mailbox, read, now)
            for mailbox in (subscriber.mailbox, subscriber.stream)
            if mailbox is not None
        ),
    )


def _mailbox(engine: Engine, mailbox: Mailbox, read: bool, now: datetime.datetime) -> MailboxSeen:
    # A slow callback has the next events in its worker's hands, and they wait all the same.
    waiting = mailbox.ordinary + max(0, mailbox.ordinary_in_hand - mailbox.done - 1)
    return MailboxSeen(
        identity=id(mailbox),
        waiting=waiting,
        limit=mailbox.limit,
        lost=mailbox.lost,
        overflow=mailbox.overflow,
        oldest=_seconds(now, engine.dispatcher.waiting_since(mailbox)) if waiting else 0.0,
        pulled=mailbox.pulled,
        unread=mailbox.pulled and not read and mailbox.overflow.startswith("drop"),
        full=mailbox.blocked and mailbox.overflow == "block",
    )


def _seconds(now: datetime.datetime, since: datetime.datetime) -> float:
    return max(0.0, (now - since).total_seconds())


def _words(engine: Engine, error: RtpoolError | None) -> str:
    """A server may repeat what it was sent."""
    return "" if error is None else engine.logs.hide(f"{type(error).__name__}: {error}")[:WORDS]


# On the I/O thread


def _ask_inside(engine: Engine) -> Inside | None:
    if engine.loop.is_current_thread():  # a log handler that asks
        return _look_inside(engine)
    told: Future[Inside | None] = Future()

    def tell() -> None:
        if told.set_running_or_notify_cancel():
            try:
                told.set_result(_look_inside(engine))
            except Exception as error:  # a look must not take the pool along
                told.set_exception(error)

    try:
        engine.post(tell)
        return outcome_of(told, PATIENCE)
    except (RtpoolError, FutureTimeout):  # it ended, or is busy
        told.cancel()
        return None


def _look_inside(engine: Engine) -> Inside:
    coordinator, now = engine.coordinator, engine.loop.now
    joins = [join for join in coordinator.joins.values() if not join.leaving]
    move = coordinator.mover.move
    pool_token = coordinator.joining.pool_token  # a join that was refused for it is gone
    sources = {id(pool_token): (f"pool {engine.name}", pool_token)}
    for join in joins:
        sources.setdefault(id(join.source), (repr(join.name), join.source))
    used = {id(join.source) for join in joins}
    return Inside(
        connections=tuple(_connection(engine, connection, now) for connection in coordinator.connections.all),
        joins={
            join.share.key: JoinSeen(
                name=join.name,
                key=join.share.key,
                connection=join.connection.connection_id if join.connection is not None else None,
                blocked=join.blocked is not None,
                homeless=coordinator.joining.is_homeless(join),
                moving=move is not None and move.join is join,
                stays=join.share.wish is not None or not engine.options.is_supabase,
            )
            for join in joins
        },
        tokens=tuple(_token(*each, id(each[1]) in used) for each in sources.values() if each[1].value),
        misplaced=tuple(
            Misplaced(f.kind, _identity_of(f), _name_of(f.subject) or f.kind, f.words, f.kind in NEVER_FOR_A_MOMENT)
            for f in coordinator.audit.findings()
        ),
        merging=coordinator.mover.is_merging,
    )


def _connection(engine: Engine, connection: Connection, now: float) -> ConnectionSeen:
    return ConnectionSeen(
        number=connection.connection_id,
        state=connection.state,
        attempts=0 if connection.state == "open" else connection.attempts,
        error=_words(engine, connection.last_error),
        slot=connection.slot()._replace(topics=()),  # they are the I/O thread's
        limit=connection.capacity,
        idle=connection.is_idle,
        read=not connection.paused_by,
        heartbeat_latency=connection.heartbeat_latency or 0.0,
        heartbeat_awaited=connection.session.heartbeat_awaited(now) if connection.state == "open" else 0.0,
    )


def _token(whose: str, source: TokenSource, used: bool) -> TokenSeen:
    value = source.value or ""
    return TokenSeen(whose, expiry_of(value), _role(value), static=source.provider is None, used=used)


def _role(token: str) -> str | None:
    role: Any = "service_role" if is_service_key(token) else (claims_of(token) or {}).get("role")
    return role if isinstance(role, str) else None


def _identity_of(found: Finding) -> tuple[object, ...]:
    """Tells it from what may be found at the next look: nothing is kept of it, so another may have its address then."""
    subject = found.subject
    members = subject.subscribers if isinstance(subject, Share) else ()
    numbers = [a.number for s in members if (a := s.attachment) is not None]
    return id(subject), found.words, *numbers


def _name_of(subject: object) -> str:
    if isinstance(subject, Connection):
        return f"connection {subject.connection_id}"
    if isinstance(subject, Share):
        return repr(next((subscriber.topic for subscriber in subject.subscribers), subject.key.topic))
    return repr(subject.name) if isinstance(subject, Join) else ""
