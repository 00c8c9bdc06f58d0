"""
The pushes that wait because of the option `max_events_per_second`: oldest first over the pool. Everything here runs on
the I/O thread.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable

from rtpool.engine.io_loop import IoLoop, Timer
from rtpool.engine.joins import Join
from rtpool.engine.logs import Log
from rtpool.engine.outgoing import Outgoing
from rtpool.protocol.pace import RECOVERY, Pace

__all__ = ["PushQueue"]

#: The server's words when it ends a channel because of the events of a whole project (protocol 8.2).
TOO_MANY_MESSAGES = "Too many messages per second"
#: Seconds without a push that had to wait, after which the next is told anew.
QUIET = 10.0


class PushQueue:
    """
    Paces broadcasts and pushes.

    It keeps whose turn it is; the pushes themselves wait in the buffer of their join, as those do whose join is not
    joined. So the order of a Channel is one, whatever its pushes wait for.

    Args:
        loop: the engine's.
        max_per_second: see `PoolOptions.max_events_per_second`; None lets everything pass.
        send: called with a join when it is the turn of the first push in its buffer.
        log: where it is told that pushes wait.

    Thread-safety: confined to the I/O thread, except `delayed`, `refusals` and `per_second`, which may be read
    anywhere.
    """

    def __init__(self, loop: IoLoop, max_per_second: float | None, send: Callable[[Join], object], log: Log) -> None:
        self._loop = loop
        self._limit = max_per_second
        self._pace = None if max_per_second is None else Pace(max_per_second)
        self._send = send
        self._log = log
        self._turns: OrderedDict[Outgoing, Join] = OrderedDict()
        self._timer: Timer | None = None
        self._drained: Callable[[], None] | None = None
        self._told_at = self._delayed_at = -math.inf
        #: How often the server ended a channel because of too many.
        self.refusals = 0
        #: Pushes that had to wait.
        self.delayed = 0

    @property
    def per_second(self) -> float | None:
        """The present pace; None without one."""
        return None if self._pace is None else self._pace.per_second(self._loop.clock())

    def passes(self) -> bool:
        """Whether one more may go out now, before nobody who waits; if so it counts."""
        return self._pace is None or (not self._turns and self._pace.grant(self._loop.now))

    def line_up(self, join: Join, waiting: Iterable[Outgoing]) -> None:
        """Give a turn, after all others, to pushes in the buffer of a join that have none."""
        if self._pace is None:
            return
        for outgoing in waiting:
            if outgoing not in self._turns:
                self._turns[outgoing] = join
                self._count()
        self._run()

    def __contains__(self, outgoing: Outgoing) -> bool:
        """Whether a push waits for its turn."""
        return outgoing in self._turns

    def drain(self, until: float, done: Callable[[], None]) -> None:
        """Call `done` once nobody waits any more, at the instant `until` at the latest."""
        self._drained = done
        self._loop.call_at(until, self._finish)
        self._run()

    def stop(self) -> None:
        """Nothing is sent any more."""
        self._turns.clear()
        self._drained = None

    def heed(self, words: str) -> None:
        """The server ended a channel: halve the pace for a while if that was for too many messages of the project."""
        if not words.startswith(TOO_MANY_MESSAGES):
            return
        self.refusals += 1
        now = self._loop.now
        if self._pace is None:
            if now - self._told_at >= RECOVERY:
                self._told_at = now
                self._log.warning(
                    "pushes_slowed",
                    "! the server says %(why)r: the option max_events_per_second, which is off, keeps the pool below a "
                    "rate",
                    why=words,
                )
            return
        before = self._pace.per_second(now)
        if self._pace.slow_down(now):
            told = (
                "! the server says %(why)r: at most %(rate)g pushes a second from now on, instead of %(before)g, and "
                "twice as many after every %(seconds)g s without such words (option max_events_per_second)"
            )
            fields = {"why": words, "rate": self._pace.per_second(now), "before": before, "seconds": RECOVERY}
            self._log.warning("pushes_slowed", told, **fields)

    def _count(self) -> None:
        self.delayed += 1
        now = self._loop.now
        if now - self._delayed_at >= QUIET:
            words = "- more than %(rate)g pushes a second: from now on they wait their turn"
            self._log.warning("pushes_wait", f"{words} (option max_events_per_second)", rate=self.per_second)
        self._delayed_at = now

    def _run(self) -> None:
        assert self._pace is not None or not self._turns
        while self._turns:
            outgoing, join = next(iter(self._turns.items()))
            # What is lost meanwhile lines up anew when it is joined again.
            gone = outgoing.outcome is not None or not join.joined
            if not gone and self._pace is not None and not self._pace.grant(self._loop.now):
                self._wake()
                return
            self._turns.popitem(last=False)
            if not gone:
                self._send(join)
        self._finish()

    def _wake(self) -> None:
        assert self._pace is not None
        if self._timer is None or self._timer.cancelled:
            self._timer = self._loop.call_at(self._pace.next_at(self._loop.now), self._run)

    def _finish(self) -> None:
        done, self._drained = self._drained, None
        if done is not None:
            done()
