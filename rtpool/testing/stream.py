"""
One socket below the messages: when it was last heard, who holds its reading back, and when it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection as WebSocket

__all__ = ["Stream", "stream_class"]


class Stream(WebSocket):
    """
    A WebSocket of the server that knows what Realtime's own socket process knows.

    Attributes:
        heard_at: loop time of the last byte from the client; any byte counts as life, pings included.
        on_end: called once when the TCP connection is gone.

    Thread-safety: confined to the server's loop.
    """

    heard_at = 0.0
    on_end: Callable[[], None] | None = None
    streams: set[Stream]  # all of a listener, silent and shaking ones included; given by `stream_class`

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP (and TLS) are up."""
        self._holds: set[str] = set()
        self._gone = asyncio.Event()
        self.heard_at = self.loop.time()
        self.streams.add(self)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self.heard_at = self.loop.time()
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone, whoever ended it."""
        self._gone.set()
        self.streams.discard(self)
        super().connection_lost(exc)
        if self.on_end is not None:
            self.on_end()

    def gone(self) -> bool:
        """Whether the TCP connection is gone."""
        return self._gone.is_set()

    async def wait_ended(self) -> None:
        """Until the TCP connection is gone."""
        await self._gone.wait()

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
            self.heard_at = self.loop.time()
            self.transport.resume_reading()


def stream_class(streams: set[Stream]) -> Any:
    """A class whose instances enter themselves in `streams` while they live."""
    return type("Stream", (Stream,), {"streams": streams})
