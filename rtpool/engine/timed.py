"""
A connected socket under one deadline, and HTTP/1.1 over it: what the WebSocket upgrade, a proxy's CONNECT and a REST
call have in common.
"""

from __future__ import annotations

import contextlib
import io
import socket
import time
from collections.abc import Container, Iterable
from datetime import datetime, timezone
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple

from rtpool.errors import ProtocolError

__all__ = [
    "Answer",
    "HEAD_LIMIT",
    "MAX_RETRY_AFTER",
    "TimedSocket",
    "http_date",
    "read_answer",
    "request_head",
    "seconds_left",
]

#: Bytes an answer's head may have; servers and proxies send well under 8 KiB.
HEAD_LIMIT = 64 * 1024
#: Seconds that a ``Retry-After`` may hold us back. An attempt an hour is no load to anybody; a mistyped or malicious
#: value must not silence a client for longer.
MAX_RETRY_AFTER = 3_600.0
#: Bytes offered to the kernel at once, so that the deadline is looked at in between.
SEND_SIZE = 256 * 1024


def seconds_left(deadline: float) -> float:
    """
    Seconds until `deadline`, monotonic; more than 0.

    Raises:
        TimeoutError: it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time allowed is over")
    return left


class TimedSocket(io.RawIOBase):
    """
    A connected socket that ends all its reads and writes together at one deadline, and reads no more than it may.

    A socket's own time-out starts anew with every byte, so a peer that dribbles would hold a caller for ever. It reads
    no byte that it was not asked for, so the socket can be handed on at any moment. Closing it leaves the socket open.

    Args:
        sock: connected; its time-out is changed.
        deadline: monotonic.
        limit: bytes that may be read.

    Thread-safety: none.
    """

    def __init__(self, sock: socket.socket, deadline: float, limit: int) -> None:
        self._sock = sock
        self._deadline = deadline
        self._left = self._limit = limit

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """
        Fill `buffer` with what one read of the socket gives; 0 is the end of the stream.

        Raises:
            TimeoutError: the deadline has passed.
            ProtocolError: the limit is used up.
        """
        if not self._left:
            raise ProtocolError(f"the answer has more than {self._limit} bytes")
        self._sock.settimeout(seconds_left(self._deadline))
        count = self._sock.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count

    def read(self, size: int = -1) -> bytes:
        """All of `size` bytes, fewer only at the end of the stream: what http.client expects of a file."""
        data = bytearray()
        while size < 0 or len(data) < size:
            part = super().read(4096 if size < 0 else min(size - len(data), 65_536))
            if not part:
                break
            data += part
        return bytes(data)

    def recv(self, size: int) -> bytes:
        """What one read of the socket gives, at most `size` bytes."""
        return super().read(size) or b""

    def sendall(self, data: Any) -> None:
        """
        Hand all of `data` to the kernel.

        Raises:
            TimeoutError: the deadline has passed.
        """
        view = memoryview(data)
        while view:
            self._sock.settimeout(seconds_left(self._deadline))
            view = view[self._sock.send(view[:SEND_SIZE]) :]

    def makefile(self, mode: str = "rb") -> TimedSocket:
        """Itself, as the file http.client reads."""
        return self


def request_head(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """The head of an HTTP/1.1 request. Names and values are known to have no line breaks."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("utf-8")


class Answer(NamedTuple):
    """
    An HTTP answer.

    Attributes:
        status: of HTTP.
        reason: the words beside it.
        headers: names in any case.
        body: its start, where it was read at all.
    """

    status: int
    reason: str
    headers: Message
    body: bytes = b""

    @property
    def retry_after(self) -> float | None:
        """
        Seconds its header ``Retry-After`` asks to wait (RFC 9110 §10.2.3), 0 to `MAX_RETRY_AFTER`; None without one
        that can be read.
        """
        value = (self.headers["retry-after"] or "").strip()
        if value.isascii() and value.isdigit():
            return min(float(value), MAX_RETRY_AFTER)
        then = http_date(value)
        if then is None:
            return None
        # A date is the server's, and told by its own clock; ours may be wrong.
        now = http_date(self.headers["date"]) or datetime.now(timezone.utc)
        return min(max((then - now).total_seconds(), 0.0), MAX_RETRY_AFTER)


def http_date(text: str | None) -> datetime | None:
    """The instant that a header names in any of HTTP's three formats (RFC 9110 §5.6.7); None when it names none."""
    try:
        date = parsedate_to_datetime(text or "")
        return date.astimezone(timezone.utc) if date.tzinfo else date.replace(tzinfo=timezone.utc)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def read_answer(stream: TimedSocket, method: str, *, expected: Container[int], limit: int) -> Answer:
    """
    Read the answer to a request of `method`. Nothing is read from `stream` afterwards.

    Args:
        expected: statuses with nothing to say; the body of any other is read, up to `limit` bytes. What came of it is
            enough where it breaks off or takes too long: the status is known, and says more.

    Raises:
        OSError, ProtocolError, http.client.HTTPException, ValueError: there is none that can be read.
    """
    with contextlib.closing(HTTPResponse(stream, method=method)) as answer:  # type: ignore[arg-type]
        answer.begin()
        body = b""
        if answer.status not in expected:
            try:
                body = answer.read(limit)
            except (OSError, HTTPException, ProtocolError, ValueError) as error:
                body = getattr(error, "partial", b"")
        return Answer(answer.status, answer.reason, answer.msg, body)
