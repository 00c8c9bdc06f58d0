"""
What all faults are.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, ClassVar

import attrs

from rtpool.testing.faults.moments import Moment, Now, Occasion, Opening, Receiving, Sending

if TYPE_CHECKING:
    from rtpool.testing.faults.injection import Deed, Hit, Injection

__all__ = ["ConnectionFault", "FROM_OPENING", "Fault", "Frames"]

#: What is queued for a connection: frames, and what is done in their midst.
Frames = list["str | bytes | Deed"]

#: The moments at which there is a WebSocket.
FROM_OPENING: tuple[type[Moment], ...] = (Now, Opening, Receiving, Sending)


@attrs.frozen
class Fault:
    """What all faults are; immutable, so that one may be injected many times."""

    #: Where it can strike; the first is where it does when nothing else is said.
    moments: ClassVar[tuple[type[Moment], ...]] = ()

    def natural(self) -> Moment:
        """The moment it strikes at when none is given."""
        return self.moments[0]()

    def fits(self, occasion: Occasion) -> bool:
        """Whether there is anything to strike at; where there is not, nothing is counted."""
        return True

    def begin(self, injection: Injection) -> None:
        """Put it on its way; on the thread of `RealtimeServer.inject`."""
        server, at_once = injection.server, isinstance(injection.on, Now)
        server.call(lambda: server.injections.now(injection) if at_once else server.injections.add(injection))

    def end(self, injection: Injection) -> None:
        """Take it back; on the thread of `Injection.undo`."""
        injection.server.call(injection.finish)

    def strike(self, hit: Hit) -> object:
        """Do it, at any moment but `Sending`; returns what that moment has to know. On the server's loop."""
        raise NotImplementedError

    def alter(self, hit: Hit, items: Frames) -> Frames:
        """What is queued in place of a frame. On the server's loop."""
        raise NotImplementedError


@attrs.frozen
class ConnectionFault(Fault):
    """Befalls a connection as a whole, in front of the frame it strikes at."""

    def apply(self, hit: Hit) -> Awaitable[None] | None:
        """Do it to the connection of the occasion."""
        raise NotImplementedError

    def strike(self, hit: Hit) -> object:
        """Do it at once."""
        waiting = self.apply(hit)
        if waiting is not None:
            hit.server.spawn(_finished(waiting))
        return None

    def alter(self, hit: Hit, items: Frames) -> Frames:
        """Do it when the frame's turn has come."""
        return [lambda: self.apply(hit), *items]


async def _finished(waiting: Awaitable[None]) -> None:
    await waiting
