"""
What a server decides against a client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs

from rtpool.testing.faults.base import FROM_OPENING, ConnectionFault, Fault
from rtpool.testing.faults.injection import Hit
from rtpool.testing.faults.moments import Moment, Now, Occasion, Receiving, Upgrading
from rtpool.testing.records import JoinRefusal, Refusal
from rtpool.testing.refusals import Join, System

__all__ = ["ExpireToken", "JoinStorm", "Refuse", "RefuseJoin"]


@attrs.frozen
class Refuse(Fault):
    """
    An upgrade is refused: the client reads an HTTP answer. Bad keys (401, 403), wrong addresses (404), limits (429),
    overload and deployments (502, 503, 504).

    Args:
        status: of HTTP.
        body: of the answer.
        headers: of the answer, ``Retry-After`` and the like.
        delay: seconds to hold it back; None is the server's own back-off.
    """

    status: int = 503
    body: str = ""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    delay: float | None = None
    moments = (Upgrading,)

    def strike(self, hit: Hit) -> object:
        """The answer."""
        hit.done()
        return Refusal(self.status, self.body, self.headers, self.delay)


@attrs.frozen
class _JoinFault(Fault):
    moments: ClassVar[tuple[type[Moment], ...]] = (Receiving,)

    def natural(self) -> Moment:
        """Any join."""
        return Receiving("phx_join")

    def fits(self, occasion: Occasion) -> bool:
        """Joins alone."""
        return occasion.event == "phx_join"


@attrs.frozen
class RefuseJoin(_JoinFault):
    """
    A join is refused. `rtpool.testing.refusals.Join` has every reason of a real server.

    Args:
        reason: as the reply has it.
        delay: seconds during which the socket is deaf and mute; None is the server's own back-off.
        close_code: with which the socket is closed after the reply; None leaves it open.
    """

    reason: str = "Unknown Error on Channel"
    delay: float | None = None
    close_code: int | None = None

    def strike(self, hit: Hit) -> object:
        """The refusal."""
        hit.done()
        return JoinRefusal(self.reason, self.delay, self.close_code)


@attrs.frozen
class JoinStorm(_JoinFault):
    """
    A join is refused because the project joins too fast, and its socket is closed with the server's `disconnect_code`,
    all its channels with it. What happens when many clients come back at once.

    `ServerOptions.max_joins_per_second` does the same by counting.
    """

    def strike(self, hit: Hit) -> object:
        """The refusal."""
        hit.done()
        return attrs.evolve(Join.TOO_MANY_JOINS(), close_code=hit.server.options.disconnect_code)


@attrs.frozen
class ExpireToken(ConnectionFault):
    """
    The token of a socket's channels expires: each is told so in a ``system`` message and closed; the socket stays.

    Args:
        topic: only that channel, with or without the prefix; None is the topic of the message it strikes at, and all of
            the socket's where there is none.
    """

    topic: str | None = None
    moments = FROM_OPENING

    def apply(self, hit: Hit) -> None:
        """End the channels."""
        connection, occasion = hit.occasion.connection, hit.occasion
        assert connection is not None
        topic = self.topic or occasion.topic or (occasion.moment is Now and getattr(hit.injection.on, "topic", None))
        for member in list(connection.members.values()):
            if not topic or topic in (member.topic, member.name):
                connection.shut_down(member, System.TOKEN_EXPIRED(seconds=0))
        hit.done()
