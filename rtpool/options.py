"""
What can be configured: one frozen, validated `PoolOptions`, and the reconnect policy made of tenacity strategies.
"""

from __future__ import annotations

import difflib
import logging
import math
import random
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import attrs
from tenacity import Future, RetryCallState
from tenacity.retry import retry_base, retry_if_exception
from tenacity.stop import stop_after_attempt, stop_base
from tenacity.wait import wait_base

from rtpool.errors import InvalidType, InvalidValue, RtpoolError

__all__ = ["Dial", "FullJitter", "PoolOptions", "ReconnectPolicy", "make_options"]

#: No option is larger: seconds beyond this no clock or selector takes.
LARGEST = 1_000_000_000

WaitStrategy = wait_base | Callable[[RetryCallState], float]
StopStrategy = stop_base | Callable[[RetryCallState], bool]
#: Host, port and the seconds allowed -> a connected stream socket.
Dial = Callable[[str, int, float], socket.socket]
RetryStrategy = retry_base | Callable[[RetryCallState], bool]


class FullJitter(wait_base):
    """
    A tenacity wait: a uniform delay between 0 and ``min(maximum, base * 2 ** (attempt - 1))``.

    Full jitter spreads the clients of a restarted server best; see the AWS architecture note on exponential back-off.

    Args:
        base: seconds, > 0.
        maximum: seconds, >= `base`.
        exponential: False keeps the bound at `base` for every attempt.
        rng: source of chance; None makes a `random.Random` of its own.
    """

    def __init__(
        self, base: float, maximum: float, *, exponential: bool = True, rng: random.Random | None = None
    ) -> None:
        self._base = base
        self._maximum = maximum
        self._exponential = exponential
        self._rng = rng or random.Random()

    def __call__(self, retry_state: RetryCallState) -> float:
        # 2 ** 64 is far beyond any maximum; the clamp keeps a very long outage from overflowing a float.
        factor = 2.0 ** min(retry_state.attempt_number - 1, 64) if self._exponential else 1.0
        return self._rng.uniform(0.0, min(self._maximum, self._base * factor))


def _is_retryable(error: BaseException) -> bool:
    return bool(getattr(error, "retryable", True))


