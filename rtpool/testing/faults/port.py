"""
The port a server listens on, and how it goes deaf: connections wait unanswered, or their packets are dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator

from websockets.asyncio.server import Server

__all__ = ["Port"]

#: Connections the system keeps for a server that does not accept them.
BACKLOG = 100

#: Seconds after which a connection to a loopback port that is not there yet is one whose packets are dropped.
DROPPED = 0.1

#: Connections that fill a port without a backlog; systems differ by a few.
FILLERS = 16

#: Seconds for which connections that cannot be ended are waited for.
SHAKING = 0.5


class Port:
    """
    Listens, and can stop accepting without closing anything.

    Args:
        serve: makes a server that accepts from a listening socket.
        host, port: where; port 0 takes a free one.

    Thread-safety: confined to the server's loop.
    """

    def __init__(self, serve: Callable[[socket.socket], Awaitable[Server]], host: str, port: int) -> None:
        self._serve = serve
        self._socket = _listener(host, port)
        self.number: int = self._socket.getsockname()[1]
        self._servers: list[Server] = []
        self._reasons = 0  # why it is deaf
        self._fillers: list[socket.socket] = []
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed; it may be deaf."""
        return not self._closed

    def descriptors(self) -> Iterator[int]:
        """Of all that hold the port."""
        for sock in (self._socket, *self._fillers):
            yield sock.fileno()
        for server in self._servers:
            for listener in server.sockets:
                yield listener.fileno()

    async def open(self) -> None:
        """Accept; also again after `deafen`, once for each. Nothing when closed."""
        if self._closed:
            return
        self._reasons = max(0, self._reasons - 1)
        if self._reasons == 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            # Each server closes the descriptor it was given; all of them are one listening port.
            self._servers.append(await self._serve(self._socket.dup()))

    def deafen(self, on_caller: Callable[[], None]) -> None:
        """Accept nothing: the system completes TCP connections, and nobody answers. Tells of the first that waits."""
        loop = asyncio.get_running_loop()
        self._reasons += 1
        if self._reasons == 1:
            self._stop_accepting()

        def caller() -> None:
            loop.remove_reader(self._socket)
            on_caller()

        loop.add_reader(self._socket, caller)

    def _stop_accepting(self) -> None:
        # Now: asyncio's own close takes a turn of the loop, and forgets to close what it accepts in it.
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        for listener in self._servers[-1].sockets if self._servers else ():
            loop.remove_reader(listener.fileno())

    async def drop_packets(self) -> None:
        """Fill what the system would keep for a deaf port; after this it drops what else wants to connect."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        self._socket.listen(0)
        while len(self._fillers) < FILLERS:
            filler = socket.socket(self._socket.family)
            self._fillers.append(filler)
            filler.setblocking(False)
            try:
                await asyncio.wait_for(loop.sock_connect(filler, self._socket.getsockname()), DROPPED)
            except (asyncio.TimeoutError, OSError):
                return  # this one was dropped

    def keep_packets(self) -> None:
        """Undo `drop_packets`; the port stays deaf until `open`. Nothing when closed."""
        if self._closed:
            return
        ours = {filler.getsockname() for filler in self._fillers}
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        with contextlib.suppress(OSError):  # nothing waits any more
            while True:
                waiting, peer = self._socket.accept()
                waiting.close()
                if peer not in ours:
                    break
        self._socket.listen(BACKLOG)

    def close(self) -> None:
        """Accept no more, for ever; connections live on."""
        self._closed = True
        self._stop_accepting()
        for filler in self._fillers:
            filler.close()
        for server in self._servers:
            server.close(close_connections=False)
        self._socket.close()

    async def wait_closed(self) -> None:
        """End those amid a TLS handshake, which nobody else knows, and wait for the end of every connection."""
        for server in self._servers:
            if sys.version_info >= (3, 13):
                while server.is_serving():  # it takes a turn of the loop, in which more may have come
                    await asyncio.sleep(0)
                server.server.abort_clients()
                await server.wait_closed()
            else:  # 3.12 waits for them without a way to end them, but for the end of the loop
                await asyncio.wait({asyncio.ensure_future(server.wait_closed())}, timeout=SHAKING)


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, as `socket.create_server` does not: only then asyncio turns Nagle's algorithm off, and
    # with that on a reset takes along what was written before it.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
