"""
Opening byte streams: TCP, proxies, a dial function of the user's, and TLS over any of them. The WebSocket dial and REST
calls both go this way.
"""

from __future__ import annotations

import base64
import contextlib
import encodings.idna  # noqa: F401 - of `socket.getaddrinfo`, which imports it at its first call; see `prepare`
import errno
import os
import selectors
import socket
import ssl
import threading
import traceback
from collections.abc import Callable
from http.client import BadStatusLine, LineTooLong
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from websocket import WebSocketTimeoutException

from rtpool.actions import Action
from rtpool.engine import descriptors
from rtpool.engine.logs import logger_for
from rtpool.engine.timed import HEAD_LIMIT, TimedSocket, read_answer, request_head, seconds_left
from rtpool.errors import ConnectionFailed, PoolClosed, ProxyRefused
from rtpool.options import Dial, PoolOptions
from rtpool.protocol.refusals import classify_proxy, classify_socks, printable

__all__ = ["Address", "Cancelled", "failure", "keep_alive", "open_stream", "prepare"]

Lock = threading.Lock

#: OpenSSL's names of what a TLS handshake fails by with these two sides however often it is tried, and what may help.
TLS_REFUSALS: dict[tuple[str, ...], tuple[str, str]] = {
    (
        "CERTIFICATE_REQUIRED",
        "ALERT_UNKNOWN_CA",
        "ALERT_BAD_CERTIFICATE",
        "ALERT_CERTIFICATE_",
        "ALERT_UNSUPPORTED_CERTIFICATE",
        "ALERT_ACCESS_DENIED",
        "ALERT_HANDSHAKE_FAILURE",
    ): ("refused our side of TLS", "if it wants a client certificate, pass an ssl_context with load_cert_chain"),
    (
        "ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
        "NO_PROTOCOLS_AVAILABLE",
    ): ("has no TLS version in common with us", "pass an ssl_context that allows one the server has"),
}

#: What `getaddrinfo` calls a name that does not exist, or has no address. A machine without a network is told the same
#: on some systems: it is asked for again, without haste. The rest, such as EAI_AGAIN, is trouble of the resolver's.
NAME_UNKNOWN = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)

#: One without a descriptor of its own, which a fork would copy.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)

#: What a socket says that goes on connecting while nobody waits for it.
UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK})

#: What the kernel takes for TCP_USER_TIMEOUT.
LARGEST_MILLISECONDS = 2**31 - 1


def prepare(options: PoolOptions) -> None:
    """
    Import, on the calling thread, what a dial with these options needs.

    A module that another thread is importing at a fork is locked in the child for ever.
    """
    if options.proxy is not None and options.proxy.startswith("socks"):
        with contextlib.suppress(ImportError):  # the dial says what to install
            import python_socks.sync  # noqa: F401


class Address(NamedTuple):
    """
    Where a stream goes.

    Attributes:
        host: a name or an IP address, an IPv6 one without brackets.
        port: 1 to 65535.
        secure: whether TLS is spoken.
    """

    host: str
    port: int
    secure: bool

    @classmethod
    def from_url(cls, url: str) -> Address:
        """Of a checked URL; ports default to the scheme's."""
        parts = urlsplit(url)
        secure = parts.scheme in ("wss", "https")
        return cls(parts.hostname or "", parts.port or (443 if secure else 80), secure)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Cancelled:
    """Lets `close()` break off whoever waits on a socket in the making: the socket is shut down."""

    def __init__(self) -> None:
        # Guards: _cancelled, _sock
        self._lock = Lock()
        self._cancelled = False
        self._sock: socket.socket | None = None
        self._number: tuple[int, int] | None = None  # its descriptor, see `_identity`

    def watch(self, sock: socket.socket | None) -> None:
        """The socket to shut down; raises `PoolClosed` when it is too late already."""
        number = None
        if sock is not None:
            descriptors.note(sock)
            number = _identity(sock.fileno())  # of a user's class, perhaps
        with self._lock:
            self._sock, self._number = sock, number
        self.check()

    def check(self) -> None:
        """Raise `PoolClosed` when it was broken off."""
        with self._lock:
            cancelled = self._cancelled
        if cancelled:
            raise PoolClosed("the pool was closed meanwhile")

    def cancel(self) -> None:
        """Break off."""
        with self._lock:
            self._cancelled = True
            sock = self._sock
        if sock is not None:
            # Wakes a thread that waits in recv on this socket; closing it would not. An error says that it was over.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def after_fork(self) -> None:
        """In a forked child: it is broken off here, and the socket, which is the parent's, hears nothing of it."""
        self._lock = Lock()
        self._cancelled = True
        sock, self._sock = self._sock, None
        if (
            sock is not None and self._number is not None and sock.fileno() < 0
        ):  # TLS has just taken its descriptor over
            with contextlib.suppress(OSError):
                if _identity(self._number[0]) == self._number:
                    os.close(self._number[0])


