"""
What one browser is sent: of a feed, through its view, or of what is made anew each second for all who look.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Protocol

from flask import Flask

from rtpool.events import Event, Gap
from rtpool.flask.signals import callback_failed
from rtpool.flask.streams import sse
from rtpool.flask.streams.feed import Entry, Feed
from rtpool.flask.streams.seat import Seat
from rtpool.flask.streams.sse import Position

__all__ = ["FeedReader", "Reader", "SnapshotReader", "Snapshots", "View"]

Lock = threading.Lock

View = Callable[[Event], Any]

#: How long a browser waits before it comes back.
RETRY_MS = 1_000


class Reader(Protocol):
    """What a response is made of. Thread-safety: none; it is its browser's thread's."""

    def opening(self) -> bytes:
        """What is sent at once."""

    def take(self) -> bytes | None:
        """What there is to be sent, without waiting; nothing, or None when that was all."""

    def beat(self) -> bytes:
        """A sign of life."""

    def due(self) -> float:
        """When to look again though nobody woke it, monotonic."""


class FeedReader:
    """
    Reads a feed for one browser.

    Args:
        app: in whose context the view runs.
        feed: what it reads.
        seat: its browser's.
        last_id: its ``Last-Event-ID``.
        view: see `rtpool.flask.Realtime.stream`.
        close_slow: whether a browser that fell behind is closed, and not told of a gap.

    Thread-safety: none; it is its browser's thread's.
    """

    def __init__(
        self, app: Flask, feed: Feed, seat: Seat, *, last_id: str | None, view: View | None, close_slow: bool
    ) -> None:
        self._app, self._feed, self._seat, self._view, self._close_slow = app, feed, seat, view, close_slow
        self._opening = feed.open(seat, last_id)
        self._had = None if last_id is None else sse.parse_id(last_id)
        #: Behind what it read, and what its browser knows of that.
        self._position = self._told = self._opening.position
        self._ended = False

    def opening(self) -> bytes:
        """What it waits before it comes back, where it is, and what it lacks."""
        position, lost, status, present = self._opening
        pieces = [sse.retry(RETRY_MS), sse.mark(position)]
        if lost:
            pieces.append(self._gap("resume", None if self._had is None else self._had.ms))
        if status is not None:
            pieces.append(status)
        if present is not None:
            piece = self._render(present, numbered=False)
            self._ended = piece is None
            pieces.append(piece if piece is not None else self._gap("view", present.at, certain=True))
        return b"".join(pieces)

    def take(self) -> bytes | None:
        """What the feed told since, as far as the view leaves any of it."""
        if self._ended:
            return None
        while True:
            over = self._feed.over
            entries, lost = self._feed.after(self._position)
            data = self._render_all(entries, lost)
            if data is None or (over and not entries and not data):
                return None
            if data or not entries or self._seat.gone:
                return data

    def _render_all(self, entries: list[Entry], lost: Position | None) -> bytes | None:
        """What the browser is sent of a piece of the feed; None when its stream is to end at once."""
        before = self._position
        pieces = []
        if lost is not None:
            if self._close_slow:
                return None
            self._position = self._told = lost
            pieces.append(self._gap("slow", before.ms, certain=True, numbered=True))
        for entry in entries:
            self._position = entry.position
            piece = self._render(entry)
            if piece is None:
                self._ended, self._told = True, entry.position
                pieces.append(self._gap("view", entry.at, certain=True, numbered=True))
                break
            pieces.append(piece)
        return b"".join(pieces)

    def beat(self) -> bytes:
        """A comment; or the id of what the view left out, so that the browser need not be told of it twice."""
        if self._position == self._told:
            return sse.HEARTBEAT
        self._told = self._position
        return sse.mark(self._position)

    def due(self) -> float:
        """Never: the feed wakes it."""
        return float("inf")

    def _render(self, entry: Entry, *, numbered: bool = True) -> bytes | None:
        """What the browser is sent of an entry; None when the view failed."""
        event, position = entry.event, entry.position if numbered else None
        if event is None or (self._view is None and numbered):
            self._told = entry.position
            return entry.frame
        name, content = sse.content_of(event)
        try:
            value: Any = event
            if self._view is not None:
                with self._app.app_context():
                    value = self._view(event)
            if value is None:
                return b""
            default = getattr(self._app.json, "default", None)
            data = sse.encode(content, ordered=True) if value is event else sse.encode(value, default=default)
        except Exception as error:  # the view's, or what it returned has no JSON form
            self._failed(error, event)
            return None
        self._told = entry.position if numbered else self._told
        return sse.frame(name, data, position)

    def _failed(self, error: Exception, event: Event) -> None:
        words = "rtpool: the view %r of a stream of %r failed; the stream ends"
        self._app.logger.error(words, self._view, self._feed.wanted.topic, exc_info=error)
        with self._app.app_context():
            callback_failed.send(self._app, exception=error, callback=self._view, event=event)

    def _gap(self, cause: str, since_ms: int | None, *, certain: bool = False, numbered: bool = False) -> bytes:
        now = datetime.now(timezone.utc)
        since = now if since_ms is None else min(now, _moment(since_ms, now))
        name, content = sse.content_of(Gap(self._feed.wanted.topic, cause, since, now, certain))
        return sse.frame(name, sse.encode(content, ordered=True), self._position if numbered else None)


def _moment(ms: int, otherwise: datetime) -> datetime:
    try:
        return datetime.fromtimestamp(ms / 1000, timezone.utc)
    except (OverflowError, OSError, ValueError):  # a number that somebody thought of
        return otherwise


class Snapshots:
    """
    What is made anew at an interval, once for all who look, on the thread of one of them.

    Args:
        app: in whose context it is made.
        name: the event's type.
        make: returns a JSON value.
        every: seconds.
        clock: monotonic seconds.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(
        self, app: Flask, name: str, make: Callable[[], Any], every: float, clock: Callable[[], float]
    ) -> None:
        self._app, self._name, self._make, self._every, self._clock = app, name, make, every, clock
        #: Guards: all below.
        self._lock = Lock()
        self._seats: dict[Seat, None] = {}
        self._frame = b""
        self._number = 0
        self._making = False
        self._due = clock()

    def open(self, seat: Seat) -> None:
        """Look."""
        with self._lock:
            self._seats[seat] = None

    def close(self, seat: Seat) -> None:
        """Look no more. Idempotent."""
        with self._lock:
            self._seats.pop(seat, None)

    over = homeless = False

    def leave(self) -> None:
        """There is nothing to end."""

    def inherit(self) -> None:
        """In a forked child, where nobody looks."""

    @property
    def due(self) -> float:
        """When the next is to be made; while one is being made never, for who makes it wakes all."""
        with self._lock:
            return float("inf") if self._making else self._due

    def newest(self, had: int) -> tuple[int, bytes]:
        """
        The newest one's number and frame, made now if it is time and nobody else is about it; nothing if it is `had`.

        Raises:
            Exception: what `make` raised.
        """
        now = self._clock()
        with self._lock:
            mine = not self._making and now >= self._due
            if mine:
                self._making = True
        if mine:
            self._renew()
        with self._lock:
            return self._number, b"" if self._number == had else self._frame

    def _renew(self) -> None:
        frame = None
        try:
            with self._app.app_context():
                frame = sse.frame(
                    self._name, sse.encode(self._make(), default=getattr(self._app.json, "default", None))
                )
        finally:
            due = self._clock() + self._every
            with self._lock:
                self._making, self._due = False, due
                if frame is not None:
                    self._frame = frame
                    self._number += 1
                seats = list(self._seats)
            for seat in seats:
                seat.woken.set()


class SnapshotReader:
    """
    Shows snapshots to one browser. Thread-safety: none; it is its browser's thread's.
    """

    def __init__(self, app: Flask, snapshots: Snapshots, seat: Seat) -> None:
        self._app, self._snapshots, self._number = app, snapshots, 0
        snapshots.open(seat)

    def opening(self) -> bytes:
        """What it waits before it comes back."""
        return sse.retry(RETRY_MS)

    def take(self) -> bytes | None:
        """The newest, if it is new to this browser."""
        try:
            self._number, frame = self._snapshots.newest(self._number)
        except Exception:  # user code's
            self._app.logger.exception("rtpool: a snapshot could not be made; a stream that shows it ends")
            return None
        return frame

    def beat(self) -> bytes:
        """A comment."""
        return sse.HEARTBEAT

    def due(self) -> float:
        """When the next one is."""
        return self._snapshots.due
