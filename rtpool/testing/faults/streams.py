"""
Faults of the stream below WebSocket framing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from rtpool.testing.faults.base import FROM_OPENING, ConnectionFault
from rtpool.testing.faults.injection import Hit
from rtpool.testing.faults.moments import Accepting, Now, Sending, Upgrading

if TYPE_CHECKING:
    from rtpool.testing.stream import Stream

__all__ = ["Dribble", "Finish", "Freeze", "Raw", "Reset"]


@attrs.frozen
class _OfStream(ConnectionFault):
    moments = (Now, Accepting, Upgrading, *FROM_OPENING[1:])


@attrs.frozen
class Reset(_OfStream):
    """
    The TCP connection is reset: the client reads an error (``ECONNRESET``), no close frame, no end of the stream.

    A server that was killed, a NAT or load balancer that forgot the connection.

    Args:
        after: bytes the client still gets. What it does not read in time may be lost with the reset, as always in TCP.
    """

    after: int = 0

    def apply(self, hit: Hit) -> None:
        """Cut, now or later."""
        stream = hit.occasion.stream

        def cut() -> None:
            stream.valve.end()
            hit.server.spawn(_flush(stream, stream.reset, hit))

        _after(self.after, hit, cut)


@attrs.frozen
class Finish(_OfStream):
    """
    The server's half of the TCP connection ends (FIN): the client reads the end of the stream, in the middle of
    whatever there is, without a close frame and without TLS's goodbye. What it sends is still taken.

    A process that exited, a proxy that closes after its own time-out.

    Args:
        after: bytes the client still gets.
    """

    after: int = 0

    def apply(self, hit: Hit) -> None:
        """Cut, now or later."""
        stream = hit.occasion.stream

        def cut() -> None:
            stream.valve.end()
            hit.server.spawn(_flush(stream, stream.finish, hit))

        _after(self.after, hit, cut)


def _after(count: int, hit: Hit, then: Callable[[], None]) -> None:
    # The frame a fault strikes at comes behind what waits; at any other moment the client's next byte is the first.
    hit.occasion.stream.valve.after(count, then, behind=hit.occasion.moment is Sending)


async def _flush(stream: Stream, then: Callable[[], None], hit: Hit) -> None:
    """Cut once what went out before is the system's."""
    await stream.flushed()
    then()
    hit.done()


@attrs.frozen
class Freeze(_OfStream):
    """
    Nothing is read and nothing written any more; the connection stays open. The client sees silence. Undone by a thaw:
    what waited goes out in order.

    A half-open connection: a suspended machine, a pulled cable, a hung process.

    Args:
        after: bytes the client still gets.
    """

    after: int = 0

    def apply(self, hit: Hit) -> None:
        """Shut, now or later."""
        stream = hit.occasion.stream

        def shut() -> None:
            stream.valve.shut(hit)
            stream.hold(hit)
            hit.done()

        def thaw() -> None:
            if not stream.gone():
                stream.valve.open(hit)
                stream.release(hit)

        hit.injection.when_undone(thaw)
        _after(self.after, hit, shut)


@attrs.frozen
class Dribble(_OfStream):
    """
    Everything comes in small pieces, each in a packet of its own, until it is undone.

    A very slow or lossy link; the worst case for a client that counts on whole frames.

    Args:
        size: bytes of a piece.
        every: seconds from one to the next; 0 is as fast as it goes.
    """

    size: int = 1
    every: float = 0.0

    def apply(self, hit: Hit) -> None:
        """Let it drip."""
        stream = hit.occasion.stream
        stream.valve.drip(self.size, self.every)
        hit.injection.when_undone(lambda: None if stream.gone() else stream.valve.flow())
        hit.done()


@attrs.frozen
class Raw(_OfStream):
    """
    Any bytes, below WebSocket framing, in front of the frame it strikes at; at `Accepting` and `Upgrading` in front of
    the upgrade's answer.

    Args:
        data: what to put on the stream.
    """

    data: bytes = b""

    def bytes(self) -> bytes:
        """What is put on the stream."""
        return self.data

    def apply(self, hit: Hit) -> None:
        """Put it on the stream."""
        hit.occasion.stream.write_raw(self.bytes())
        hit.done()
