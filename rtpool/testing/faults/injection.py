"""
Faults on their way: what `RealtimeServer.inject` returns, and the server's list of what is still to strike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import attrs

from rtpool.testing.faults.moments import Accepting, Moment, Now, Occasion, Opening, Receiving, Sending, Upgrading
from rtpool.testing.records import JoinRefusal, Refusal, RequestInfo
from rtpool.testing.wire import ClientMessage, ServerMessage

if TYPE_CHECKING:
    from rtpool.testing.connection import ServerConnection
    from rtpool.testing.faults.base import Fault
    from rtpool.testing.server import RealtimeServer
    from rtpool.testing.stream import Stream

__all__ = ["Deed", "Hit", "Injection", "Injections", "SWALLOWED", "Strike"]

#: Something done when its turn among the frames of a connection has come.
Deed = Callable[[], "Awaitable[None] | None"]


class _Swallowed:
    """The outcome of a fault that keeps a message from the server."""


SWALLOWED = _Swallowed()


@attrs.frozen
class Strike:
    """
    A fault that struck.

    Attributes:
        connection_id: of the socket; None before its upgrade has been answered, and for what befalls the whole server.
        topic: of the message it struck, as users write it; None where there was none.
        event: of that message.
    """

    connection_id: int | None = None
    topic: str | None = None
    event: str | None = None


class Injection:
    """
    A fault that was injected: how often it struck, and how to take it back. Ends with its ``with`` block, if any.

    Attributes:
        fault: what was injected.
        on: when it strikes.
        times: how often at most; None is without end.

    Thread-safety: every method may be called from any thread, `wait` and `undo` not from a hook.
    """

    def __init__(self, server: RealtimeServer, fault: Fault, on: Moment, times: int | None) -> None:
        self.fault, self.on, self.times = fault, on, times
        self._server = server
        self._left = times
        self._to_skip = on.skip
        self._undoings: list[Callable[[], None]] = []
        self._struck: tuple[Strike, ...] = ()
        self.undone = asyncio.Event()

    @property
    def struck(self) -> tuple[Strike, ...]:
        """Each time it has struck, oldest first."""
        return self._struck

    @property
    def strikes(self) -> int:
        """How often it has struck."""
        return len(self._struck)

    def wait(self, strikes: int = 1, timeout: float = 5.0) -> Injection:
        """Wait until it has struck so often. Raises `TimeoutError`, which says what the server saw."""
        try:
            self._server.wait_for(lambda _: self.strikes >= strikes, timeout)
        except TimeoutError as error:
            raise TimeoutError(f"{self.fault} struck {self.strikes} of {strikes} times, {error}") from None
        return self

    def undo(self) -> None:
        """
        Take it back: it strikes no more, and what can be undone is. Idempotent.

        Frozen sockets thaw, dripping ones flow, held frames go out, ports are open again; what was reset, closed,
        dropped or garbled stays so.
        """
        self.fault.end(self)

    def __enter__(self) -> Injection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<Injection of {self.fault} at {self.on}, {self.strikes} strikes>"

    # On the server's loop

    @property
    def server(self) -> RealtimeServer:
        """The server it was given to."""
        return self._server

    def due(self, occasion: Occasion) -> bool:
        """Whether it strikes here; counts."""
        if self._left == 0 or not self.fault.fits(occasion) or not self.on.matches(occasion):
            return False
        if self._to_skip > 0:
            self._to_skip -= 1
            return False
        if self._left is not None:
            self._left -= 1
        return True

    @property
    def spent(self) -> bool:
        """Whether it will not strike any more."""
        return self._left == 0

    def record(self, strike: Strike) -> None:
        """It has struck."""
        self._struck = (*self._struck, strike)
        self._server.changed()

    def when_undone(self, undoing: Callable[[], None]) -> None:
        """Call this when it is taken back."""
        self._undoings.append(undoing)

    def finish(self) -> None:
        """Take it off the server's list and undo what it did."""
        self._server.injections.remove(self)
        self.undone.set()
        undoings, self._undoings = self._undoings, []
        for undoing in undoings:
            undoing()


