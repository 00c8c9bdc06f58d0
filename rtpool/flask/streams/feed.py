"""
A feed: one upstream Channel, the newest of what it told, and any number of browsers that read it, each with a cursor.
"""

from __future__ import annotations

import collections
import os
import secrets
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NamedTuple

import attrs

from rtpool.channel import Channel
from rtpool.errors import PoolExhausted, RtpoolError
from rtpool.events import Event, Gap, Presence, StatusChange
from rtpool.flask.streams import sse
from rtpool.flask.streams.seat import Seat
from rtpool.flask.streams.sse import Position
from rtpool.flask.streams.wanted import Wanted
from rtpool.pool import RealtimePool

__all__ = ["Entry", "Feed", "FeedStats", "Opening"]

Lock = threading.Lock

#: How far the clocks of two processes, and the ways of one event to them, may be apart; milliseconds.
APART_MS = 5_000
#: So many events in one order are a place that the feeds of two processes have in common.
TOGETHER = 4
#: Bytes a reader takes at once, and the most that waits for one browser outside its feed.
PIECE_BYTES = 64 * 1024


class Entry(NamedTuple):
    """
    One thing that a feed told.

    Attributes:
        position: behind it.
        at: when it came, milliseconds since 1970.
        event: what views receive, None for what is told to everybody as it is.
        frame: what is sent without a view.
        lost_from: of a gap, since when something may be missing; likewise milliseconds.
        place: of an event, the fingerprint of it and those before it; the position's, unless that would be ambiguous.
    """

    position: Position
    at: int
    event: Event | None
    frame: bytes
    lost_from: int | None = None
    place: str | None = None


class Opening(NamedTuple):
    """
    Where a reader begins.

    Attributes:
        position: behind what its browser had, or is not to have.
        lost: whether the browser may lack something from before it.
        status: the frame of what it is to know of the Channel first, None where it knows or all is well.
        present: the newest word on who is present, for who was not there to hear it.
    """

    position: Position
    lost: bool
    status: bytes | None
    present: Entry | None


@attrs.frozen
class FeedStats:
    """
    A feed at one moment.

    Attributes:
        topic: as the user wrote it.
        private: whether it is the private channel.
        own_token: whether it listens as somebody else than the app.
        browsers: streams that read it.
        status: of its Channel, as in `rtpool.StatusChange`.
        events: kept for browsers that come back.
        size: bytes of those.
        total: told since it began, statuses and gaps included.
        skipped: events that slow browsers did not get, each counted once for each of them.
    """

    topic: str
    private: bool
    own_token: bool
    browsers: int
    status: str
    events: int
    size: int
    total: int
    skipped: int


