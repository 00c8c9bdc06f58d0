"""
One connection below the messages: WebSocket or plain HTTP, when it was last heard, who holds its reading back, and when
it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection as WebSocket

from rtpool.testing.http import Answer, HttpExchange, wants_websocket

__all__ = ["Stream", "stream_class"]


class Stream(WebSocket):
    """
    A WebSocket of the server that knows what Realtime's own socket process knows.

    Attributes:
        heard_at: time of the last byte from the client by the server's clock; any byte counts as life, pings too.
        on_end: called once when the TCP connection is gone.

    Thread-safety: confined to the server's loop.
    """

    heard_at = 0.0
    on_end: Callable[[], None] | None = None
    streams: set[Stream]  # all of a listener, silent and shaking ones included; given by `stream_class`
    answer: Answer  # to what is no upgrade; given by `stream_class`
    now: Callable[[], float]  # the server's clock; given by `stream_class`
    _first: bytes | None = b""  # what came before it was told which it is
    _http: HttpExchange | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP (and TLS) are up."""
        self._holds: set[str] = set()
        self._gone = asyncio.Event()
        self._told = asyncio.Event()
        self.heard_at = type(self).now()
        self.streams.add(self)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self.heard_at = type(self).now()
        if self._http is not None:
            self._http.feed(data)
            return
        if self._first is not None:
            data = self._first + data
            upgrade = wants_websocket(data)
            self._first = data if upgrade is None else None
            if upgrade is None:
                return
            if not upgrade:
                self._http = HttpExchange(self.transport, type(self).answer)
            self._told.set()
            if self._http is not None:
                self._http.feed(data)
                return
        super().data_received(data)

    async def handshake(self, *args: Any, **kwargs: Any) -> None:
        """The opening handshake; for plain HTTP none, and the connection's end."""
        ended = asyncio.ensure_future(self._gone.wait())
        told = asyncio.ensure_future(self._told.wait())
        try:
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
            if self._http is not None:
                await ended
        finally:
            ended.cancel()
            told.cancel()
        if self._http is None and not self.gone():
            await super().handshake(*args, **kwargs)

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone, whoever ended it."""
        self._gone.set()
        self.streams.discard(self)
        if self._http is not None:
            self._http.end()
        super().connection_lost(exc)
        if self.on_end is not None:
            self.on_end()

    def gone(self) -> bool:
        """Whether the TCP connection is gone."""
        return self._gone.is_set()

    @property
    def ended(self) -> asyncio.Event:
        """Set when the TCP connection is gone."""
        return self._gone

    def hold(self, reason: str) -> None:
        """Read nothing until every reason has been released."""
        if self.gone():
            return
        self._holds.add(reason)
        self.transport.pause_reading()

    def release(self, reason: str) -> None:
        """Take a reason back; the client's silence meanwhile was ours."""
        self._holds.discard(reason)
        if not self.gone() and not self._holds:
            self.heard_at = type(self).now()
            self.transport.resume_reading()


def stream_class(streams: set[Stream], answer: Answer, now: Callable[[], float]) -> Any:
    """A class whose instances enter themselves in `streams` while they live, and `answer` what is no upgrade."""
    return type("Stream", (Stream,), {"streams": streams, "answer": staticmethod(answer), "now": staticmethod(now)})
