"""
Refusing bad arguments at the call, in one voice.
"""

from __future__ import annotations

from rtpool.errors import InvalidType, InvalidValue

__all__ = ["check_callable", "check_name", "check_timeout", "check_token", "check_type"]

#: Seconds; more no lock or selector waits.
LONGEST = 1_000_000_000


def check_type(name: str, value: object, kind: type) -> None:
    """Raise `InvalidType` unless `value` is a `kind`."""
    if not isinstance(value, kind):
        raise InvalidType(f"{name} must be {kind.__name__}, not {type(value).__name__}")


def check_callable(callback: object) -> None:
    """Raise `InvalidType` unless `callback` can be called."""
    if not callable(callback):
        raise InvalidType(f"the callback must be callable, not {type(callback).__name__}")


def check_name(name: str, value: object, limit: int) -> None:
    """Refuse what cannot be a name on the wire: no str, empty, over `limit` bytes of UTF-8, lone surrogates."""
    if not isinstance(value, str):
        raise InvalidType(f"{name} must be str, not {type(value).__name__}")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidValue(f"{name} cannot be written as UTF-8: {error}") from error
    if not value:
        raise InvalidValue(f"{name} must not be empty")
    if size > limit:
        raise InvalidValue(f"{name} has {size} bytes of UTF-8, at most {limit} are possible: {value[:40]!r}…")


def check_token(token: object) -> None:
    """Refuse what is no access token: no str, or one with characters no token has; its value is never shown."""
    if not isinstance(token, str):
        raise InvalidType(f"access_token must be a str or a callable that returns one, not {type(token).__name__}")
    bare = token.strip()
    if not bare or not (bare.isascii() and bare.isprintable()):
        raise InvalidValue("access_token is empty, or has characters no token has, such as a line break")


def check_timeout(timeout: object) -> None:
    """Refuse what is no number of seconds from 0 to `LONGEST`."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise InvalidType(f"timeout must be a number of seconds, not {type(timeout).__name__}")
    if not -LONGEST <= timeout <= LONGEST:
        raise InvalidValue(f"timeout must be a finite number of seconds, at most {LONGEST}")
    if timeout < 0:
        raise InvalidValue(f"timeout must be a finite number of seconds >= 0, not {timeout!r}")
