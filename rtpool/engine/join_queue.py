"""
The joins that wait to be sent: a sliding window over the pool, a few in flight per socket, oldest first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from rtpool.engine.connection import Connection
from rtpool.engine.io_loop import IoLoop, Timer
from rtpool.engine.joins import Join
from rtpool.protocol.pace import Pace

__all__ = ["JoinQueue"]


class JoinQueue:
    """
    Paces joins.

    Args:
        loop: the engine's.
        max_per_second: over the pool, see `PoolOptions.max_joins_per_second`.
        send: called with a join whose turn it is.

    Thread-safety: confined to the I/O thread.
    """

    def __init__(self, loop: IoLoop, max_per_second: float, send: Callable[[Join], None]) -> None:
        self._loop = loop
        self._send = send
        self._pace = Pace(max_per_second)
        self._waiting: deque[Join] = deque()
        self._timer: Timer | None = None
        self._stopped = self._running = False

    def add(self, join: Join) -> None:
        """Queue a join; it is sent when the pace allows, and its turn is lost when its connection is not open then."""
        self._waiting.append(join)
        if not self._running:
            self.run()

    def stop(self) -> None:
        """Send nothing any more."""
        self._stopped = True
        self._waiting.clear()

    def run(self) -> None:
        """Send what may be sent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stopped or self._running:
            return
        self._running = True
        try:
            self._waiting = self._send_some()
        finally:
            self._running = False

    def _send_some(self) -> deque[Join]:
        waiting: deque[Join] = deque()
        room: dict[Connection, int] = {}
        while self._waiting:
            join = self._waiting.popleft()
            connection = join.connection
            if not join.requested or connection is None or connection.state != "open":
                join.requested = False  # not now: what it waits for puts it back
                continue
            free = room.get(connection)
            if free is None:
                free = connection.session.joins_available
            if free <= 0:
                waiting.append(join)
                room[connection] = 0
                continue
            if not self._pace.grant(self._loop.now):
                waiting.append(join)
                waiting.extend(self._waiting)
                self._waiting.clear()
                self._timer = self._loop.call_at(self._pace.next_at(), self.run)
                break
            room[connection] = free - 1
            self._send(join)
        return waiting
