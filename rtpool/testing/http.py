"""
Plain HTTP on the server's port: one request a connection, read by h11, answered by `rtpool.testing.rest`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from urllib.parse import parse_qs, urlsplit

import h11

from rtpool.testing.records import Refusal, RestRequest

__all__ = ["HttpExchange", "wants_websocket"]

#: Bytes of a body; more is refused.
MAX_BODY = 8_000_000

#: Bytes a request's head may take before it is judged as it is.
MAX_HEAD = 65_536

#: Seconds a client that sends too much may go on before it is cut off.
LINGER = 5.0

_UPGRADE = re.compile(rb"\r\nupgrade:[ \t]*websocket", re.IGNORECASE)

Answer = Callable[[RestRequest], Awaitable[Refusal]]


def wants_websocket(data: bytes) -> bool | None:
    """Whether a connection's first bytes ask for a WebSocket; None when that is not told yet."""
    head, end, _ = data.partition(b"\r\n\r\n")
    if not end and len(data) < MAX_HEAD:
        first = data[:8]
        return None if any(first.startswith(m[: len(first)]) for m in _METHODS) else True
    return b" HTTP/" not in head or _UPGRADE.search(head) is not None


_METHODS = (b"GET ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"HEAD ", b"PATCH ")


class HttpExchange:
    """
    One request and its answer; the connection is closed afterwards.

    Args:
        transport: of the connection.
        answer: makes the answer.

    Thread-safety: confined to the server's loop.
    """

    def __init__(self, transport: asyncio.Transport, answer: Answer) -> None:
        self._transport, self._answer = transport, answer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._answering: asyncio.Future[None] | None = None
        self._gone = asyncio.Event()

    def feed(self, data: bytes) -> None:
        """Bytes came."""
        if self._answering is not None:
            return
        self._http.receive_data(data)
        try:
            while self._answering is None:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._continue()
                    return
                if isinstance(event, h11.Request):
                    self._head = event
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > MAX_BODY:
                        self._start(too_large=True)
                elif isinstance(event, h11.EndOfMessage):
                    self._start()
                else:
                    return
        except h11.RemoteProtocolError:
            self._transport.close()

    def end(self) -> None:
        """The connection is gone."""
        self._gone.set()
        if self._answering is not None:
            self._answering.cancel()

    def _continue(self) -> None:
        if self._http.they_are_waiting_for_100_continue:
            self._transport.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")

    def _start(self, *, too_large: bool = False) -> None:
        self._answering = asyncio.ensure_future(self._respond(too_large))

    async def _respond(self, too_large: bool) -> None:
        assert self._head is not None
        parts = urlsplit(self._head.target.decode("latin-1"))
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._head.headers}
        request = RestRequest(self._head.method.decode(), parts.path, query, headers, bytes(self._body), too_large)
        try:
            self._write(await self._answer(request))
            if too_large and self._transport.can_write_eof():
                # closing with unread bytes would reset the connection, and the answer be lost with it
                self._transport.write_eof()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._gone.wait(), LINGER)
        finally:
            self._transport.close()

    def _write(self, answer: Refusal) -> None:
        assert self._head is not None
        body = b"" if self._head.method == b"HEAD" else answer.body.encode()
        fields = {
            "date": formatdate(usegmt=True),
            "content-length": str(len(answer.body.encode())),
            "connection": "close",
            "cache-control": "max-age=0, private, must-revalidate",
            **{name.lower(): value for name, value in answer.headers.items()},
        }
        if answer.status == 204:
            del fields["content-length"]
        head = h11.Response(status_code=answer.status, headers=list(fields.items()))
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self._transport.write(self._http.send(event) or b"")
