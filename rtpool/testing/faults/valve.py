"""
A valve in the stream to one client: cuts it after so many bytes, holds it back, or lets it drip.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from rtpool.testing.clock import Clock, Timer

__all__ = ["Valve"]


@attrs.define(eq=False)
class _Cut:
    """What happens once so many more bytes have gone out."""

    left: int
    then: Callable[[], None]


class Valve:
    """
    Stands in for the transport of a connection; what it does not know itself, the transport does.

    Args:
        transport: of the connection, TLS below it included: bytes are counted as the server writes them.
        clock: the server's; drops fall by it.

    Thread-safety: confined to the server's loop.
    """

    def __init__(self, transport: asyncio.Transport, clock: Clock) -> None:
        self._transport, self._clock = transport, clock
        self._waiting = bytearray()
        self._cuts: list[_Cut] = []
        self._drop: tuple[int, float] | None = None
        self._timer: Timer | asyncio.Handle | None = None
        self._shut: set[object] = set()  # why nothing passes, until each reason is gone
        self._ended = False  # nothing passes any more, and nothing is kept
        self._then: Callable[[], None] | None = None  # what was to follow the last byte

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    # What faults do

    def after(self, count: int, then: Callable[[], None], *, behind: bool = False) -> None:
        """
        Call `then` when so many more bytes have gone out, exactly; at once for none.

        Args:
            behind: count from the end of what waits here, not from its beginning.
        """
        count += len(self._waiting) if behind else 0
        if count == 0:
            then()
            return
        self._cuts.append(_Cut(count, then))
        self._pump()

    def shut(self, reason: object) -> None:
        """Let nothing pass until `open` with the same reason."""
        self._shut.add(reason)

    def open(self, reason: object) -> None:
        """Undo `shut`; what has waited goes out."""
        self._shut.discard(reason)
        self._pump()

    def drip(self, size: int, every: float) -> None:
        """Let `size` bytes pass at a time, each in a write of its own, `every` seconds apart."""
        self._drop = (size, every)

    def flow(self) -> None:
        """Undo `drip`; what has waited goes out."""
        self._drop = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pump()

    def end(self) -> None:
        """Let nothing pass any more, for ever, and forget what waits."""
        self._ended = True
        self._waiting.clear()
        self._cuts.clear()

    # The transport's side, for websockets

    def write(self, data: bytes) -> None:
        """Send, as far as the valve is open."""
        if not (self._ended or self._transport.is_closing()):
            self._waiting += data
            self._pump()

    def writelines(self, chunks: list[bytes]) -> None:
        """Send, as far as the valve is open."""
        self.write(b"".join(chunks))

    def write_eof(self) -> None:
        """End the stream after what waits."""
        self._finally(self._transport.write_eof)

    def close(self) -> None:
        """Close the connection after what waits."""
        self._finally(self._transport.close)

    def abort(self) -> None:
        """Close the connection at once."""
        self.end()
        self._transport.abort()

    def get_write_buffer_size(self) -> int:
        """Bytes that wait, here and below."""
        return len(self._waiting) + self._transport.get_write_buffer_size()

    def _finally(self, then: Callable[[], None]) -> None:
        self._then = then
        self._pump()

    def _pump(self) -> None:
        while not (self._shut or self._ended or self._timer is not None):
            self._due()
            if self._shut or self._ended or not self._waiting:
                break
            if self._transport.is_closing():  # by the other side
                self.end()
                break
            size = min([len(self._waiting), *(cut.left for cut in self._cuts), *(self._drop or ())[:1]])
            self._transport.write(bytes(self._waiting[:size]))
            del self._waiting[:size]
            for cut in self._cuts:
                cut.left -= size
            self._due()
            if self._drop is not None and not self._ended:
                every, loop = self._drop[1], asyncio.get_running_loop()
                self._timer = self._clock.call_later(every, self._next) if every > 0 else loop.call_soon(self._next)
        if self._then is not None and not self._waiting and (self._ended or not self._shut):
            then, self._then = self._then, None
            then()

    def _due(self) -> None:
        for cut in [cut for cut in self._cuts if cut.left <= 0]:
            self._cuts.remove(cut)
            cut.then()

    def _next(self) -> None:
        self._timer = None
        if not self._transport.is_closing():
            self._pump()