@attrs.frozen(eq=False)
class Hit:
    """One strike of one injection while it happens; `done` records it."""

    injection: Injection
    occasion: Occasion

    def done(self) -> None:
        """It has happened."""
        occasion = self.occasion
        self.injection.record(Strike(occasion.connection_id, occasion.topic, occasion.event))

    @property
    def server(self) -> RealtimeServer:
        """The server it happens to."""
        return self.injection.server


class Injections:
    """
    What is still to strike, and the places of the server where it does.

    Thread-safety: confined to the server's loop.
    """

    def __init__(self, server: RealtimeServer) -> None:
        self._server = server
        self._all: tuple[Injection, ...] = ()

    def add(self, injection: Injection) -> None:
        """Let it strike from now on."""
        self._all = (*self._all, injection)

    def remove(self, injection: Injection) -> None:
        """Let it strike no more. Idempotent."""
        self._all = tuple(other for other in self._all if other is not injection)

    def _hits(self, occasion: Occasion) -> list[Hit]:
        hits = [Hit(injection, occasion) for injection in self._all if injection.due(occasion)]
        if any(hit.injection.spent for hit in hits):
            self._all = tuple(injection for injection in self._all if not injection.spent)
        return hits

    def now(self, injection: Injection) -> None:
        """Strike every open socket that matches."""
        for connection in self._server.connections:
            occasion = Occasion(moment=Now, stream=connection.stream, connection=connection)
            if injection.on.matches(occasion):
                injection.fault.strike(Hit(injection, occasion))

    def accepting(self, stream: Stream) -> None:
        """A connection was accepted."""
        for hit in self._hits(Occasion(moment=Accepting, stream=stream)) if self._all else ():
            hit.injection.fault.strike(hit)

    async def upgrading(self, stream: Stream, request: RequestInfo) -> Refusal | None:
        """An upgrade is asked for; returns why it is refused."""
        if not self._all:
            return None
        refusal: Refusal | None = None
        for hit in self._hits(Occasion(moment=Upgrading, stream=stream, request=request)):
            outcome = hit.injection.fault.strike(hit)
            if isinstance(outcome, Refusal):
                refusal = refusal or outcome
            elif isinstance(outcome, float):
                await self._delay(hit, outcome)
        return refusal

    def opening(self, connection: ServerConnection) -> None:
        """A socket has opened."""
        occasion = Occasion(moment=Opening, stream=connection.stream, connection=connection)
        for hit in self._hits(occasion) if self._all else ():
            hit.injection.fault.strike(hit)

    async def receiving(self, connection: ServerConnection, message: ClientMessage) -> JoinRefusal | _Swallowed | None:
        """A message came; returns why a join is refused, or `SWALLOWED`."""
        if not self._all:
            return None
        occasion = self._of_message(Receiving, connection, message)
        verdict: JoinRefusal | _Swallowed | None = None
        for hit in self._hits(occasion):
            outcome = hit.injection.fault.strike(hit)
            if isinstance(outcome, float):
                await self._delay(hit, outcome)
            elif isinstance(outcome, (JoinRefusal, _Swallowed)):
                verdict = verdict or outcome
        return verdict

    def sending(
        self, connection: ServerConnection, message: ServerMessage, frame: str | bytes, answers: str | None
    ) -> list[str | bytes | Deed]:
        """A frame is to be sent; returns what is queued in its place."""
        items: list[str | bytes | Deed] = [frame]
        if self._all:
            for hit in self._hits(self._of_message(Sending, connection, message, answers)):
                items = hit.injection.fault.alter(hit, items)
        return items

    def _of_message(
        self, moment: type[Moment], connection: ServerConnection, message: Any, answers: str | None = None
    ) -> Occasion:
        topic = message.topic
        return Occasion(
            moment=moment,
            stream=connection.stream,
            connection=connection,
            topic=self._server.short_topic(topic) if isinstance(topic, str) else None,
            event=message.event if isinstance(message.event, str) else None,
            answers=answers,
            message=message,
        )

    async def _delay(self, hit: Hit, seconds: float) -> None:
        injection = hit.injection
        await self._server.clock.sleep(seconds, hit.occasion.stream.ended, injection.undone, *self._server.stopping)
