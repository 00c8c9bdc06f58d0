"""
Everything that may block on the way to a connection, on threads of its own: token callables, the reconnect policy,
DNS, TCP, TLS and the WebSocket upgrade.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit

import attrs
from websocket import (
    WebSocket,
    WebSocketBadStatusException,
    WebSocketException,
    WebSocketProxyException,
    WebSocketTimeoutException,
)

from rtpool.engine.threads import join_all
from rtpool.errors import ConnectionFailed, HandshakeRefused, InvalidValue, PoolClosed, RtpoolError
from rtpool.options import PoolOptions
from rtpool.protocol.refusals import classify_handshake

__all__ = ["Dialer", "Endpoint", "dial"]

log = logging.getLogger("rtpool.io")

Lock = threading.Lock

#: Dial threads at most; ten sockets open in parallel, one slow host does not hold up the rest.
MAX_THREADS = 8
#: How long a dial thread without work lives.
IDLE_SECONDS = 2.0
#: Characters of a refusal's body an error keeps.
BODY_LIMIT = 2_000


@attrs.frozen
class Endpoint:
    """
    Where the WebSocket is.

    Attributes:
        url: ``ws://`` or ``wss://``, without a query; safe to show.
        api_key: the key, None for servers that want none. Never shown.
    """

    url: str
    api_key: str | None = attrs.field(default=None, repr=False)

    @classmethod
    def from_url(cls, url: str, api_key: str | None) -> Endpoint:
        """
        From what a user writes: a project's URL, a realtime base, or a socket's mount.

        ``https://x.supabase.co`` becomes ``wss://x.supabase.co/realtime/v1/websocket``; any other path gets
        ``/websocket`` put behind it unless it ends so.

        Raises:
            InvalidValue: another scheme, no host, credentials or a fragment in it.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidValue(f"the url cannot be read: {error}") from error
        scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme.lower())
        if scheme is None:
            raise InvalidValue(f"the url's scheme must be https, http, wss or ws, not {parts.scheme!r}")
        if not parts.hostname or port == 0:
            raise InvalidValue("the url has no usable host and port")
        if parts.username or parts.password or parts.fragment or parts.query:
            raise InvalidValue("the url must have no credentials, query or fragment; give the key as api_key")
        path = parts.path.rstrip("/") or "/realtime/v1"
        if not path.endswith("/websocket"):
            path += "/websocket"
        return cls(urlunsplit((scheme, parts.netloc, path, "", "")), api_key)

    def request_url(self, options: PoolOptions) -> str:
        """The URL to dial, with version and, unless it goes in a header, the key. Never to be logged."""
        query = urlencode([("vsn", options.protocol), *options.params])
        if self.api_key and options.api_key_in == "query":
            query = f"apikey={quote(self.api_key, safe='')}&{query}"
        return f"{self.url}?{query}"


class Cancelled:
    """Lets `close()` break off a dial: the socket being dialled is shut down."""

    def __init__(self) -> None:
        # Guards: _cancelled, _sock
        self._lock = Lock()
        self._cancelled = False
        self._sock: socket.socket | None = None

    def watch(self, sock: socket.socket | None) -> None:
        """The socket to shut down; raises `PoolClosed` when it is too late already."""
        with self._lock:
            self._sock = sock
            cancelled = self._cancelled
        if cancelled:
            raise PoolClosed("the pool was closed while it was connecting")

    def cancel(self) -> None:
        """Break off."""
        with self._lock:
            self._cancelled = True
            sock = self._sock
        if sock is not None:
            try:
                # Wakes a thread that waits in recv on this socket; closing it would not.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError as error:
                log.debug("- a dial was over before it could be broken off: %s", error)


def dial(endpoint: Endpoint, options: PoolOptions, cancelled: Cancelled) -> socket.socket:
    """
    Open one WebSocket. Blocks up to `connection_timeout`.

    Returns:
        The connected socket, through its handshakes; no byte beyond them has been read.

    Raises:
        HandshakeRefused: the server answered with an HTTP status.
        ConnectionFailed: DNS, TCP, TLS, proxy or handshake failed; the cause is chained.
    """
    deadline = time.monotonic() + options.connection_timeout
    parts = urlsplit(endpoint.url)
    where = f"{parts.scheme}://{parts.netloc}"
    sock: socket.socket | None = None
    try:
        if options.proxy is None:
            secure = parts.scheme == "wss"
            sock = _connect_direct(parts.hostname or "", parts.port, secure, options, deadline, cancelled)
        return _upgrade(endpoint, options, sock, deadline)
    except RtpoolError:
        _close(sock)
        raise
    except WebSocketBadStatusException as error:
        _close(sock)
        raise _refused(where, error) from error
    except (OSError, WebSocketException, ValueError) as error:
        _close(sock)
        raise _failed(where, error, options) from error


def _connect_direct(
    host: str, port: int | None, secure: bool, options: PoolOptions, deadline: float, cancelled: Cancelled
) -> socket.socket:
    sock = socket.create_connection(
        (host, port or (443 if secure else 80)), timeout=max(0.001, deadline - time.monotonic())
    )
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        cancelled.watch(sock)
        if secure:
            context = options.ssl_context or ssl.create_default_context()
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            plain = sock
            sock = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
            cancelled.watch(sock)
            sock.do_handshake()
        return sock
    except BaseException:
        sock.close()
        raise