def _identity(descriptor: int) -> tuple[int, int]:
    """Of an open descriptor: its number, which may be used again, and the inode, which tells."""
    return descriptor, os.fstat(descriptor).st_ino


def open_stream(address: Address, options: PoolOptions, deadline: float, cancelled: Cancelled) -> socket.socket:
    """
    Open a byte stream to `address` the way the options say: directly, through a proxy, or by their dial function; then
    TLS where the address wants it.

    Args:
        deadline: monotonic, for all of it. A name's look-up is the system's and may take longer; then it is over.
        cancelled: breaks it off.

    Raises:
        ConnectionFailed: a proxy refused, or the dial function raised or returned no usable socket.
        PoolClosed: it was broken off.
        OSError: anything else; `failure` words it.
    """
    sock: socket.socket | None = None
    try:
        if options.dial is not None:
            sock = _by_users_dial(options.dial, address, seconds_left(deadline))
        elif options.proxy is not None:
            sock = _through_proxy(options.proxy, address, deadline, cancelled)
        else:
            sock = _connect(address.host, address.port, deadline, cancelled)
        cancelled.watch(sock)
        keep_alive(sock, options)
        if address.secure:
            if isinstance(sock, ssl.SSLSocket):
                raise ConnectionFailed(
                    "the option dial returned a TLS socket, and the url asks for TLS as well: return a plain socket, "
                    "or give the url as http:// or ws://",
                    action=Action.FATAL,
                )
            context = options.ssl_context or ssl.create_default_context()
            if not isinstance(context, ssl.SSLContext):
                raise ConnectionFailed(
                    "the option ssl_context was made before gevent patched the process, and would stop it while it "
                    "waits: make it afterwards",
                    action=Action.FATAL,
                )
            sock = _wrapped(context, sock, address.host)
            cancelled.watch(sock)
            sock.settimeout(seconds_left(deadline))
            sock.do_handshake()
        return sock
    except BaseException:
        if sock is not None:
            descriptors.close(sock)
        raise


def _wrapped(context: ssl.SSLContext, sock: socket.socket, host: str) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    except BaseException as error:
        # When the connection is reset by now, `ssl.SSLSocket._create` has taken the descriptor, and leaves it open.
        for frame, _ in traceback.walk_tb(error.__traceback__):
            made = frame.f_locals.get("self")
            if isinstance(made, ssl.SSLSocket):
                made.close()
        raise


