"""
Access tokens: whose they are, getting them off the I/O thread, and having the next one before the present one expires.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime

from rtpool.engine.dialer import Dialer
from rtpool.engine.io_loop import IoLoop, Timer
from rtpool.engine.logs import Log
from rtpool.errors import InvalidType, JoinRefused, RtpoolError
from rtpool.protocol.jwt import expiry_of

__all__ = ["TokenSource", "Tokens"]

Waiter = Callable[[str | None, RtpoolError | None], None]

#: A token is renewed this part of its remaining life before it expires, and at the most so many seconds; jitter doubles
#: both. The official JavaScript client asks every 25 s instead (protocol 9.2).
LEAD_PART, LEAD_SECONDS = 0.1, 60.0
#: Seconds between attempts to get a better token, doubling from the first to the last.
FIRST_RETRY, LAST_RETRY = 1.0, 60.0


class TokenSource:
    """
    Where the token of one identity comes from.

    Args:
        given: a JWT, a callable that returns one, or None for the connection's own key.

    Thread-safety: confined to the I/O thread, except for construction.
    """

    def __init__(self, given: str | Callable[[], str] | None) -> None:
        self.waiters: list[Waiter] = []
        self.timer: Timer | None = None
        self.replace(given)

    def replace(self, given: str | Callable[[], str] | None) -> None:
        """Take the token from elsewhere from now on."""
        if self.timer is not None:
            self.timer.cancel()
        self.provider = given if callable(given) else None
        self.value = None if callable(given) else given
        #: Whether `value` may be used without asking again.
        self.fresh = self.provider is None
        #: Whether another token is looked for, and how often that was so since a join was let in.
        self.seeking = False
        self.attempts = 0


class Tokens:
    """
    Resolves token sources; a callable is user code and runs on a dial thread, once for all who wait.

    Args:
        loop, dialer: the engine's.
        in_use: whether any join takes its token from a source; what nobody uses is not renewed.
        renewed: called with a source that has a token other than before.
        rng: source of jitter.
        wall: aware wall-clock time.
        log: where failures are told.

    Thread-safety: confined to the I/O thread.
    """

    def __init__(
        self,
        loop: IoLoop,
        dialer: Dialer,
        *,
        in_use: Callable[[TokenSource], bool],
        renewed: Callable[[TokenSource], None],
        rng: random.Random,
        wall: Callable[[], datetime],
        log: Log,
    ) -> None:
        self._loop = loop
        self._dialer = dialer
        self._in_use = in_use
        self._renewed = renewed
        self._rng = rng
        self._wall = wall
        self._log = log

    def resolve(self, source: TokenSource, waiter: Waiter) -> None:
        """Call `waiter(token, error)` on the I/O thread, at once when the token is known and fresh."""
        if source.provider is None or (source.fresh and not self._has_expired(source)):
            waiter(source.value, None)
            return
        source.waiters.append(waiter)
        if len(source.waiters) > 1:
            return
        provider = source.provider

        def job() -> None:
            token, error = _ask(provider)
            self._loop.post(self._resolved, source, provider, token, error)

        self._dialer.submit(job)

    def refused(self, source: TokenSource, token: str | None) -> bool:
        """
        The server refused `token`: look for another, now and then ever more slowly.

        Returns:
            Whether another can come by itself.
        """
        if source.provider is None:
            return False
        if source.value != token:
            self._loop.post(self._renewed, source)  # there is another already
        elif not source.seeking:
            self._seek_later(source, token, "the server refused the token")
        return True

    def release(self, source: TokenSource) -> None:
        """A join that used a source is gone: one that nobody uses is watched no longer."""
        if source.timer is not None and not self._in_use(source):
            source.timer.cancel()
            source.timer, source.seeking = None, False

    def expire(self, source: TokenSource) -> None:
        """A callable is asked again before the next join."""
        source.fresh = source.provider is None

    def _has_expired(self, source: TokenSource) -> bool:
        expires = expiry_of(source.value) if source.value else None
        return expires is not None and expires <= self._wall().timestamp()

    def _resolved(
        self, source: TokenSource, provider: Callable[[], str], token: str | None, error: RtpoolError | None
    ) -> None:
        waiters, source.waiters = source.waiters, []
        if source.provider is not provider:  # replaced while it was asked
            for waiter in waiters:
                self.resolve(source, waiter)
            return
        if error is None:
            source.value, source.fresh = token, True
            self._watch(source)
        for waiter in waiters:
            waiter(source.value, error)

    # Renewal

    def _watch(self, source: TokenSource) -> None:
        """Be there before the token expires."""
        expires = expiry_of(source.value) if source.value else None
        if expires is None:
            return
        left = expires - self._wall().timestamp()
        lead = min(LEAD_SECONDS, max(0.0, left) * LEAD_PART) * self._rng.uniform(1.0, 2.0)
        self._at(source, max(0.0, left - lead), source.value)

    def _seek(self, source: TokenSource, than: str | None) -> None:
        """Ask until there is another token than `than`."""

        source.seeking = True

        def answered(token: str | None, error: RtpoolError | None) -> None:
            if error is None and token != than:
                source.seeking = False
                self._renewed(source)
            else:
                self._seek_later(source, than, str(error) if error else "the callable returns the same token as before")

        self.resolve(source, answered)

    def _seek_later(self, source: TokenSource, than: str | None, why: str) -> None:
        source.seeking, source.fresh = True, False
        source.attempts += 1
        delay = min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(source.attempts - 1, 16)) * self._rng.uniform(0.5, 1.0)
        self._log.warning("! no good access token: %s; asked again in %.1f s", why, delay)
        self._at(source, delay, than)

    def _at(self, source: TokenSource, delay: float, than: str | None) -> None:
        if source.timer is not None:
            source.timer.cancel()

        def due() -> None:
            source.timer = None
            if source.provider is None:
                return
            source.fresh = source.seeking = False
            if self._in_use(source):
                self._seek(source, than)

        source.timer = self._loop.call_later(delay, due)


def _ask(provider: Callable[[], str]) -> tuple[str | None, RtpoolError | None]:
    try:
        token = provider()
        if not isinstance(token, str) or not token:
            raise InvalidType(f"access_token returned {type(token).__name__}, not a token")
    except Exception as cause:  # user code: whatever it raises becomes a typed, retried refusal
        error = JoinRefused(
            f"the access_token callable failed: {type(cause).__name__}; it is asked again",
            code="TokenUnavailable",
            reason=type(cause).__name__,
            retryable=True,
        )
        error.__cause__ = cause
        return None, error
    return token, None
