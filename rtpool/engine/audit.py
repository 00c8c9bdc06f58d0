"""
The health check: what should not be is found, told and mended. Everything here runs on the I/O thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from rtpool.engine.connection import Connection
from rtpool.engine.connections import Connections
from rtpool.engine.io_loop import IoLoop, Pollable
from rtpool.engine.joining import Joining
from rtpool.engine.joins import Join
from rtpool.engine.logs import Log
from rtpool.events import ChannelState
from rtpool.options import PoolOptions
from rtpool.registry import Registry, ShareKey

__all__ = ["Audit", "Finding", "MOMENT", "NEVER_FOR_A_MOMENT"]


#: Seconds for which a finding must last: what another thread is about to do explains it until then.
MOMENT = 1.0
#: Kinds of findings that no command under way explains.
NEVER_FOR_A_MOMENT = ("idle connection", "orphaned socket")


class Finding(NamedTuple):
    """
    Something that should not be.

    Attributes:
        kind: ``"stuck connection"``, ``"orphaned socket"``, ``"idle connection"``, ``"stray join"``,
            ``"stalled join"``, ``"Channel without a join"``, ``"join without Channels"``,
            ``"server channel without a join"``.
        subject: what it is about, by identity.
        words: for the log.
        mend: makes it right.
    """

    kind: str
    subject: object
    words: str
    mend: Callable[[], object]


class Audit:
    """
    Compares what there is with what there should be, every `health_check_interval`.

    A thing must be found again after a `MOMENT` before it is mended. Each finding is a bug of rtpool's, or user code
    that never returns. Where nothing is found, sparse sockets are merged.

    Args:
        name: the pool's.
        options, registry, loop, connections, joining: the engine's.
        resync: has the I/O thread look at a share key again.
        merge: begins to merge sparse sockets, if that can be done.
        log: where findings are told.

    Thread-safety: confined to the I/O thread, except `repairs`, which may be read anywhere.
    """

    def __init__(
        self,
        name: str,
        options: PoolOptions,
        *,
        registry: Registry,
        loop: IoLoop,
        connections: Connections,
        joining: Joining,
        resync: Callable[[ShareKey], None],
        merge: Callable[[], object],
        log: Log,
    ) -> None:
        self._name = name
        self._options = options
        self._registry = registry
        self._loop = loop
        self._connections = connections
        self._joining = joining
        self._resync = resync
        self._merge = merge
        self._log = log
        self._suspects: dict[tuple[str, object], float] = {}  # when each was seen first
        #: Findings that were mended.
        self.repairs = 0

    def start(self) -> None:
        """Look every `health_check_interval` from now on, if the options have it so."""
        if self._options.enable_health_check:
            self._loop.call_later(self._options.health_check_interval, self._due)

    def _due(self) -> None:
        self.start()
        self._joining.queue.run()
        if not self.run():
            self._merge()

    def run(self, *, at_once: bool = False) -> list[Finding]:
        """
        Look once.

        Args:
            at_once: mend what is found for the first time, too, where no moment can explain it.

        Returns:
            What was mended.
        """
        found = list(self._look())
        now = self._loop.now
        self._suspects = {(f.kind, f.subject): self._suspects.get((f.kind, f.subject), now) for f in found}
        mended = [
            finding
            for finding in found
            if now - self._suspects[finding.kind, finding.subject] >= MOMENT
            or (at_once and finding.kind in NEVER_FOR_A_MOMENT)
        ]
        for finding in mended:
            self.repairs += 1
            self._log.bug("repair", "! pool %(pool)s mends: %(why)s", kind=finding.kind, why=finding.words)
            finding.mend()
        return mended

    def findings(self) -> list[Finding]:
        """What should not be at present; a moment may explain it, see `MOMENT`."""
        return list(self._look())

    def _look(self) -> Iterator[Finding]:
        yield from self._connections_astray()
        yield from self._channels_astray()
        for key in self._registry.share_keys():
            share = self._registry.share(key)
            waits = share is not None and any(
                s.attachment is not None and s.attachment.opened for s in share.subscribers
            )
            if waits and key not in self._joining.joins:
                words = f"a Channel of {key.topic!r} has no join"
                yield Finding("Channel without a join", share, words, partial(self._resync, key))
        for key, join in self._joining.joins.items():
            if not join.leaving and self._registry.share(key) is None:
                words = f"the join of {key.topic!r} has no Channel"
                yield Finding("join without Channels", join, words, partial(self._resync, key))
            elif self._is_stalled(join):
                yield Finding(
                    "stalled join", join, f"nothing brings {join.name!r} back", partial(self._ask_again, join)
                )

    def _connections_astray(self) -> Iterator[Finding]:
        known = self._connections.every
        for pollable in self._loop.pollables:
            if pollable not in known:
                yield Finding("orphaned socket", pollable, "a socket belongs to nobody", partial(self._close, pollable))
        for connection in self._connections.all:
            name = f"connection {connection.connection_id}"
            if connection.state == "open" and connection.is_idle and not connection.awaits_closing:
                words = f"{name} is idle and nothing closes it"
                yield Finding(
                    "idle connection", connection, words, partial(self._connections.close_when_idle, connection)
                )
            elif self._is_stuck(connection):
                words = f"nothing dials {name} again, which is {connection.state}"
                yield Finding("stuck connection", connection, words, partial(self._connections.dial, connection))

    def _is_stuck(self, connection: Connection) -> bool:
        """Whether nothing will dial it, because a strategy of the user's does not return, for one."""
        waited = self._loop.now - connection.failed_at
        waits = connection.state in ("waiting", "error") and not connection.at_rest
        return waits and connection.redial is None and waited >= self._options.health_check_interval

    def _channels_astray(self) -> Iterator[Finding]:
        for connection in self._connections.all:
            for topic, join in connection.joins.items():
                if join.connection is not connection:
                    words = f"connection {connection.connection_id} keeps a place for {topic!r}, which lives elsewhere"
                    yield Finding("stray join", join, words, partial(connection.joins.pop, topic))
            session, now = connection.session, self._loop.now
            for topic, channel in session.topics.items():
                live = channel.state in (ChannelState.JOINED, ChannelState.JOINING)
                if live and topic not in connection.joins and topic not in connection.guests:
                    words = f"the server has a channel {topic!r} on connection {connection.connection_id} for nobody"
                    yield Finding("server channel without a join", channel, words, partial(session.leave, topic, now))

    def _is_stalled(self, join: Join) -> bool:
        connection = join.connection
        if join.leaving or join.blocked is not None or join.retry is not None:
            return False
        if connection is None:
            return not self._joining.is_homeless(join)
        if connection not in self._connections.all:
            return True
        if connection.state != "open":
            return False  # what opens it asks again
        if join.requested:
            return not self._joining.awaits_its_turn(join)
        return connection.session.state(join.topic) in (ChannelState.CLOSED, ChannelState.ERRORED)

    def _ask_again(self, join: Join) -> None:
        join.requested = False
        if join.connection not in self._connections.all:
            join.connection = None
        self._resync(join.share.key)

    def _close(self, pollable: Pollable) -> None:
        self._loop.remove(pollable)
        if isinstance(pollable, Connection):
            pollable.close_socket()