def _upgrade(endpoint: Endpoint, options: PoolOptions, sock: socket.socket | None, deadline: float) -> socket.socket:
    header = [f"{name}: {value}" for name, value in options.headers]
    if endpoint.api_key and options.api_key_in == "header":
        header.append(f"x-api-key: {endpoint.api_key}")
    settings: dict[str, Any] = {
        "header": header,
        "suppress_origin": True,
        "redirect_limit": 0,
        "timeout": max(0.001, deadline - time.monotonic()),
    }
    if sock is not None:
        sock.settimeout(settings["timeout"])
        settings["socket"] = sock
    sslopt = {"context": options.ssl_context or ssl.create_default_context()} if endpoint.url.startswith("wss") else {}
    client = WebSocket(sslopt=sslopt, skip_utf8_validation=True)
    try:
        client.connect(  # type: ignore[no-untyped-call, unused-ignore]
            endpoint.request_url(options), **settings, **_proxy_settings(options)
        )
    except BaseException:
        _close(client.sock)
        raise
    connected = client.sock
    assert connected is not None
    client.sock = None  # ours from here on: its own close would block and swallow errors
    return connected


def _proxy_settings(options: PoolOptions) -> dict[str, Any]:
    if options.proxy is None:
        # Said outright, or websocket-client would look into the environment's http_proxy.
        return {"http_no_proxy": ["*"]}
    parts = urlsplit(options.proxy)
    settings: dict[str, Any] = {
        "http_proxy_host": parts.hostname,
        "http_proxy_port": parts.port,
        "proxy_type": parts.scheme,
        "http_proxy_timeout": options.connection_timeout,
        "http_no_proxy": ["none.invalid"],  # an empty list would exempt loopback addresses
    }
    if parts.username:
        settings["http_proxy_auth"] = (unquote(parts.username), unquote(parts.password or ""))
    return settings


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()


def _refused(where: str, error: WebSocketBadStatusException) -> HandshakeRefused:
    raw = error.resp_body or b""
    body = (raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw))[:BODY_LIMIT]
    action = classify_handshake(error.status_code, body)
    advice = "" if action.retryable else " It is not tried again with the same key."
    words = body.strip() or "no body"
    return HandshakeRefused(
        f"{where} refused the connection with HTTP {error.status_code}: {words}.{advice}",
        status=error.status_code,
        body=body,
        retryable=action.retryable,
    )


def _failed(where: str, error: Exception, options: PoolOptions) -> ConnectionFailed:
    if isinstance(error, (WebSocketTimeoutException, TimeoutError)):
        return ConnectionFailed(f"no connection to {where} within {options.connection_timeout} s")
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectionFailed(
            f"the certificate of {where} is not trusted: {error.verify_message}; pass ssl_context for a private CA",
            retryable=False,
        )
    if isinstance(error, WebSocketProxyException):
        return ConnectionFailed(f"the proxy did not connect to {where}: {error}")
    if isinstance(error, socket.gaierror):
        return ConnectionFailed(f"the host of {where} cannot be found: {error.strerror}")
    return ConnectionFailed(f"no connection to {where}: {error}")


class Dialer:
    """
    The dial threads.

    Args:
        name: the pool's, for thread names.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # Guards: _jobs, _threads, _idle, _stopping, _dials
        self._lock = Lock()
        self._ready = threading.Condition(self._lock)
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads: dict[int, threading.Thread] = {}
        self._idle = 0
        self._stopping = False
        self._dials: set[Cancelled] = set()

    def submit(self, job: Callable[[], None]) -> bool:
        """
        Run `job` on a dial thread. It must catch what it raises and post its result to the I/O thread.

        Returns:
            False when the dialer was stopped.
        """
        thread = None
        with self._lock:
            if self._stopping:
                return False
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._ready.notify()
            elif len(self._threads) < MAX_THREADS:
                index = next(i for i in range(MAX_THREADS) if i not in self._threads)
                thread = self._threads[index] = threading.Thread(
                    target=self._work, args=(index,), name=f"rtpool-{self._name}-dial-{index}", daemon=True
                )
        if thread is not None:
            thread.start()
        return True

    def dial(
        self,
        endpoint: Endpoint,
        options: PoolOptions,
        done: Callable[[socket.socket | None, RtpoolError | None], bool],
    ) -> bool:
        """
        Dial on a dial thread, then call `done(sock, error)` there; a socket `done` does not accept is closed.
        """
        cancelled = Cancelled()

        def job() -> None:
            with self._lock:
                if self._stopping:
                    return
                self._dials.add(cancelled)
            try:
                sock = dial(endpoint, options, cancelled)
            except RtpoolError as error:
                done(None, error)
            else:
                if not done(sock, None):
                    sock.close()
            finally:
                with self._lock:
                    self._dials.discard(cancelled)

        return self.submit(job)

    def stop(self) -> None:
        """Forget what waits, break off what runs. Does not wait."""
        with self._lock:
            self._stopping = True
            self._jobs.clear()
            dials = list(self._dials)
            self._ready.notify_all()
        for cancelled in dials:
            cancelled.cancel()

    def join(self, deadline: float) -> list[str]:
        """Wait for the threads until `deadline` (monotonic); return the names of those that still run."""
        with self._lock:
            threads = list(self._threads.values())
        return join_all(threads, deadline)

    def _work(self, index: int) -> None:
        while True:
            with self._lock:
                if not self._jobs and not self._stopping:
                    self._idle += 1
                    self._ready.wait(IDLE_SECONDS)
                    self._idle -= 1
                if not self._jobs:
                    del self._threads[index]
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception:
                log.exception("! a dial thread of pool %s failed outside a dial", self._name)
