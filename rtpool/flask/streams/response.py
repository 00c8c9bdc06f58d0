"""
A stream as a WSGI response: waits on its server's thread for what there is to send, and ends with its browser.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import flask

from rtpool.engine.patches import is_patched
from rtpool.flask.streams.readers import Reader
from rtpool.flask.streams.seat import Seat

if TYPE_CHECKING:
    from rtpool.flask.streams.streams import Streams

__all__ = ["EventStream", "Pieces", "refusal", "socket_of"]

#: Bytes handed to the server at once: what a browser has to take within `RTPOOL_STREAM_STALL`.
HAND_BYTES = 64 * 1024
#: Of RTPOOL_STREAM_MAX_AGE: by so much streams end sooner, each by its own part, lest all browsers come back at once.
EARLIER = 0.1
#: The most that the system takes for a time in milliseconds.
MAX_MS = 2**31 - 1
#: Seconds a refused browser is told to wait.
RETRY_AFTER = 5


class EventStream(flask.Response):
    """A response that never ends by itself: nothing may try to have it whole."""

    default_mimetype = "text/event-stream"
    implicit_sequence_conversion = False


class Pieces:
    """
    The body of one stream.

    Args:
        streams: whose seat it is.
        seat: given back when this is closed, at its end or dropped.
        reader: what it sends.

    Thread-safety: none, but for `close`; it is its server's thread's.
    """

    def __init__(self, streams: Streams, seat: Seat, reader: Reader) -> None:
        settings = streams.state.settings
        self._streams, self._seat, self._reader = streams, seat, reader
        self._clock = streams.clock
        self._heartbeat = settings.stream_heartbeat
        self._until = self._clock() + settings.stream_max_age * (1 - EARLIER * random.random())
        self._beat_at = self._clock() + self._heartbeat
        self._rest: bytes | memoryview = reader.opening()
        self._dropped = weakref.finalize(self, streams.forget, seat)
        self._dropped.atexit = False
        _give_up_on_silence(seat.sock, settings.stream_stall)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        seat = self._seat
        seat.handed, seat.thread = None, threading.get_ident()
        while True:
            if seat.process != os.getpid():
                _end_in_child()
            seat.woken.clear()
            now = self._clock()
            if seat.gone or now >= self._until:
                break
            data: bytes | memoryview | None = self._rest or self._reader.take()
            if data is None:
                break
            if not data and now >= self._beat_at:
                data = self._reader.beat()
            if data:
                self._rest = memoryview(data)[HAND_BYTES:]
                self._beat_at = now + self._heartbeat
                seat.handed = now
                return bytes(data[:HAND_BYTES])
            seat.woken.wait(max(0.0, min(self._beat_at, self._until, self._reader.due()) - self._clock()))
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Give everything back. Idempotent."""
        self._dropped.detach()
        self._seat.gone = True
        self._streams.leave(self._seat)

    def respond(self) -> EventStream:
        """The response that sends this."""
        return EventStream(self, headers=HEADERS)


#: No cache keeps it, no proxy that heeds this waits for more of it, nothing is taken for what it is not.
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}


def refusal(status: int, words: str) -> flask.Response:
    """A response for a browser that gets no stream."""
    response = flask.Response(words, status, {**HEADERS, "Content-Type": "text/plain; charset=utf-8"})
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


def socket_of(environ: Mapping[str, Any]) -> socket.socket | None:
    """The browser's connection, where the server shows it: gunicorn and Flask's own do."""
    for name in ("gunicorn.socket", "werkzeug.socket"):
        sock = environ.get(name)
        if isinstance(sock, socket.socket):
            return sock
    return None


def _give_up_on_silence(sock: socket.socket | None, seconds: float) -> None:
    """
    Have the system end a connection whose other side answers nothing for twice as long: one that lost its network. Who
    answers, and takes nothing, is cut off before that by the keeper, which says so.
    """
    option: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
    if sock is not None and option is not None:
        with contextlib.suppress(OSError):  # no TCP
            sock.setsockopt(socket.IPPROTO_TCP, option, min(max(1, int(seconds * 2000)), MAX_MS))


def _end_in_child() -> NoReturn:
    """
    In a forked child: send nothing to the parent's browser, not even an end. Every greenlet of the parent is there as
    well, and the server's part of one that ended might shut the connection down, which is the parent's: it ends with
    the child.
    """
    if is_patched():
        threading.Event().wait()
    raise StopIteration
