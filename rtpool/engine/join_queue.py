"""
The joins that wait to be sent: paced over the pool, a few in flight per socket, oldest first, and where joins fail one
at a time.

A server runs the joins of a socket one by one, and each that fails holds up everything else on that socket for some 5 s
(protocol 4.2). So topics that fail are never let at a socket together, nor for more than half of its time, and in the
end for a fifth.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator

import attrs

from rtpool.engine.connection import Connection
from rtpool.engine.io_loop import IoLoop, Timer
from rtpool.engine.joins import Join
from rtpool.engine.logs import Log
from rtpool.errors import HandshakeRefused, JoinRefused, RtpoolError
from rtpool.events import ChannelState
from rtpool.protocol.pace import RECOVERY, Pace

__all__ = ["JoinQueue"]

#: The server's words, in its reply to a join and in its answer to an upgrade (protocol 1.3, 8.1).
TOO_MANY_JOINS = "Too many joins per second"
#: Seconds after which one that failed before goes before newcomers, and how many of these go between two such.
LONGEST_WAIT, NEWCOMERS = 5.0, 4
#: Joins awaiting an answer below this number are not looked through for those that were left meanwhile.
MIN_SWEEP = 16
#: After a join that failed in so many seconds, the socket has this many times as long to itself.
REST = 4.0

_Numbered = tuple[int, Join]
_Rank = tuple[bool, int, int]


@attrs.define(eq=False, repr=False)
class _Line:
    """
    The joins that wait for one connection, and how joins fare on its socket.

    Attributes:
        first, again: those whose last attempt did not fail, oldest first; those whose did, after how many attempts,
            fewest first. Numbered over the pool.
        epoch: of the socket that all below is about.
        sent: what awaits the server's answer, and since when.
        answered_at: when it answered the last.
        in_doubt: a join failed, and none has succeeded since.
        newcomers: of `first`, sent since the last of `again`.
        failed_at, busy: when the last failed, and how long that had kept the socket.
        sweep_at: as many of `sent` are looked through.
    """

    connection: Connection
    first: deque[_Numbered] = attrs.field(factory=deque)
    again: list[tuple[int, int, float, Join]] = attrs.field(factory=list)
    epoch: int = 0
    sent: dict[Join, float] = attrs.field(factory=dict)
    answered_at: float = -math.inf
    in_doubt: bool = False
    newcomers: int = 0
    failed_at: float = -math.inf
    busy: float = 0.0
    sweep_at: int = MIN_SWEEP

    def look(self, *, closely: bool = False) -> None:
        """
        Forget what was of an earlier socket, and whose answer will not be told: it was left meanwhile.

        Args:
            closely: whether it matters just now if any is under way; else it is enough not to gather them.
        """
        connection = self.connection
        if self.epoch != connection.epoch:
            self.epoch, self.sent = connection.epoch, {}
            self.answered_at, self.in_doubt, self.failed_at = -math.inf, False, -math.inf
        if closely or self.in_doubt or self.again or len(self.sent) >= self.sweep_at:
            for join in list(self.sent):
                if connection.session.state(join.topic) in (ChannelState.CLOSED, ChannelState.LEAVING):
                    del self.sent[join]
            self.sweep_at = 2 * len(self.sent) + MIN_SWEEP

    @property
    def waits(self) -> bool:
        """Whether anything waits here."""
        return bool(self.first or self.again)

    def head(self, now: float) -> tuple[_Rank, Join] | None:
        """Which may go now, and its rank among those of other lines."""
        session = self.connection.session
        if not self.waits or session.joins_available <= 0 or (self.in_doubt and self.sent):
            return None
        found = self._head_again(now)
        if self.first and (found is None or found[0][0]):
            number, join = self.first[0]
            return (False, 0, number), join
        return found

    def _head_again(self, now: float) -> tuple[_Rank, Join] | None:
        if not self.again or any(join.suspect for join in self.sent):
            return None
        if now < self.rests_until and (self.first or self._serves()):
            return None
        attempts, number, since, join = self.again[0]
        # Newcomers go first, but not for ever; nor do they wait for more than one of these.
        overdue = now - since >= LONGEST_WAIT and (not self.first or self.newcomers >= NEWCOMERS)
        return ((False, 0, number) if overdue else (True, attempts, number)), join

    @property
    def joins(self) -> list[Join]:
        """Those that wait, in their order."""
        return [*(join for _, join in self.first), *(join for *_, join in self.again)]

    def take(self, join: Join) -> None:
        """One that is first of its kind is taken."""
        if self.first and self.first[0][1] is join:
            self.first.popleft()
            self.newcomers += 1
        else:
            self.again.pop(0)
            self.newcomers = 0

    def stray(self) -> Join | None:
        """Take one that stands first of its kind and has no business here any more."""
        for waiting in (self.first, self.again):
            if waiting:
                join = waiting[0][-1]
                if not (join.requested and join.connection is self.connection):
                    self.take(join)
                    return join
        return None

    @property
    def rests_until(self) -> float:
        """
        None of `again` goes earlier, if there is a joined channel it may hold up: the more often the next one has
        failed, the longer the socket has to itself.
        """
        return self.failed_at + min(REST, self.again[0][0]) * self.busy if self.again else -math.inf

    def _serves(self) -> bool:
        """Whether anything is joined, which a failing join would hold up."""
        state = self.connection.session.state
        return any(state(topic) is ChannelState.JOINED for topic in self.connection.joins)

    def answered(self, join: Join, now: float) -> float | None:
        """A join was answered, after which it is known how long it kept the socket; None for one of before."""
        sent_at = self.sent.pop(join, None)
        if sent_at is None:
            return None
        busy = now - max(sent_at, self.answered_at)
        self.answered_at = now
        return busy


class JoinQueue:
    """
    Paces joins.

    On each socket, joins that have not failed yet go first. Of those that have, one is in flight at a time, those that
    failed least often first, each in its turn; and where channels are joined, the next waits after a failure as many
    times as long as that took as it has failed itself, four times at the most. While a socket
    is in doubt, from a failure to the next success, it has one join in flight whatever it is.

    Args:
        loop: the engine's.
        max_per_second: over the pool, see `PoolOptions.max_joins_per_second`.
        send: called with a join whose turn it is.
        log: where a slower pace is told.

    Thread-safety: confined to the I/O thread, except `per_second`, which may be read anywhere.
    """

    def __init__(
        self, loop: IoLoop, max_per_second: float, send: Callable[[Join], None], log: Log | None = None
    ) -> None:
        self._loop = loop
        self._send = send
        self._log = log or Log(logging.getLogger("rtpool.io"))
        self._pace = Pace(max_per_second)
        self._lines: dict[Connection, _Line] = {}
        self._numbers = itertools.count()
        self._timer: Timer | None = None
        self._timer_at = -math.inf
        self._stopped = self._running = False

    @property
    def per_second(self) -> float:
        """The present pace."""
        return self._pace.per_second(self._loop.clock())

    def add(self, join: Join) -> None:
        """Queue a join that is `requested`; with its connection not open it is so no more: what opens it asks again."""
        self._line_up(join)
        self.run()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is added within this goes out at its end: who adds a hundred does not look a hundred times."""
        if self._running:
            yield
            return
        self._running = True
        try:
            yield
        finally:
            self._running = False
        self.run()

    def succeeded(self, join: Join) -> None:
        """The server let a join in."""
        line = self._line_of(join)
        if line is not None and line.answered(join, self._loop.now) is not None:
            line.in_doubt = False

    def failed(self, join: Join) -> None:
        """The server refused a join, or did not answer it in time."""
        line, now = self._line_of(join), self._loop.now
        busy = line.answered(join, now) if line is not None else None
        if line is not None and busy is not None:
            line.in_doubt = True
            line.failed_at, line.busy = now, busy

    def heed(self, error: RtpoolError) -> None:
        """A join or a dial failed: halve the pace for a while if the server said that there are too many joins."""
        if isinstance(error, JoinRefused):
            words = error.reason
        elif isinstance(error, HandshakeRefused):
            words = error.body
        else:
            return
        if TOO_MANY_JOINS not in words:
            return
        now = self._loop.now
        before = self._pace.per_second(now)
        if self._pace.slow_down(now):
            told = (
                "! the server says %(why)r: at most %(rate)g a second from now on, instead of %(before)g, and twice as "
                "many after every %(seconds)g s without such a refusal (option max_joins_per_second)"
            )
            fields = {"why": words, "rate": self._pace.per_second(now), "before": before, "seconds": RECOVERY}
            self._log.warning("joins_slowed", told, **fields)

    def spare(self, connection: Connection) -> bool:
        """Whether a join that can wait may go out on `connection` now, since no other wants to; if so it counts."""
        for line in self._lines.values():
            line.look(closely=True)
        if self._stopped or any(line.first or line.again or line.sent for line in self._lines.values()):
            return False
        return connection.session.joins_available > 0 and self._pace.grant(self._loop.now)

    def holds(self, join: Join) -> bool:
        """Whether a join waits here."""
        line = self._line_of(join)
        return line is not None and join in line.joins

    def stop(self) -> None:
        """Send nothing any more."""
        self._stopped = True
        self._lines.clear()

    def run(self) -> None:
        """Send what may be sent."""
        if self._stopped or self._running:
            return
        self._running = True
        try:
            self._wake_at(self._send_some(self._loop.now))
        finally:
            self._running = False

    def _send_some(self, now: float) -> float:
        """Returns when there may be more to send without anything having happened."""
        for line in list(self._lines.values()):
            line.look()
            if line.connection.state != "open":
                del self._lines[line.connection]
                for join in line.joins:
                    if join.connection is line.connection:
                        join.requested = False
        while (turn := self._whose_turn(now)) is not None:
            if not self._pace.grant(now):
                return self._pace.next_at(now)
            line, join = turn
            line.take(join)
            self._send(join)
            if line.connection.session.state(join.topic) is ChannelState.JOINING:  # else it was not to be
                line.sent[join] = now
        rests = [line.rests_until for line in self._lines.values() if line.rests_until > now]
        return min(rests, default=math.inf)

    def _whose_turn(self, now: float) -> tuple[_Line, Join] | None:
        """Which join goes next, and its line: of those that have not failed the oldest, else of those that have."""
        for line in [line for line in self._lines.values() if line.waits]:
            self._drop_strays(line)
        best, best_rank = None, None
        for line in self._lines.values():
            head = line.head(now)
            if head is not None and (best_rank is None or head[0] < best_rank):
                best_rank, best = head[0], (line, head[1])
        return best

    def _drop_strays(self, line: _Line) -> None:
        while (join := line.stray()) is not None:
            if join.requested:  # it lives elsewhere now
                self._line_up(join)

    def _line_up(self, join: Join) -> None:
        connection = join.connection
        if self._stopped or connection is None or connection.state != "open":
            join.requested = False  # not now: what it waits for puts it back
            return
        line = self._lines.get(connection)
        if line is None:
            line = self._lines[connection] = _Line(connection, epoch=connection.epoch)
        if join.suspect:
            bisect.insort(line.again, (join.attempts, next(self._numbers), self._loop.now, join))
        else:
            line.first.append((next(self._numbers), join))

    def _line_of(self, join: Join) -> _Line | None:
        return self._lines.get(join.connection) if join.connection is not None else None

    def _wake_at(self, at: float) -> None:
        if self._timer is not None and not self._timer.cancelled:
            if self._timer_at == at:
                return
            self._timer.cancel()
        self._timer, self._timer_at = (self._loop.call_at(at, self.run) if at < math.inf else None), at
