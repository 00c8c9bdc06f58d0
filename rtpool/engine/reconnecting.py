"""
When a connection that failed is dialled again. Everything here runs on the I/O thread, the strategies aside.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from rtpool.actions import LONG_BACK_OFF, Action
from rtpool.engine.connection import Connection
from rtpool.engine.dialer import Dialer
from rtpool.engine.io_loop import IoLoop
from rtpool.engine.logs import Log
from rtpool.errors import HandshakeRefused, RtpoolError
from rtpool.options import PoolOptions, ReconnectPolicy

__all__ = ["Reconnecting"]

#: Seconds a user's strategies may take; they are to compute, not to wait.
DECISION_SECONDS = 2.0

#: Called with the connection, the error and the seconds until the next attempt; None when there will be none.
Verdict = Callable[[Connection, RtpoolError, float | None], None]


class Reconnecting:
    """
    Decides by the pool's `ReconnectPolicy`, by the server's own word, and by what gives hope.

    A connection that does not last `stable_after` seconds is a failed attempt like one that was not opened, so a crash
    loop is held down. The loss of one that lasted is the begin of an outage and no attempt at all.

    Args:
        options: the pool's.
        loop, deciders: the engine's. Strategies have threads of their own: no dial that hangs keeps them waiting.
        dial: opens a connection now.
        retrying: told of the next quick attempt.
        given_up: told that the quick attempts are over.
        rng: source of jitter.
        log: where it is told what is wrong with the strategies.

    Thread-safety: confined to the I/O thread.
    """

    def __init__(
        self,
        options: PoolOptions,
        *,
        loop: IoLoop,
        deciders: Dialer,
        dial: Callable[[Connection], None],
        retrying: Verdict,
        given_up: Verdict,
        rng: random.Random,
        log: Log,
    ) -> None:
        self._options = options
        self._log = log
        self._policy = options.reconnect.resolved(options)
        self._default = ReconnectPolicy().resolved(options)
        self._loop = loop
        self._deciders = deciders
        self._dial = dial
        self._retrying = retrying
        self._given_up = given_up
        self._rng = rng
        #: Monotonic: the server asked for no attempt before, of whichever connection.
        self.not_before = 0.0

    def failed(self, connection: Connection, error: RtpoolError, *, lived: float | None) -> None:
        """
        An attempt failed, or an open connection was lost.

        Args:
            lived: seconds for which it was open; None when it was not opened.
        """
        now = self._loop.now
        connection.state, connection.last_error, connection.failed_at = "waiting", error, now
        connection.cancel_redial()
        lasted = lived is not None and lived >= self._options.stable_after
        connection.crashes = lived is not None and not lasted
        connection.attempts = 0 if lasted else connection.attempts + 1
        if lasted or connection.first_failed_at is None:
            connection.first_failed_at = now
        at_least = self._heed(error)
        if connection.hoped:  # asked before there was reason to hope
            connection.hoped, connection.attempts, connection.first_failed_at = False, 0, None
            self._retrying(connection, error, self._schedule(connection, 0.0))
            return
        if not self._options.auto_reconnect:
            self._end(connection, error, None)
            return
        attempt, first_at, epoch = connection.attempts, connection.first_failed_at, connection.epoch
        loop, clock, decided, log = self._loop, self._loop.clock, self._decided, self._log
        given, default = self._policy, self._default

        def ask(policy: ReconnectPolicy) -> tuple[str, float]:
            number = max(1, attempt)
            return policy.next_delay(attempt_number=number, first_at=first_at or 0.0, now=clock(), error=error)

        def job() -> None:  # the strategies are user code
            try:
                verdict, delay = ask(given)
            except BaseException:  # even sys.exit() in one must not end the attempts
                words = "! a reconnect strategy failed; rtpool's own take its place"
                log.exception("strategy_failed", words, connection=connection.connection_id, attempt=attempt)
                verdict, delay = ask(default)
            loop.post(decided, connection, epoch, attempt, error, verdict, delay, at_least)

        def too_late() -> None:
            if self._awaits_verdict(connection, epoch, attempt, error):
                self._deciders.overdue(job)
                words = "! a reconnect strategy takes more than %(timeout).1f s; rtpool's own takes over"
                log.warning("strategy_late", words, connection=connection.connection_id, timeout=DECISION_SECONDS)
                decided(connection, epoch, attempt, error, *ask(default), at_least)

        self._loop.call_later(DECISION_SECONDS, too_late)
        self._deciders.submit(job)

    def _heed(self, error: RtpoolError) -> float:
        """The seconds an error asks to wait. What the server says at the door is said to every connection of a pool."""
        wait = error.retry_after
        if wait is None:
            wait = LONG_BACK_OFF * self._rng.uniform(1.0, 1.5) if error.action is Action.BACK_OFF_LONG else 0.0
        if error.retry_after is not None or isinstance(error, HandshakeRefused):
            self.not_before = max(self.not_before, self._loop.now + wait)
        return wait

    def _decided(
        self,
        connection: Connection,
        epoch: int,
        attempt: int,
        error: RtpoolError,
        verdict: str,
        delay: float,
        at_least: float,
    ) -> None:
        if not self._awaits_verdict(connection, epoch, attempt, error):
            return  # an attempt was made meanwhile, by request, or the verdict comes too late
        if verdict == "fatal":
            self._end(connection, error, None)
        elif verdict == "stop" and (attempt or not self._options.max_retries):
            checked = self._options.enable_health_check
            again_in = max(at_least, self._options.health_check_interval * self._rng.uniform(0.5, 1.0))
            self._end(connection, error, self._schedule(connection, again_in) if checked else None)
        else:
            self._retrying(connection, error, self._schedule(connection, max(delay, at_least)))

    def _awaits_verdict(self, connection: Connection, epoch: int, attempt: int, error: RtpoolError) -> bool:
        now = (connection.state, connection.epoch, connection.attempts)
        return now == ("waiting", epoch, attempt) and connection.last_error is error and connection.redial is None

    def _end(self, connection: Connection, error: RtpoolError, again_in: float | None) -> None:
        connection.state, connection.at_rest = "error", again_in is None
        self._given_up(connection, error, again_in)

    def _schedule(self, connection: Connection, delay: float) -> float:
        """Dial in so many seconds, or when the server lets us; returns the seconds."""
        delay = max(delay, self.not_before - self._loop.now)
        connection.cancel_redial()
        connection.redial = self._loop.call_later(delay, lambda: self._dial(connection))
        return delay

    def may_dial(self, connection: Connection) -> bool:
        """Whether an attempt may be made now; if not, it is made as soon as the server allows."""
        connection.cancel_redial()
        if self._loop.now >= self.not_before:
            return True
        self._schedule(connection, 0.0)
        return False

    def hurry(self, connection: Connection, *, afresh: bool) -> None:
        """
        There is hope: end the wait, unless the server asked for it.

        Args:
            afresh: a user gave reason to try, so the quick attempts begin anew. Otherwise another connection of the
                pool was opened, or the machine woke, which says nothing to one that opens and does not last, or that
                nothing is to dial by itself.
        """
        if connection.state == "dialing":
            connection.hoped = connection.hoped or afresh
        if connection.state not in ("waiting", "error"):
            return
        if afresh:
            connection.attempts, connection.first_failed_at = 0, None
        elif connection.crashes or connection.at_rest:
            return
        self._dial(connection)
