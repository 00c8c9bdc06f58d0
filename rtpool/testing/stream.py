"""
One connection below the messages: WebSocket or plain HTTP, when it was last heard, who holds its reading back, and when
it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from websockets.asyncio.server import ServerConnection as WebSocket

from rtpool.testing.faults.valve import Valve
from rtpool.testing.http import Answer, HttpExchange, wants_websocket

if TYPE_CHECKING:
    from rtpool.testing.server import RealtimeServer

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
    full: Callable[[], bool]  # whether a new connection is one too many; given by `stream_class`
    streams: set[Stream]  # all of a listener, silent and shaking ones included; given by `stream_class`
    answer: Answer  # to what is no upgrade; given by `stream_class`
    of: RealtimeServer  # given by `stream_class`
    _first: bytes | None = b""  # what came before it was told which it is
    _http: HttpExchange | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP (and TLS) are up."""
        self._holds: set[object] = set()
        self._gone = asyncio.Event()
        self._told = asyncio.Event()
        self.heard_at = self.of.clock.now()
        if any(stop.is_set() for stop in self.of.stopping) or type(self).full():
            super().connection_made(transport)
            self.transport.abort()
            return
        self.streams.add(self)
        super().connection_made(transport)
        self.of.injections.accepting(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self.heard_at = self.of.clock.now()
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

    def hold(self, reason: object) -> None:
        """Read nothing until every reason has been released."""
        if self.gone():
            return
        self._holds.add(reason)
        self.transport.pause_reading()

    def write_raw(self, data: bytes) -> None:
        """Put bytes on the stream as they are; nothing once its end was sent, whoever has not read it yet."""
        with contextlib.suppress(RuntimeError):  # asyncio's word for that
            self.transport.write(data)

    def release(self, reason: object) -> None:
        """Take a reason back; the client's silence meanwhile was ours."""
        self._holds.discard(reason)
        if not self.gone() and not self._holds:
            self.heard_at = self.of.clock.now()
            self.transport.resume_reading()

    @property
    def valve(self) -> Valve:
        """What a fault turns to change how the stream flows; put in when first asked for."""
        if not isinstance(self.transport, Valve):
            self.transport = cast(asyncio.Transport, Valve(self.transport, self.of.clock))
        return cast(Valve, self.transport)

    async def flushed(self) -> None:
        """Return when the system has taken all that was written, or the connection is gone."""
        if not self.gone() and self.transport.get_write_buffer_size() > 0:
            self.transport.set_write_buffer_limits(0)
            await self.drain()

    def reset(self) -> None:
        """Reset the TCP connection (RST)."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def finish(self) -> None:
        """End our half of the TCP connection (FIN), below TLS."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.shutdown(socket.SHUT_WR)


def stream_class(
    server: RealtimeServer, streams: set[Stream], full: Callable[[], bool], answer: Answer
) -> type[Stream]:
    """A class whose instances enter themselves in `streams` while they live, and `answer` what is no upgrade."""
    given = {"full": staticmethod(full), "answer": staticmethod(answer), "of": server}
    return type("Stream", (Stream,), {"streams": streams, **given})