def _connect(host: str, port: int, deadline: float, cancelled: Cancelled) -> socket.socket:
    """TCP to the first address of `host` that answers; each gets a fair share of the time that is left."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    trouble = OSError(f"{host} has no address")
    for index, (family, kind, protocol, _, address) in enumerate(found):
        share = seconds_left(deadline) / (len(found) - index)
        sock: socket.socket | None = None
        try:
            with descriptors.making:
                sock = socket.socket(family, kind, protocol)
                descriptors.note(sock)
            sock.setblocking(False)
            code = sock.connect_ex(address)
            # Not before: on Linux alone a socket that is not connecting yet takes notice of a shutdown.
            cancelled.watch(sock)
            if code in UNDER_WAY:
                code = _outcome(sock, share)
                cancelled.check()
            if code:
                raise OSError(code, os.strerror(code))
            sock.settimeout(share)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except BaseException as error:
            if sock is not None:
                descriptors.close(sock)
            if not isinstance(error, OSError):
                raise
            trouble = error
    raise trouble


def _outcome(sock: socket.socket, seconds: float) -> int:
    """Wait for a socket that is connecting; 0, or the number of its error."""
    with _Selector() as selector:
        selector.register(sock, selectors.EVENT_WRITE)
        if not selector.select(seconds):
            raise TimeoutError("the time allowed is over")
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def keep_alive(sock: socket.socket, options: PoolOptions) -> None:
    """
    Have the kernel notice a peer that is gone, at most `heartbeat_interval` + `heartbeat_timeout` after its last sign
    of life: the time after which a heartbeat gives it up. It counts also while heartbeats do not, for joins are under
    way or a full mailbox blocks reading. It works in whole seconds; heartbeats of less are quicker than it.

    ``SO_KEEPALIVE`` asks an idle peer whether it is there: first after the heartbeat's interval (``TCP_KEEPIDLE``, on
    macOS ``TCP_KEEPALIVE``), so that heartbeats that are answered leave nothing to ask, then up to three times
    (``TCP_KEEPCNT``) spread over the heartbeat's time-out (``TCP_KEEPINTVL``).

    ``TCP_USER_TIMEOUT`` (RFC 5482; Linux) ends a connection whose peer for that long acknowledged nothing, or had no
    room for more; retransmission alone goes on for a quarter of an hour. Where it is set, Linux ends keepalive by it
    and no more by the count, so it runs out half an interval before the last question does. It must not be as short
    as the heartbeat's time-out: a server that works off joins reads nothing meanwhile, and is alive.

    A socket that is not TCP is left alone, and what the system lacks is left out. A refusal is logged: heartbeats do
    without all of it.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    idle = _whole(options.heartbeat_interval)
    count = min(3, _whole(options.heartbeat_timeout))
    interval = _whole(options.heartbeat_timeout / count)
    patience = min(int((idle + (count - 0.5) * interval) * 1000), LARGEST_MILLISECONDS)
    wanted = [
        ("TCP_KEEPIDLE", idle),
        ("TCP_KEEPALIVE", idle),
        ("TCP_KEEPINTVL", interval),
        ("TCP_KEEPCNT", count),
        ("TCP_USER_TIMEOUT", patience),
    ]
    levels = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    levels += [(socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in wanted if hasattr(socket, name)]
    for level, name, value in levels:
        try:
            sock.setsockopt(level, name, value)
        except OSError as error:
            words = "- socket option %(option)d cannot be set to %(value)d: %(why)s"
            logger_for(options, "io").debug("option_not_set", words, option=name, value=value, error=error)


def _whole(seconds: float) -> int:
    """Seconds as keepalive takes them: whole, 1 to 32,767 (Linux's limit)."""
    return max(1, min(int(seconds), 32_767))


def _by_users_dial(dial: Dial, address: Address, seconds: float) -> socket.socket:
    try:
        sock = dial(address.host, address.port, seconds)
    except Exception as error:  # user code: whatever it raises is told in our words
        raise ConnectionFailed(
            f"the option dial failed to reach {address}: {type(error).__name__}; the cause is chained"
        ) from error
    trouble = None
    if not isinstance(sock, socket.socket):
        raise ConnectionFailed(
            f"the option dial returned {type(sock).__name__} for {address}, not a connected socket.socket",
            action=Action.FATAL,
        )
    try:
        sock.getpeername()
        if sock.type != socket.SOCK_STREAM:
            trouble = f"a socket of type {sock.type!r}"
    except OSError as error:
        trouble = f"a socket that is not connected ({error})"
    if trouble:
        descriptors.close(sock)
        raise ConnectionFailed(
            f"the option dial returned {trouble} for {address}, not a connected stream socket", action=Action.FATAL
        )
    return sock


def _through_proxy(proxy: str, address: Address, deadline: float, cancelled: Cancelled) -> socket.socket:
    parts = urlsplit(proxy)
    at = Address(parts.hostname or "", parts.port or 0, secure=False)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    try:
        sock = _connect(at.host, at.port, deadline, cancelled)
    except TimeoutError:
        raise
    except OSError as error:
        raise failure(f"the proxy {at}", error, 0.0) from error
    try:
        stream = TimedSocket(sock, deadline, HEAD_LIMIT)
        if parts.scheme == "http":
            _http_tunnel(stream, at, address, user, password)
        else:
            _socks_tunnel(stream, parts.scheme, at, address, user, password)
    except BaseException:
        descriptors.close(sock)
        raise
    return sock


def _http_tunnel(stream: TimedSocket, at: Address, address: Address, user: str, password: str) -> None:
    headers = [("Host", str(address))]
    if user:
        secret = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        headers.append(("Proxy-Authorization", f"Basic {secret}"))
    stream.sendall(request_head("CONNECT", str(address), headers))
    answer = read_answer(stream, "CONNECT", expected=range(200, 300), limit=0)
    if 200 <= answer.status < 300:
        return
    hint = "; check the user and password in the option proxy" if answer.status in (401, 407) else ""
    words = printable(answer.reason)[:300] or "no reason"
    raise ProxyRefused(
        f"the proxy {at} refused to connect to {address} with HTTP {answer.status}: {words}{hint}",
        status=answer.status,
        reason=answer.reason,
        action=classify_proxy(answer.status),
        retry_after=answer.retry_after,
    )


class _Reached:
    """Gives python-socks the stream to the proxy that is open already, so that our deadline and `close` hold."""

    def __init__(self, stream: TimedSocket) -> None:
        self._stream = stream

    def connect(self, dest_host: str, dest_port: int, timeout: float | None = None) -> TimedSocket:
        return self._stream


def _socks_tunnel(stream: TimedSocket, scheme: str, at: Address, address: Address, user: str, password: str) -> None:
    try:
        from python_socks import ProxyError, ProxyType
        from python_socks.sync import Proxy
    except ImportError as error:
        raise ConnectionFailed(
            f"a {scheme} proxy needs the package python-socks; install it with: pip install 'rtpool[socks]'",
            action=Action.FATAL,
        ) from error
    if scheme.startswith("socks4") and ":" in address.host:
        raise ConnectionFailed(
            f"a SOCKS4 proxy cannot reach the IPv6 address {address}; use socks5", action=Action.FATAL
        )
    version = ProxyType.SOCKS5 if scheme.startswith("socks5") else ProxyType.SOCKS4
    by_proxy = scheme in ("socks4a", "socks5h")
    proxy = Proxy(
        version,
        at.host,
        at.port,
        user or None,
        password or None,
        by_proxy,
        forward=_Reached(stream),  # type: ignore[arg-type]
    )
    try:
        proxy.connect(address.host, address.port)
    except ProxyError as error:
        code = error.error_code or 0
        raise ProxyRefused(
            f"the {scheme} proxy {at} did not connect to {address}: {error}",
            status=code,
            reason=str(error),
            action=classify_socks(code, str(error)),
        ) from error


def failure(
    where: str, error: Exception, seconds: float, hide: Callable[[str], str] = lambda text: text
) -> ConnectionFailed:
    """
    Trouble on the way to `where`, in our words and with what it calls for; to be raised from `error`.

    Args:
        where: safe to show.
        seconds: that were allowed.
        hide: takes what is secret out of the other side's words.
    """
    words, action = _diagnosis(where, error, seconds, hide)
    return ConnectionFailed(words, action=action)


def _diagnosis(where: str, error: Exception, seconds: float, hide: Callable[[str], str]) -> tuple[str, Action]:
    if isinstance(error, (WebSocketTimeoutException, TimeoutError)):
        return f"no connection to {where} within {seconds:g} s", Action.BACK_OFF
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", str(error))  # one that Python code raises has neither this nor a reason
        return f"the certificate of {where} is not trusted: {why}; pass ssl_context for a private CA", Action.FATAL
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None) or ""
        for names, (words, hint) in TLS_REFUSALS.items():
            if any(name in reason for name in names):
                return f"{where} {words}: {reason}; {hint}", Action.FATAL
    if isinstance(error, socket.gaierror):
        action = Action.BACK_OFF_LONG if error.errno in NAME_UNKNOWN else Action.BACK_OFF
        return f"the host of {where} cannot be found: {error.strerror}", action
    if isinstance(error, UnicodeError):
        return f"the host of {where} is no name of a host", Action.FATAL
    # Refused, reset, unreachable, no descriptors left, nonsense in place of an answer: all of it may pass.
    words = printable(hide(str(error)))[:300] or type(error).__name__
    if isinstance(error, (BadStatusLine, LineTooLong)):
        words = f"the answer is no HTTP: {words}"
    return f"no connection to {where}: {words}", Action.BACK_OFF