def _callable_or_none(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not callable(value):
        raise InvalidType(f"{attribute.name} must be callable or None, not {type(value).__name__}")


@attrs.frozen(kw_only=True)
class ReconnectPolicy:
    """
    When to try again, as tenacity strategies. They are user code and run on a dial thread; nothing sleeps in them.

    Args:
        wait: seconds before the next attempt; None takes `FullJitter` over the pool's `base_delay` and `max_delay`.
        stop: when the quick attempts of an outage end; None takes `stop_after_attempt(max_retries)`. Afterwards the
            pool's status is ``error`` and the health check goes on trying.
        retry: whether an error is worth another attempt; None takes each error's `retryable`.

    Thread-safety: immutable; the strategies are called from one dial thread at a time per connection.
    """

    wait: WaitStrategy | None = attrs.field(default=None, validator=_callable_or_none)
    stop: StopStrategy | None = attrs.field(default=None, validator=_callable_or_none)
    retry: RetryStrategy | None = attrs.field(default=None, validator=_callable_or_none)

    def resolved(self, options: PoolOptions) -> ReconnectPolicy:
        """
        This policy with every gap filled from `options`.
        """
        return ReconnectPolicy(
            wait=self.wait
            or FullJitter(options.base_delay, options.max_delay, exponential=options.exponential_backoff),
            stop=self.stop or stop_after_attempt(options.max_retries),
            retry=self.retry or retry_if_exception(_is_retryable),
        )

    def next_delay(
        self, *, attempt_number: int, first_at: float, now: float, error: BaseException
    ) -> tuple[Literal["retry", "stop", "fatal"], float]:
        """
        Ask the strategies about a failed attempt.

        Args:
            attempt_number: 1 for the first failure of an outage.
            first_at, now: monotonic seconds.
            error: what failed.

        Returns:
            ``("retry", seconds)``, ``("stop", seconds)`` when the quick attempts are used up, or ``("fatal", 0.0)``
            when trying again cannot help.
        """
        if self.wait is None or self.stop is None or self.retry is None:
            raise InvalidValue("an unresolved ReconnectPolicy cannot be asked; call resolved(options) first")
        # tenacity's engine keeps thread-local statistics and sleeps; its strategies need only the state object.
        state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
        state.start_time, state.attempt_number = first_at, attempt_number
        state.outcome, state.outcome_timestamp = Future.construct(attempt_number, error, True), now
        if not self.retry(state):
            return "fatal", 0.0
        state.upcoming_sleep = delay = max(0.0, float(self.wait(state)))
        if not math.isfinite(delay):
            raise InvalidValue(f"the wait strategy returned {delay}: no attempt would ever be made")
        return ("stop" if self.stop(state) else "retry"), delay


def _number(low: float, *, exclusive: bool = False, integer: bool = False) -> Any:
    kind = "an integer" if integer else "a number"
    bound = f"{'>' if exclusive else '>='} {low}"

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        allowed = (int,) if integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise InvalidType(f"option {attribute.name} must be {kind} {bound}, not {value!r}")
        if not -LARGEST <= value <= LARGEST:
            raise InvalidValue(f"option {attribute.name} must be {kind} {bound}, and finite: at most {LARGEST}")
        if value < low or (exclusive and value == low):
            raise InvalidValue(f"option {attribute.name} must be {kind} {bound}, not {value!r}")

    return check


def _or_none(validator: Any) -> Any:
    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None:
            validator(instance, attribute, value)

    return check


def _one_of(*allowed: str) -> Any:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in allowed:
            raise InvalidValue(f"option {attribute.name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")

    return check


def _of_type(*types: type) -> Any:
    names = " or ".join("None" if t is type(None) else t.__name__ for t in types)

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, types):
            raise InvalidType(f"option {attribute.name} must be {names}, not {type(value).__name__}")

    return check


