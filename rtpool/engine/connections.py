"""
The pool's sockets: dialled, brought back, retired, and what they are doing now. Everything here runs on the I/O thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import NamedTuple, Protocol

from rtpool.engine.connection import Connection
from rtpool.engine.dialer import Dialed, Dialer, Endpoint
from rtpool.engine.io_loop import IoLoop
from rtpool.engine.logs import Log
from rtpool.engine.reconnecting import Reconnecting
from rtpool.engine.transport import TransportClosed
from rtpool.errors import ConnectionFailed, MessageTooBig, PoolClosed, RtpoolError
from rtpool.events import StatusChange
from rtpool.options import PoolOptions
from rtpool.protocol.session_events import SessionEvent
from rtpool.stats import ConnectionDetails

__all__ = ["Connections", "Tenant", "Totals"]

#: Seconds a dial may take beyond `connection_timeout`, which what it calls may not heed.
DIAL_GRACE = 2.0
#: How long a closed socket waits for the peer's own close frame.
GOODBYE_SECONDS = 0.5


class Totals(NamedTuple):
    """What connections have counted: messages received, those that were nobody's, bytes received and sent."""

    messages: int
    unheard: int
    bytes_received: int
    bytes_sent: int

    def plus(self, details: ConnectionDetails) -> Totals:
        """With those of one more connection."""
        return Totals(
            self.messages + details.messages_received,
            self.unheard + details.messages_unheard,
            self.bytes_received + details.bytes_received,
            self.bytes_sent + details.bytes_sent,
        )


class Tenant(Protocol):
    """Who lives on the connections: told what happens to them."""

    def heard(self, connection: Connection, events: list[SessionEvent]) -> None:
        """A session said something."""

    def opened(self, connection: Connection) -> None:
        """A connection is open, for the first time or again."""

    def lost(self, connection: Connection, error: ConnectionFailed) -> None:
        """An open connection is gone; it will be dialled again unless nobody lives on it."""

    def retrying(self, connection: Connection, error: RtpoolError) -> None:
        """It was lost, or an attempt to open it failed; another follows soon."""

    def given_up(self, connection: Connection, error: RtpoolError) -> None:
        """The quick attempts are over."""

    def all_closed(self) -> None:
        """After `close_all`: the last one is closed."""