class Feed:
    """
    One upstream Channel and the ring of what it told.

    Args:
        wanted: what it tells.
        pool: whose Channel.
        limit, limit_bytes: events kept, and bytes of their frames.
        key: for fingerprints, see `sse.fingerprint`.
        wall: aware wall-clock time.
        on_over: called with the feed, on a worker, just before it ends its readers by itself.
        on_homeless: called on a worker when no connection has room for it.
        warn: logs a line.

    Thread-safety: every method may be called from any thread; `_hear` is called by the Channel, never twice at once.
    """

    def __init__(
        self,
        wanted: Wanted,
        pool: RealtimePool,
        *,
        limit: int,
        limit_bytes: int,
        key: bytes,
        wall: Callable[[], datetime],
        on_over: Callable[[Feed], None],
        on_homeless: Callable[[], None],
        warn: Callable[[str], None],
    ) -> None:
        self.wanted = wanted
        self.pool = pool
        self._limit, self._limit_bytes, self._key = limit, limit_bytes, key
        self._wall, self._on_over, self._on_homeless, self._warn = wall, on_over, on_homeless, warn
        self._pid = os.getpid()
        self._channel: Channel | None = None
        # Confined to the Channel's callbacks.
        self._newest: Event | None = None
        self._together: collections.deque[str] = collections.deque(maxlen=TOGETHER)
        self._was_joined = False
        #: Guards: all below.
        self._lock = Lock()
        self._ring: collections.deque[Entry] = collections.deque()
        self._bytes = 0
        # Behind what left the ring, and behind the newest in it; since when the ring lacks nothing, None before a join.
        # Nobody guesses an id: it would be shown what was told before it came.
        self._base = self._last = Position(secrets.token_hex(8), 0, self._now(), secrets.token_hex(8))
        self._complete_since: int | None = None
        self._status = "joining"
        self._status_frame: bytes | None = None
        self._places: dict[str, int] = {}  # in the ring, and when each came last
        self._present: Entry | None = None
        self._skipped = 0
        self._seats: dict[Seat, None] = {}
        #: Whether it will tell nothing more, and whether because the server refused it. Read anywhere.
        self.over = False
        self.refused = False
        #: Whether it waits for a connection with room. Read anywhere.
        self.homeless = False

    def _now(self) -> int:
        return _milliseconds(self._wall())

    # Its life

    def told_to_stop(self, had: Position) -> bool:
        """Whether a browser that had so much was told by this very feed that it will never be let in."""
        return self.refused and had == self._last and had.fingerprint == sse.STOP

    def start(self) -> None:
        """
        Subscribe, without waiting for it.

        Raises:
            As `rtpool.RealtimePool.channel` and `rtpool.Channel.subscribe`; PoolClosed above all.
        """
        channel = self._channel = self.wanted.channel(self.pool, self._hear)
        channel.subscribe(wait=False)
        if self.over:  # meanwhile
            self.leave()

    def leave(self) -> None:
        """End every reader, when it has read all there is, and have the server forget the Channel. Idempotent."""
        with self._lock:
            self.over = True
            seats = list(self._seats)
        for seat in seats:
            seat.woken.set()
        channel = self._channel
        if channel is not None:
            channel.unsubscribe(timeout=0)

    def inherit(self) -> None:
        """In a forked child, where nobody reads it: its lock may be held by a thread that is not there."""
        self._lock = Lock()
        self._seats = {}
        self.leave()

    def stats(self) -> FeedStats:
        """What is to be seen of it."""
        with self._lock:
            return FeedStats(
                topic=self.wanted.topic,
                private=self.wanted.private,
                own_token=self.wanted.token is not None,
                browsers=len(self._seats),
                status=self._status,
                events=len(self._ring),
                size=self._bytes,
                total=self._last.seq,
                skipped=self._skipped,
            )

    # What the Channel tells; on a worker, one after another

    def _hear(self, event: Any) -> None:
        if event is self._newest or os.getpid() != self._pid or self.over:
            return  # one that several of our wishes fit comes as often; and a forked child has no browsers
        self._newest = event
        if isinstance(event, StatusChange):
            self._hear_status(event)
            return
        lost_from = _milliseconds(event.lost_from) if isinstance(event, Gap) else None
        try:
            name, content = sse.content_of(event)
            data = sse.encode(content, ordered=True)
        except (TypeError, ValueError, RecursionError) as error:
            self._warn(f"an event on {self.wanted.topic!r} cannot be told to browsers: {error}")
            self._append(*self._loss("encoding"))
            return
        if isinstance(event, Gap):
            self._append(name, data, lost_from=lost_from)
        elif len(data) > self._limit_bytes:
            self._warn(
                f"an event on {self.wanted.topic!r} has {len(data):,} characters and is not told to browsers; "
                f"RTPOOL_STREAM_BUFFER_BYTES is {self._limit_bytes:,}"
            )
            self._append(*self._loss("size"))
        else:
            self._append(name, data, event=event, fingerprint=sse.fingerprint(name, data, self._key))

    def _hear_status(self, change: StatusChange) -> None:
        name, content = sse.content_of(change)
        error = change.error
        # rtpool asks no more. Browsers do when they come back, with a fresh token perhaps; the next feed does.
        refused = change.status == "refused" and isinstance(error, RtpoolError) and not error.retryable
        never = refused and self._is_final(error)
        now = self._now()
        if change.status == "joined":
            self._was_joined = True
            with self._lock:
                self._complete_since = self._complete_since or now
        self._append(
            name, sse.encode(content, ordered=True), status=change.status, fingerprint=sse.STOP if never else None
        )
        self.homeless = isinstance(error, PoolExhausted)
        if self.homeless:
            self._on_homeless()
        if refused or change.status == "closed":
            self.refused = refused
            self._on_over(self)  # first, so that no browser that comes back meets it
            self.leave()

    def _is_final(self, error: Exception | None) -> bool:
        """
        Whether a refusal is for ever. The app's own token may be another one tomorrow; a browser's not, but one that
        was good has a successor when the browser comes back.
        """
        if isinstance(error, RtpoolError) and error.action.value == "fatal":
            return True
        return isinstance(self.wanted.given_token, str) and not self._was_joined

    def _loss(self, cause: str) -> tuple[str, str]:
        now = self._wall()
        gap = Gap(self.wanted.topic, cause, now, now, certain=True)
        name, content = sse.content_of(gap)
        return name, sse.encode(content, ordered=True)

    def _append(
        self,
        name: str,
        data: str,
        *,
        event: Event | None = None,
        fingerprint: str | None = None,
        lost_from: int | None = None,
        status: str | None = None,
    ) -> None:
        # Only the Channel's callbacks come here, one at a time: nobody else moves what is last.
        now, last, place = self._now(), self._last, None
        at, mark = (last.ms, last.fingerprint) if fingerprint is None else (now, fingerprint)
        if event is not None and fingerprint is not None:
            self._together.append(fingerprint)
            place = mark = sse.fingerprint_of_several(self._together, self._key)
            if now - self._places.get(place, -2 * APART_MS) < 2 * APART_MS:
                mark = secrets.token_hex(8)  # another process may have heard the first of the two alone
        position = Position(last.epoch, last.seq + 1, at, mark)
        entry = Entry(position, now, event, sse.frame(name, data, position), lost_from, place)
        status_frame = None if status is None else sse.frame(name, data)
        with self._lock:
            if place is not None:
                self._places[place] = now
            self._ring.append(entry)
            self._bytes += len(entry.frame)
            self._last = position
            if status is not None:
                self._status, self._status_frame = status, status_frame
            elif isinstance(event, Presence) and event.type == "sync":
                self._present = entry
            while len(self._ring) > self._limit or (self._bytes > self._limit_bytes and len(self._ring) > 1):
                oldest = self._ring.popleft()
                self._bytes -= len(oldest.frame)
                if oldest.place is not None and self._places.get(oldest.place) == oldest.at:
                    del self._places[oldest.place]
                self._base = oldest.position
                if self._complete_since is not None:
                    self._complete_since = max(self._complete_since, oldest.at)
            seats = list(self._seats)
        for seat in seats:
            seat.woken.set()

    # What readers do

    def open(self, seat: Seat, last_id: str | None) -> Opening:
        """
        Begin to read.

        Args:
            seat: woken when there is more.
            last_id: the browser's ``Last-Event-ID``, None when it comes for the first time.
        """
        had = None if last_id is None else sse.parse_id(last_id)
        with self._lock:
            self._seats[seat] = None
            found = None if had is None else self._find(had)
            status = self._status_frame
            if found is not None and had is not None:
                return Opening(found, False, None if had.epoch == found.epoch else status, None)
            if last_id is None and self._status == "joined":  # nobody told it otherwise
                status = None
            return Opening(self._last, last_id is not None, status, self._present)

    def close(self, seat: Seat) -> None:
        """Read no more. Idempotent."""
        with self._lock:
            self._seats.pop(seat, None)

    def after(self, position: Position) -> tuple[list[Entry], Position | None]:
        """
        What was told since, as much as a reader takes at once.

        Returns:
            The entries; and where they begin when something between `position` and them is there no more, else None.
        """
        with self._lock:
            lost = self._base if position.seq < self._base.seq else None
            if lost is not None:
                self._skipped += lost.seq - position.seq
            index = max(position.seq, self._base.seq) - self._base.seq
            entries, size = [], 0
            while index < len(self._ring) and size < PIECE_BYTES:
                entries.append(self._ring[index])
                size += len(entries[-1].frame)
                index += 1
            return entries, lost

    def _find(self, had: Position) -> Position | None:
        """Where a reader is that had so much, None when that cannot be proven. The caller must hold `self._lock`."""
        if had.epoch != self._last.epoch:
            return self._find_elsewhere(had)
        index = had.seq - self._base.seq
        if not 0 <= index <= len(self._ring):
            return None
        here = self._ring[index - 1].position if index else self._base
        return here if here == had else None

    def _find_elsewhere(self, had: Position) -> Position | None:
        """
        Where a reader is that read so much in another process: exactly one event of that time has that content and
        those events before it, and the ring lacks none of that time. The caller must hold `self._lock`.
        """
        first, last = had.ms - APART_MS, had.ms + APART_MS
        if self._complete_since is None or self._complete_since > first:
            return None
        found: list[Position] = []
        for entry in self._ring:
            if entry.lost_from is not None and entry.lost_from <= last and entry.at >= first:
                return None
            if entry.place == had.fingerprint and first <= entry.at <= last:
                found.append(entry.position)
        return found[0] if len(found) == 1 else None


def _milliseconds(moment: datetime) -> int:
    return int(moment.astimezone(timezone.utc).timestamp() * 1000)