def _ssl_context(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    # By name: gevent puts another class in its place, and one from before is refused with the reason when it dials.
    kinds = [(kind.__module__, kind.__name__) for kind in type(value).__mro__]
    if value is not None and ("ssl", "SSLContext") not in kinds:
        raise InvalidType(f"option {attribute.name} must be SSLContext or None, not {type(value).__name__}")


def _pairs(option: str, value: Any) -> tuple[tuple[str, str], ...]:
    try:
        pairs = tuple((name, text) for name, text in (value.items() if isinstance(value, Mapping) else value))
    except (TypeError, ValueError) as error:
        raise InvalidType(f"option {option} must be a mapping or a sequence of (name, value) pairs") from error
    for name, text in pairs:
        if not isinstance(name, str) or not isinstance(text, str):
            raise InvalidType(f"option {option}: {name!r} must be a str with a str value")
        if any("\ud800" <= c <= "\udfff" for c in name + text):  # an encoder would name all it was given, keys too
            raise InvalidValue(f"option {option}: {name!r} or its value cannot be written as UTF-8")
    return pairs


def _params(value: Any) -> tuple[tuple[str, str], ...]:
    params = _pairs("params", value)
    for name, _ in params:
        if name in ("", "vsn", "apikey"):
            raise InvalidValue(f"option params: {name!r} is rtpool's own; use protocol or api_key")
    return params


def _headers(value: Any) -> tuple[tuple[str, str], ...]:
    headers = _pairs("headers", value)
    for name, text in headers:
        if not _HEADER_NAME.fullmatch(name) or any(c in text for c in "\r\n\0"):
            raise InvalidValue(f"option headers: {name!r} is not a legal header name, or its value has a line break")
        if name.lower() in _OWN_HEADERS:
            raise InvalidValue(f"option headers: {name} belongs to the protocol; rtpool sends it itself")
    return headers


#: RFC 9110 §5.6.2.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Of the upgrade and of REST calls; a second one would break the request.
_OWN_HEADERS = {
    "connection",
    "content-length",
    "content-type",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-version",
    "transfer-encoding",
    "upgrade",
}


def _proxy(_instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise InvalidType(f"option {attribute.name} must be a URL or None, not {type(value).__name__}")
    try:
        parts = urlsplit(value)
        usable = parts.hostname and parts.port and parts.scheme in ("http", "socks4", "socks4a", "socks5", "socks5h")
    except ValueError:
        usable = None
    if not usable:
        # The value may hold credentials: it is not repeated.
        raise InvalidValue(f"option {attribute.name} must look like http://host:port or socks5://host:port")
    for secret in (unquote(parts.username or ""), unquote(parts.password or "")):
        # RFC 1929 counts their bytes in one byte; python-socks takes ASCII only, and would name what it cannot encode.
        if parts.scheme != "http" and not (secret.isascii() and secret.isprintable() and len(secret) < 256):
            raise InvalidValue(f"option {attribute.name}: a SOCKS user or password is ASCII of at most 255 characters")


_POSITIVE = _number(0, exclusive=True)
_AT_LEAST_ONE = _number(1, integer=True)


@attrs.frozen(kw_only=True)
class PoolOptions:
    """
    Every option of a pool. Seconds are floats. Validated at construction, immutable afterwards.

    Attributes:
        max_connections: hard cap on sockets; one that is saying goodbye, for half a second at the most, comes on top.
        max_channels_per_connection: the server allows 100 a socket; placement fills one before opening another.
        connection_timeout: seconds for DNS, TCP, TLS and the upgrade together.
        join_timeout: seconds for a join's reply, counted from the moment its frame is written and the join before it on
            the socket is answered: the server runs them one by one. It delays a refusal by 5 s, so less than about 6
            turns refusals into time-outs.
        max_joins_per_second: pool-wide pacing, as the project's limit; a server that finds it reached drops the whole
            socket. So that it never does, whatever the network does to the times, so many go out in 1.3 s, a quarter of
            them at once. When the server refuses joins all the same the pace is halved, and doubles with every minute
            without another refusal.
        max_joins_in_flight: joins awaiting a reply on one socket; the server runs them one at a time.
        heartbeat_interval, heartbeat_timeout: seconds between heartbeats, and for a reply to one. The server closes a
            socket that was silent for 60 s.
        auto_reconnect: False reports a lost connection once and stops.
        max_retries: quick attempts of an outage; then status ``error``, and the health check goes on trying.
        base_delay, max_delay, exponential_backoff: the default back-off, with full jitter.
        reconnect: tenacity strategies in place of that default.
        stable_after: seconds a connection must last to end an outage; one that breaks sooner is a failed attempt, so
            that a server that lets in and drops is not hammered.
        enable_health_check, health_check_interval: attempts after the quick ones, and the audit.
        cleanup_interval: seconds an idle socket lives after its last channel left.
        num_workers: callback threads.
        mailbox_limit, overflow: events waiting per Channel, and what happens to more: ``"drop_oldest"``,
            ``"drop_newest"``, ``"block"`` (the socket is read no further, TCP pushes back) or ``"close"``.
        send_buffer_limit: pushes kept per Channel while it is not joined, or waits its turn (`max_events_per_second`);
            beyond it the call fails, or waits too.
        max_presence_calls, presence_window: presence calls a join may make in so many seconds, as the server counts
            them (its `CLIENT_PRESENCE_MAX_CALLS` and `…_WINDOW_MS`); more are merged into the newest.
        max_events_per_second: pool-wide pacing, as of joins, of broadcasts and of `Channel.push`, None for none; more
            wait their turn within their time-outs. The server's limit counts each broadcast and each delivery of it, so
            with n receivers a project's limit allows its (n + 1)th part. What is sent by REST counts there and waits
            for nothing here.
        max_payload_size: bytes of a broadcast or a presence, None for any: what a Realtime server is set to
            (`max_payload_size_in_kb`, times 1,000, plus 500). It counts them as Erlang's external term format, and so
            does rtpool. Not for plain Phoenix.
        max_frame_size: bytes of one sent frame, None for any; over its limit a server drops the socket. The refs are
            taken for long ones, so up to 20 bytes less may be refused.
        max_message_size: bytes of one received message; a larger one recycles the connection.
        protocol: ``"2.0.0"`` or ``"1.0.0"``, the Phoenix serializer.
        topic_prefix: put before every topic on the wire; ``""`` for plain Phoenix.
        after_fork: what the pool does in a forked child, which never touches the parent's sockets. ``"close"``: its
            Channels are closed there and keep their callbacks; the next `Channel.subscribe` connects anew, a running
            iterator ends with `PoolForked`. ``"resubscribe"``: what was subscribed is so again, at once and on
            connections of the child's own, after a `Gap` whose cause is ``"fork"``. What was under way is the parent's.
        ssl_context: an `ssl.SSLContext`, None for the platform's defaults.
        proxy: ``http://[user:password@]host:port``, or ``socks5://…`` where python-socks is installed.
        dial: opens the sockets in place of rtpool, e.g. to a Unix socket or through a tunnel: called on a dial thread
            (by `RealtimePool.broadcast` on the caller's) with host, port and the seconds allowed, it returns a
            connected stream `socket.socket`. TLS, if the URL asks for it, is spoken over that. Not with `proxy`.
        headers: extra headers of the upgrade request and of REST calls, a mapping or pairs; ``Host`` replaces the
            URL's.
        api_key_in: ``"query"``, or ``"header"`` (``x-api-key``) which keeps the key out of URLs.
        params: more parameters of the connection's URL, a mapping or pairs; what a plain Phoenix socket is given, or
            Realtime's ``log_level``.
        logger: a `logging.Logger` or `LoggerAdapter` to write to instead of ``rtpool``; a logger gets children ``io``,
            ``pool``, ``session``, ``dispatch`` and ``debug``.
        debug: log every message at DEBUG, payloads elided.
        recorder_size: entries that the flight recorder keeps, see `RealtimePool.debug_dump`: so many about the pool and
            its connections, and so many about topics and frames. 0 turns it off.
        record_frames: record every message too, without keys and tokens, payloads elided.

    Raises:
        InvalidValue, InvalidType: naming the option, what it takes and what it got.
    """

    max_connections: int = attrs.field(default=10, validator=_AT_LEAST_ONE)
    max_channels_per_connection: int = attrs.field(default=100, validator=_AT_LEAST_ONE)
    connection_timeout: float = attrs.field(default=30.0, validator=_POSITIVE)
    join_timeout: float = attrs.field(default=10.0, validator=_POSITIVE)
    max_joins_per_second: float = attrs.field(default=50, validator=_POSITIVE)
    max_joins_in_flight: int = attrs.field(default=5, validator=_AT_LEAST_ONE)
    heartbeat_interval: float = attrs.field(default=25.0, validator=_POSITIVE)
    heartbeat_timeout: float = attrs.field(default=10.0, validator=_POSITIVE)
    auto_reconnect: bool = attrs.field(default=True, validator=_of_type(bool))
    max_retries: int = attrs.field(default=3, validator=_number(0, integer=True))
    base_delay: float = attrs.field(default=1.0, validator=_POSITIVE)
    max_delay: float = attrs.field(default=30.0, validator=_POSITIVE)
    exponential_backoff: bool = attrs.field(default=True, validator=_of_type(bool))
    reconnect: ReconnectPolicy = attrs.field(factory=ReconnectPolicy, validator=_of_type(ReconnectPolicy))
    stable_after: float = attrs.field(default=10.0, validator=_number(0))
    enable_health_check: bool = attrs.field(default=True, validator=_of_type(bool))
    health_check_interval: float = attrs.field(default=30.0, validator=_POSITIVE)
    cleanup_interval: float = attrs.field(default=60.0, validator=_number(0))
    num_workers: int = attrs.field(default=4, validator=_AT_LEAST_ONE)
    mailbox_limit: int = attrs.field(default=10_000, validator=_AT_LEAST_ONE)
    overflow: str = attrs.field(
        default="drop_oldest", validator=_one_of("drop_oldest", "drop_newest", "block", "close")
    )
    send_buffer_limit: int = attrs.field(default=100, validator=_AT_LEAST_ONE)
    max_presence_calls: int = attrs.field(default=5, validator=_AT_LEAST_ONE)
    presence_window: float = attrs.field(default=30.0, validator=_POSITIVE)
    max_events_per_second: float | None = attrs.field(default=None, validator=_or_none(_POSITIVE))
    max_payload_size: int | None = attrs.field(default=3_000_500, validator=_or_none(_number(500, integer=True)))
    max_frame_size: int | None = attrs.field(default=5_000_000, validator=_or_none(_number(1024, integer=True)))
    max_message_size: int = attrs.field(default=5 * 1024 * 1024, validator=_number(1024, integer=True))
    protocol: str = attrs.field(default="2.0.0", validator=_one_of("2.0.0", "1.0.0"))
    topic_prefix: str = attrs.field(default="realtime:", validator=_of_type(str))
    after_fork: str = attrs.field(default="close", validator=_one_of("close", "resubscribe"))
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, validator=_ssl_context, repr=False)
    proxy: str | None = attrs.field(default=None, validator=_proxy, repr=False)
    dial: Dial | None = attrs.field(default=None, validator=_callable_or_none, repr=False)
    headers: Sequence[tuple[str, str]] = attrs.field(default=(), converter=_headers, repr=False)
    api_key_in: str = attrs.field(default="query", validator=_one_of("query", "header"))
    params: Sequence[tuple[str, str]] = attrs.field(default=(), converter=_params, repr=False)
    logger: logging.Logger | logging.LoggerAdapter[Any] | None = attrs.field(
        default=None, validator=_of_type(logging.Logger, logging.LoggerAdapter, type(None)), repr=False
    )
    debug: bool = attrs.field(default=False, validator=_of_type(bool))
    recorder_size: int = attrs.field(default=500, validator=_number(0, integer=True))
    record_frames: bool = attrs.field(default=False, validator=_of_type(bool))

    @property
    def is_supabase(self) -> bool:
        """Whether the server is a Supabase Realtime server, as `topic_prefix` tells; else plain Phoenix."""
        return self.topic_prefix.startswith("realtime:")

    def __attrs_post_init__(self) -> None:
        if self.max_delay < self.base_delay:
            raise InvalidValue(f"option max_delay ({self.max_delay}) must be >= base_delay ({self.base_delay})")
        if self.dial is not None and self.proxy is not None:
            raise InvalidValue("options dial and proxy exclude each other: the dial function is the way to the server")


_NAMES = frozenset(attribute.name for attribute in attrs.fields(PoolOptions))


def make_options(options: PoolOptions | None, overrides: Mapping[str, Any]) -> PoolOptions:
    """
    One `PoolOptions` out of an optional base and keyword overrides.

    Raises:
        InvalidType: an unknown option, with the nearest known name.
        InvalidValue: an option out of range.
    """
    if options is not None and not isinstance(options, PoolOptions):
        raise InvalidType(f"options must be a PoolOptions or None, not {type(options).__name__}")
    for name in overrides:
        if name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; see rtpool.PoolOptions for the list"
            raise InvalidType(f"there is no option {name!r}{hint}")
    try:
        return attrs.evolve(options, **overrides) if options is not None else PoolOptions(**overrides)
    except RtpoolError:
        raise
    except (TypeError, ValueError) as error:  # an attrs-level refusal is still ours to word
        raise InvalidValue(f"the options cannot be used: {error}") from error