class Connections:
    """
    Every connection of a pool, from its first dial to its goodbye.

    Args:
        name: the pool's.
        endpoint, options: where to dial, and how.
        loop, dialer, deciders: the engine's; the last are threads for reconnect strategies.
        tenant: who lives here.
        announce: hands a pool-level `StatusChange` to listeners.
        rng: source of jitter.
        log: where it is told what becomes of them.

    Thread-safety: confined to the I/O thread, except `all`, `status` and the counters, which may be read anywhere.
    """

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        options: PoolOptions,
        *,
        loop: IoLoop,
        dialer: Dialer,
        deciders: Dialer,
        tenant: Tenant,
        announce: Callable[[StatusChange], None],
        rng: random.Random,
        log: Log,
    ) -> None:
        self._name = name
        self._endpoint = endpoint
        self._options = options
        self._log = log
        self._loop = loop
        self._dialer = dialer
        self._tenant = tenant
        self._announce = announce
        self._reconnecting = Reconnecting(
            options,
            loop=loop,
            deciders=deciders,
            dial=self.dial,
            retrying=self._retrying,
            given_up=self._given_up,
            rng=rng,
            log=log,
        )
        self._by_id: dict[int, Connection] = {}
        self._closing: set[Connection] = set()
        self._next_id = 1
        self._waiters: list[Future[None]] = []
        self._stopping = False
        #: Every connection, those saying goodbye aside; replaced whole.
        self.all: tuple[Connection, ...] = ()
        self.status = self._announced = "idle"
        self.reconnect_attempts = 0
        #: Open ones that broke. Read anywhere.
        self.losses = 0
        #: Received messages that were larger than `max_message_size`; each cost its connection.
        self.too_big = 0
        # Those that count, and what those that are gone had counted; replaced together.
        self._past = Totals(0, 0, 0, 0)
        self._books: tuple[tuple[Connection, ...], Totals] = ((), self._past)

    def get(self, connection_id: int) -> Connection:
        """The connection with this id."""
        return self._by_id[connection_id]

    @property
    def every(self) -> set[Connection]:
        """All of them, those saying goodbye included."""
        return {*self.all, *self._closing}

    def totals(self) -> Totals:
        """What every connection there ever was has counted. From any thread."""
        connections, totals = self._books
        for connection in connections:
            totals = totals.plus(connection.details())
        return totals

    @property
    def _waited_for(self) -> bool:
        return any(not waiter.cancelled() for waiter in self._waiters)

    def connect(self, waiter: Future[None]) -> None:
        """Have at least one connection; `waiter` is done when one is open."""
        if self._stopping:
            _settle(waiter, PoolClosed(f"the pool {self._name} was closed"))
            return
        self.hurry(afresh=True)
        if any(c.state == "open" for c in self.all):
            _settle(waiter, None)
            return
        self._waiters = [*(w for w in self._waiters if not w.cancelled()), waiter]
        if not self._by_id:
            self.new()

    def hurry(self, *, afresh: bool) -> None:
        """There is hope for those that wait for another attempt; see `Reconnecting.hurry`."""
        for connection in self.all:
            self._reconnecting.hurry(connection, afresh=afresh)

    def close_idle(self, done: Future[int]) -> None:
        """Close those without joins now; `done` gets their number."""
        idle = [c for c in self.all if c.is_idle and not self._waited_for]
        for connection in idle:
            self._retire(connection)
        done.set_result(len(idle))

    def close_all(self, until: float) -> None:
        """Say goodbye on every connection and await answers until the instant `until`; `Tenant.all_closed` follows."""
        self._stopping = True
        for connection in self.all:
            self._retire(connection)
        self._loop.call_at(until, self._close_rest)
        self._tell_when_closed()

    def _close_rest(self) -> None:
        for connection in list(self._closing):
            self._closed(connection)

    def _tell_when_closed(self) -> None:
        if self._stopping and not self._closing:
            self._tenant.all_closed()

    def abandon(self, error: RtpoolError) -> None:
        """Drop every socket at once and fail who waits for one."""
        self._stopping = True
        dropped = [*self.all, *self._closing]
        for connection in dropped:
            connection.session.disconnected()
            self._tenant.heard(connection, connection.session.events())
            self._drop_socket(connection)
            self._account(connection)
        self._closing.clear()
        self._settle_waiters(error)
        self._by_id.clear()
        self._publish()
        for connection in dropped:
            self._say_closed(connection)
        self._set_status("closed", error if error.__cause__ is not None else None)

    def _settle_waiters(self, error: RtpoolError | None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _settle(waiter, error.again() if error is not None else None)

    def new(self) -> Connection:
        """Another connection, dialled at once."""
        clock = self._loop.boot or self._loop.clock
        connection = Connection(self._next_id, self._options, self._tenant.heard, self._on_lost, clock, self._log)
        self._next_id += 1
        self._by_id[connection.connection_id] = connection
        self._publish()
        self.dial(connection)
        return connection

    def _publish(self) -> None:
        self.all = tuple(self._by_id.values())
        self._books = (*self.all, *self._closing), self._past

    def dial(self, connection: Connection) -> None:
        """Open it now, or as soon as the server lets us."""
        if self._stopping or connection.state == "closed":
            return
        if not self._reconnecting.may_dial(connection):
            connection.state = "waiting"
            delay = self._reconnecting.not_before - self._loop.now
            words = "- connection %(connection)d of pool %(pool)s waits %(delay).2f s, as the server asked"
            self._log.debug("connection_waiting", words, connection=connection.connection_id, delay=delay)
            self._update_status()
            return
        connection.state, connection.at_rest = "dialing", False
        if connection.epoch or connection.attempts:
            self.reconnect_attempts += 1
        if connection.last_error is None or self._stopping:
            self._update_status()
        elif self._announced == "connected":  # it was asked for before anybody decided
            self._tell(connection, "reconnecting", connection.last_error, connection.attempts + 1, 0.0)
        else:
            self.status = self._summary()  # the attempt was announced with what was decided
        connection.dials += 1
        words = "= connection %(connection)d of pool %(pool)s is dialled, attempt %(attempt)d"
        self._log.debug(
            "connection_dialing", words, connection=connection.connection_id, attempt=connection.attempts + 1
        )
        number, patience = connection.dials, self._options.connection_timeout + DIAL_GRACE
        loop, dialer, dialed = self._loop, self._dialer, self._dialed

        def done(opened: Dialed | None, error: RtpoolError | None) -> bool:
            return loop.post(dialed, connection, number, opened, error)

        def too_late() -> None:
            words = (
                f"the dial of {self._endpoint.url} did not end within {patience:g} s: a resolver, or the option dial"
            )
            dialer.overdue(done)
            dialed(connection, number, None, ConnectionFailed(words))

        connection.dial_deadline = loop.call_later(patience, too_late)
        dialer.dial(self._endpoint, self._options, done)

    def _dialed(self, connection: Connection, number: int, dialed: Dialed | None, error: RtpoolError | None) -> None:
        current = self._by_id.get(connection.connection_id) is connection and connection.state == "dialing"
        if not current or connection.dials != number or self._stopping:
            if dialed is not None:
                dialed.sock.close()
            return
        if connection.dial_deadline is not None:
            connection.dial_deadline.cancel()
        if dialed is None:
            self._dial_failed(connection, error or ConnectionFailed("no connection"))
            return
        try:
            connection.open(dialed.sock, self._loop.now)
        except (OSError, ValueError) as cause:  # whoever the option dial got it from has closed it again
            dialed.sock.close()
            failed = ConnectionFailed(f"the socket to {self._endpoint.url} was closed as soon as it was open")
            failed.__cause__ = cause
            self._dial_failed(connection, failed)
            return
        connection.clock_skew = dialed.clock_skew
        connection.last_error = None
        self._loop.add(connection)
        words = "= connection %(connection)d of pool %(pool)s open to %(url)s"
        self._log.info("connection_open", words, connection=connection.connection_id, url=self._endpoint.url)
        self._update_status()
        self._settle_waiters(None)
        self._tenant.opened(connection)
        if connection.is_idle:
            self.close_when_idle(connection)
        self.hurry(afresh=False)

    def _on_lost(self, connection: Connection, error: RtpoolError) -> None:
        """The socket broke. The identity stays, with its joins, and is dialled again."""
        if connection in self._closing:
            self._closed(connection)
            return
        self.losses += 1
        self.too_big += isinstance(error, MessageTooBig)
        if isinstance(error, TransportClosed) or not isinstance(error, ConnectionFailed):
            # Whatever the peer did wrong on this socket, the next one may be fine.
            failed = ConnectionFailed(
                f"connection {connection.connection_id} to {self._endpoint.url} was lost: {error}"
            )
            failed.__cause__ = error
            error = failed
        now = self._loop.now
        words = "! connection %(connection)d of pool %(pool)s lost: %(why)s"
        told = {"connection": connection.connection_id, "cause": error.cause, "error": error}
        self._log.warning("connection_lost", words, **told)
        connection.session.disconnected()
        self._drop_socket(connection)
        connection.state = "waiting"
        self._tenant.heard(connection, connection.session.events())
        self._tenant.lost(connection, error)
        if connection.is_idle:
            self._remove(connection, error)  # the server reaps sockets without channels; nobody misses it
            return
        self._reconnecting.failed(connection, error, lived=now - connection.opened_at)
        self.status = self._summary()  # announced with what is decided

    def _dial_failed(self, connection: Connection, error: RtpoolError) -> None:
        words = "! connection %(connection)d of pool %(pool)s failed: %(why)s"
        self._log.warning("connection_failed", words, connection=connection.connection_id, error=error)
        self._reconnecting.failed(connection, error, lived=None)

    def _retrying(self, connection: Connection, error: RtpoolError, delay: float | None) -> None:
        attempt = connection.attempts + 1
        words = "- connection %(connection)d of pool %(pool)s is dialled in %(delay).2f s, attempt %(attempt)d"
        told = {"connection": connection.connection_id, "attempt": attempt, "delay": delay, "error": error}
        self._log.warning("connection_waiting", words, **told)
        self._tenant.retrying(connection, error)
        self._tell(connection, "reconnecting", error, attempt, delay)

    def _given_up(self, connection: Connection, error: RtpoolError, again_in: float | None) -> None:
        """The quick attempts are over. The health check goes on where another attempt can succeed."""
        told = {"connection": connection.connection_id, "attempt": connection.attempts, "error": error}
        words = "! connection %(connection)d of pool %(pool)s given up after attempt %(attempt)d, "
        words += "nothing is dialled by itself" if again_in is None else "dialled again in %(delay).2f s"
        self._log.warning("connection_error", words, delay=again_in, **told)
        self._settle_waiters(error)
        self._tenant.given_up(connection, error)
        self._tell(connection, "error", error, connection.attempts, again_in)
        if connection.is_idle:
            self._remove(connection)

    def _tell(self, connection: Connection, status: str, error: RtpoolError, attempt: int, delay: float | None) -> None:
        """Announce what became of one connection; the pool's own status is a summary of all."""
        self.status = self._announced = self._summary()
        self._announce(StatusChange(None, status, error, attempt, delay, connection.connection_id))

    def close_when_idle(self, connection: Connection) -> None:
        """Nobody lives on it now; close it unless that changes within `cleanup_interval`."""

        def close_if_idle() -> None:
            if connection.is_idle and not self._waited_for and self._by_id.get(connection.connection_id) is connection:
                self._retire(connection)

        if connection.idle_timer is not None:
            connection.idle_timer.cancel()
        if connection.state == "open":
            connection.idle_timer = self._loop.call_later(self._options.cleanup_interval, close_if_idle)
        else:
            self._loop.post(close_if_idle)  # nobody needs it dialled

    def _retire(self, connection: Connection) -> None:
        """
        Close a connection in good order: what is queued, a close frame, then the peer's answer or half a second.

        At the pool's end who has not heard all that was said to it gets all the time there is. A socket that is closed
        under it would be reset by the next word it says, and what it had not read yet be lost.
        """
        self._by_id.pop(connection.connection_id, None)
        connection.cancel_redial()
        if connection.idle_timer is not None:
            connection.idle_timer.cancel()  # which would keep all of it for a minute
        if connection.transport is None:
            connection.state = "closed"
            self._gone(connection)
            self._update_status()
            return
        self._closing.add(connection)
        self._publish()
        connection.say_goodbye(self._loop.now)
        self._update_status()
        if connection in self._closing and not (self._stopping and connection.session.unheard):
            self._loop.call_later(GOODBYE_SECONDS, lambda: self._closed(connection))

    def _closed(self, connection: Connection) -> None:
        if connection not in self._closing:
            return
        self._closing.discard(connection)
        connection.session.disconnected()
        self._drop_socket(connection)
        self._tenant.heard(connection, connection.session.events())
        self._gone(connection)
        self._tell_when_closed()

    def _remove(self, connection: Connection, error: RtpoolError | None = None) -> None:
        connection.cancel_redial()
        connection.state = "closed"
        self._by_id.pop(connection.connection_id, None)
        self._gone(connection)
        self._update_status(error)

    def _gone(self, connection: Connection) -> None:
        self._account(connection)
        self._publish()
        self._say_closed(connection)

    def _say_closed(self, connection: Connection) -> None:
        words = "= connection %(connection)d of pool %(pool)s closed"
        self._log.info("connection_closed", words, connection=connection.connection_id)

    def _drop_socket(self, connection: Connection) -> None:
        self._loop.remove(connection)
        connection.close_socket()

    def _account(self, connection: Connection) -> None:
        self._past = self._past.plus(connection.details())

    # Saying what is

    def _set_status(self, status: str, error: RtpoolError | None = None) -> None:
        self.status = status
        if status != self._announced:
            self._announced = status
            self._announce(StatusChange(None, status, error))

    def _update_status(self, error: RtpoolError | None = None) -> None:
        if not self._stopping:
            self._set_status(self._summary(), error)

    def _summary(self) -> str:
        states = {c.state for c in self.all}
        ever = any(c.epoch for c in self.all)
        if not states:
            return "idle"
        if states == {"open"}:
            return "connected"
        if "error" in states:
            return "error"
        if "waiting" in states or (ever and "dialing" in states and "open" not in states):
            return "reconnecting"
        return "connected" if "open" in states else "connecting"


def _settle(waiter: Future[None], error: RtpoolError | None) -> None:
    try:
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
    except InvalidStateError:
        return  # its caller has no more time
