"""
Access tokens: whose they are, getting them off the I/O thread, and having the next one before the present one expires.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime

from rtpool.actions import Action
from rtpool.checks import check_token
from rtpool.engine.dialer import Dialer
from rtpool.engine.io_loop import IoLoop, Timer
from rtpool.engine.logs import Log
from rtpool.engine.redaction import forget_variables
from rtpool.errors import InvalidType, JoinRefused, RtpoolError
from rtpool.protocol.jwt import expiry_of

__all__ = ["TokenSource", "Tokens", "UNAVAILABLE"]

Waiter = Callable[[str | None, RtpoolError | None], None]
Provider = Callable[[], str]

#: Calls of one callable that may hang before another thread takes the place of one that does.
MAX_CALLS = 3
#: The code of a `JoinRefused` that comes of a callable, not of the server.
UNAVAILABLE = "TokenUnavailable"
#: A token is renewed this part of its remaining life before it expires, and at the most so many seconds; jitter doubles
#: both. The official JavaScript client asks every 25 s instead (protocol 9.2).
LEAD_PART, LEAD_SECONDS = 0.1, 60.0
#: Seconds between attempts to get another token after the server refused what the callable gives, at the most: policies
#: change in minutes at best (protocol 8.1).
LAST_RETRY_REFUSED = 300.0
#: Seconds for which the refusal of a token holds for all who would be sent with it. The server's own cache of a
#: project's keys is as old at the most (protocol 8.1).
BAD_SECONDS = 30.0


class TokenSource:
    """
    Where the token of one identity comes from; shared by every join of that identity.

    Args:
        given: a JWT, a callable that returns one, or None for the connection's own key.

    Thread-safety: confined to the I/O thread, except for construction.
    """

    def __init__(self, given: str | Provider | None) -> None:
        self.waiters: list[Waiter] = []
        self.renewal: Timer | None = None  # due shortly before the token expires
        self.search: Timer | None = None  # due when another token is looked for again
        self.deadline: Timer | None = None  # of the wait for the callable
        self.calls: set[object] = set()  # of the callable, those that have not returned
        #: The token the server refused last for what it is, in which words, and until when it need not be asked again.
        self.bad: str | None = None
        self.bad_words = ""
        self.bad_until = 0.0
        self.pause: Timer | None = None  # until a callable that failed is asked again
        self.replace(given)

    def replace(self, given: str | Provider | None) -> None:
        """Take the token from elsewhere from now on."""
        self.cancel()
        self.provider = given if callable(given) else None
        self.value = None if callable(given) else given
        #: Whether `value` may be used without asking again, until when, when it is renewed; seconds since the epoch.
        self.fresh = self.provider is None
        self.expires: float | None = None
        self.renew_at = 0.0
        #: Asked in vain so often since a join was let in, and until when it is not asked again.
        self.attempts = 0
        self.failed_until = 0.0

    def found_bad(self, token: str | None, words: str, now: float) -> None:
        """The server refused a token for what it is: it is not shown to it again at once, for whatever topic."""
        self.bad, self.bad_words, self.bad_until = token, words, now + BAD_SECONDS

    def cancel(self) -> None:
        """Watch and look for nothing any longer."""
        for timer in (self.renewal, self.search, self.pause):
            if timer is not None:
                timer.cancel()
        self.renewal = self.search = self.pause = None


class Tokens:
    """
    Resolves token sources; a callable is user code and runs on a thread for such, once for all who wait.

    Args:
        loop: the engine's.
        callers: threads for user code; not those that dial, which a callable that hangs must not keep busy.
        patience: seconds a callable may take.
        base_delay, max_delay: seconds between attempts when it fails or has no other token, doubling.
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
        callers: Dialer,
        *,
        patience: float,
        base_delay: float,
        max_delay: float,
        in_use: Callable[[TokenSource], bool],
        renewed: Callable[[TokenSource], None],
        rng: random.Random,
        wall: Callable[[], datetime],
        log: Log,
    ) -> None:
        self._loop = loop
        self._callers = callers
        self._patience = patience
        self._base_delay = base_delay
        self._max_delay = max_delay
        self._in_use = in_use
        self._renewed = renewed
        self._rng = rng
        self._wall = wall
        self._log = log

    def resolve(self, source: TokenSource, waiter: Waiter) -> None:
        """Call `waiter(token, error)` on the I/O thread, at once when the token is known and fresh."""
        provider = source.provider
        if provider is None or (source.fresh and not self._has_expired(source)):
            self._log.keep_secret(source.value)
            waiter(source.value, None)
        else:
            source.waiters.append(waiter)
            if source.deadline is None and source.pause is None:
                # A hundred joins that try again are not a hundred calls.
                pause = source.failed_until - self._loop.now
                if pause > 0:
                    source.pause = self._loop.call_later(pause, lambda: self._ask(source, provider))
                else:
                    self._ask(source, provider)

    def replace(self, source: TokenSource, given: str | Provider) -> None:
        """Give a source another token: told as soon as it is known, however often its callable has to be asked."""
        source.replace(given)
        self._settle_replaced(source)  # whoever waits for the one before, which may never come
        if source.provider is None:
            self._log.keep_secret(source.value)
            self._renewed(source)
        else:
            self._seek(source, None)

    def refused(self, source: TokenSource, token: str | None) -> None:
        """The server refused `token`: look for another, ever more slowly, if it comes from a callable."""
        if source.provider is None:
            return
        if source.value != token:
            self._loop.post(self._renewed, source)  # there is another already
        elif source.search is None:
            self._seek_later(source, token, "the server refused the token", LAST_RETRY_REFUSED)

    def expire(self, source: TokenSource) -> None:
        """A callable is asked again before the next join."""
        source.fresh = source.provider is None

    def release(self, source: TokenSource) -> None:
        """A join that used a source is gone: one that nobody uses is watched no longer."""
        if not self._in_use(source):
            source.cancel()

    def _has_expired(self, source: TokenSource) -> bool:
        return source.expires is not None and source.expires <= self._wall().timestamp()

    # Asking

    def _ask(self, source: TokenSource, provider: Provider) -> None:
        source.pause = None

        def job() -> None:
            token, error = _call(provider)
            self._loop.post(self._returned, job, source, provider, token, error)

        def too_late() -> None:
            if len(source.calls) >= MAX_CALLS and job in source.calls:
                source.calls.discard(job)
                self._callers.overdue(job)  # another thread takes the place of the one that hangs
            words = f"the access_token callable gave no token within {self._patience} s; it is asked again"
            self._answered(source, provider, None, _unavailable(words, "timeout"))

        source.deadline = self._loop.call_later(self._patience, too_late)
        if len(source.calls) < MAX_CALLS:
            source.calls.add(job)
            self._callers.submit(job)

    def _returned(
        self, call: object, source: TokenSource, provider: Provider, token: str | None, error: RtpoolError | None
    ) -> None:
        source.calls.discard(call)
        self._answered(source, provider, token, error)

    def _answered(self, source: TokenSource, provider: Provider, token: str | None, error: RtpoolError | None) -> None:
        if source.provider is not provider:
            return  # replaced while it was asked
        if source.deadline is None and error is not None:
            return  # it was given up before
        if source.pause is not None:
            source.pause.cancel()
            source.pause = None
        if source.deadline is not None:
            source.deadline.cancel()
            source.deadline = None
        changed = error is None and token != source.value
        if error is None:
            source.value, source.fresh = token, True
            self._log.keep_secret(token)
            self._watch(source)
        else:
            source.failed_until = self._loop.now + self._retry_delay(source, self._max_delay)
            self._log.warning("token_unavailable", "! no access token: %(why)s", error=error)
        waiters, source.waiters = source.waiters, []
        for waiter in waiters:
            waiter(source.value, error)
        if changed:
            if source.search is not None:
                source.search.cancel()
                source.search = None
            self._renewed(source)  # joins that live with an older one, and those that wait for a better

    def _settle_replaced(self, source: TokenSource) -> None:
        if source.deadline is not None:
            source.deadline.cancel()
            source.deadline = None
        waiters, source.waiters = source.waiters, []
        for waiter in waiters:
            self.resolve(source, waiter)

    # Renewal

    def _watch(self, source: TokenSource) -> None:
        """Be there before the token expires."""
        if source.renewal is not None:
            source.renewal.cancel()
            source.renewal = None
        expires = expiry_of(source.value) if source.value else None
        left = expires - self._wall().timestamp() if expires is not None else 0.0
        # One that has expired on arrival tells of a wrong clock, perhaps ours: the server judges it, nobody asks again.
        source.expires = expires if left > 0 else None
        if source.expires is None:
            return
        source.renew_at = source.expires - min(LEAD_SECONDS, left * LEAD_PART) * self._rng.uniform(1.0, 2.0)
        self._await_renewal(source)

    def _await_renewal(self, source: TokenSource) -> None:
        value = source.value

        def due() -> None:
            source.renewal = None
            source.fresh = source.provider is None
            if self._in_use(source):
                self._seek(source, value)

        source.renewal = self._loop.call_later(max(0.0, source.renew_at - self._wall().timestamp()), due)

    def clocks_parted(self, source: TokenSource) -> None:
        """The wall clock and the loop's went apart, in a suspend or by a step: a token expires by the former."""
        if source.renewal is not None:
            source.renewal.cancel()
            self._await_renewal(source)

    def _seek(self, source: TokenSource, than: str | None) -> None:
        """Ask until there is another token than `than`."""

        def answered(token: str | None, error: RtpoolError | None) -> None:
            if error is not None:
                if self._in_use(source):
                    self._seek(source, than)
            elif token == than:
                self._seek_later(source, than, "the callable returns the same token as before", self._max_delay)

        self.resolve(source, answered)

    def _seek_later(self, source: TokenSource, than: str | None, why: str, limit: float) -> None:
        source.fresh = source.provider is None
        delay = self._retry_delay(source, limit)
        words = "- no better access token: %(why)s; asked again in %(delay).1f s"
        self._log.warning("token_sought", words, why=why, attempt=source.attempts, delay=delay)

        def due() -> None:
            source.search = None
            source.fresh = source.provider is None
            if self._in_use(source):
                self._seek(source, than)

        if source.search is not None:
            source.search.cancel()
        source.search = self._loop.call_later(delay, due)

    def _retry_delay(self, source: TokenSource, limit: float) -> float:
        source.attempts += 1
        return min(limit, self._base_delay * 2.0 ** min(source.attempts - 1, 32)) * self._rng.uniform(0.5, 1.0)


def _call(provider: Provider) -> tuple[str | None, RtpoolError | None]:
    token = None
    try:
        token = provider()
        if token is None:
            raise InvalidType("access_token returned None, not a token")
        check_token(token)
    except BaseException as cause:  # user code, sys.exit() included: those who wait must hear of it
        token = None  # a traceback that shows variables is not to show what was refused
        forget_variables(cause)
        name = type(cause).__name__
        error = _unavailable(f"the access_token callable failed: {name}; it is asked again", name)
        error.__cause__ = cause
        return None, error
    return token, None


def _unavailable(words: str, reason: str) -> JoinRefused:
    return JoinRefused(words, code=UNAVAILABLE, reason=reason, action=Action.BACK_OFF)
