"""
What befalls the whole server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from rtpool.testing.faults.base import Fault
from rtpool.testing.faults.injection import Injection, Strike
from rtpool.testing.faults.moments import Moment, Now
from rtpool.testing.faults.streams import Freeze

if TYPE_CHECKING:
    from rtpool.testing.faults.port import Port
    from rtpool.testing.server import RealtimeServer

__all__ = ["BlackHole", "Restart", "SlowTls"]


@attrs.frozen
class _ServerFault(Fault):
    moments: ClassVar[tuple[type[Moment], ...]] = (Now,)


def _reopen(server: RealtimeServer, port: Port) -> None:
    if port.is_open:  # else the server has ended meanwhile, and there is no loop to do it on
        server.spawn(port.open())


@attrs.frozen
class SlowTls(_ServerFault):
    """
    New connections are made and then meet silence: no TLS handshake, or without TLS no answer to the upgrade. It
    strikes when the first waits. Undone, those that still wait are served. Open sockets live on.

    A server or proxy without a free process; a handshake over a link that loses nearly everything.
    """

    def begin(self, injection: Injection) -> None:
        """Go deaf."""
        server = injection.server

        async def deafen() -> None:
            port = server.listening_port
            port.deafen(lambda: injection.record(Strike()))
            injection.when_undone(lambda: _reopen(server, port))

        server.run(deafen)


@attrs.frozen
class BlackHole(_ServerFault):
    """
    Packets to the server are dropped: a new connection is neither made nor refused, and open sockets freeze. Undone,
    the sockets thaw, and the system's next attempt of a waiting connection succeeds (on Linux after 1, 3, 7 s).

    A firewall, a pulled cable, a route that is gone. For Linux: other systems may refuse instead.

    Args:
        sockets: False leaves the open sockets alone.
    """

    sockets: bool = True

    def begin(self, injection: Injection) -> None:
        """Fall in."""
        server = injection.server

        async def fall() -> None:
            port = server.listening_port
            port.deafen(lambda: None)
            await port.drop_packets()

            injection.when_undone(port.keep_packets)
            injection.when_undone(lambda: _reopen(server, port))

        server.run(fall)
        if self.sockets:
            frozen = server.inject(Freeze())
            injection.when_undone(frozen.finish)
        server.call(lambda: injection.record(Strike()))


@attrs.frozen
class Restart(_ServerFault):
    """
    The server ends, every client is cut off, and new connections are refused (``ECONNREFUSED``). Undone, it listens on
    the same port again and knows nobody. Not from a hook.

    A deployment or a crash, with a supervisor that starts it again.
    """

    def begin(self, injection: Injection) -> None:
        """End the server."""
        injection.server.close()
        injection.record(Strike())

    def end(self, injection: Injection) -> None:
        """Start it again."""
        injection.server.start()
        super().end(injection)
