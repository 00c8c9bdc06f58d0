"""
Access tokens: whose they are, and getting them off the I/O thread.
"""

from __future__ import annotations

from collections.abc import Callable

from rtpool.engine.dialer import Dialer
from rtpool.engine.io_loop import IoLoop
from rtpool.errors import InvalidType, JoinRefused, RtpoolError

__all__ = ["TokenSource", "Tokens"]

Waiter = Callable[[str | None, RtpoolError | None], None]


class TokenSource:
    """
    Where the token of one identity comes from.

    Args:
        given: a JWT, a callable that returns one, or None for the connection's own key.

    Thread-safety: confined to the I/O thread, except for construction.
    """

    def __init__(self, given: str | Callable[[], str] | None) -> None:
        self.provider = given if callable(given) else None
        self.value = None if callable(given) else given
        self.fresh = self.provider is None
        self.waiters: list[Waiter] = []


class Tokens:
    """
    Resolves token sources; a callable is user code and runs on a dial thread, once for all who wait.

    Thread-safety: confined to the I/O thread.
    """

    def __init__(self, loop: IoLoop, dialer: Dialer) -> None:
        self._loop = loop
        self._dialer = dialer
        self._sources: list[TokenSource] = []

    def resolve(self, source: TokenSource, waiter: Waiter) -> None:
        """Call `waiter(token, error)` on the I/O thread, at once when the token is known and fresh."""
        if source.fresh or source.provider is None:
            waiter(source.value, None)
            return
        if source not in self._sources:
            self._sources.append(source)
        source.waiters.append(waiter)
        if len(source.waiters) > 1:
            return
        provider = source.provider

        def job() -> None:
            token, error = _ask(provider)
            self._loop.post(self._resolved, source, token, error)

        self._dialer.submit(job)

    def expire(self) -> None:
        """Callables are asked again before the next join."""
        for source in self._sources:
            source.fresh = False

    def _resolved(self, source: TokenSource, token: str | None, error: RtpoolError | None) -> None:
        if error is None:
            source.value, source.fresh = token, True
        waiters, source.waiters = source.waiters, []
        for waiter in waiters:
            waiter(source.value, error)


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
