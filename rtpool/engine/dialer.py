"""
Everything that may block on the way to a connection, on threads of its own: token callables, the reconnect policy,
DNS, TCP, TLS and the WebSocket upgrade.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import attrs

from rtpool.engine.descriptors import close
from rtpool.engine.logs import Log
from rtpool.engine.redaction import Redactor
from rtpool.engine.streams import Address, Cancelled, failure, open_stream
from rtpool.engine.threads import PoolThread, join_all
from rtpool.engine.upgrade import upgrade
from rtpool.errors import ConnectionFailed, InvalidValue, PoolClosed, RtpoolError
from rtpool.options import PoolOptions

__all__ = ["Dialed", "Dialer", "Endpoint", "MAX_THREADS", "dial"]

Lock = threading.Lock

#: Dial threads at most; ten sockets open in parallel, one slow host does not hold up the rest.
MAX_THREADS = 8
#: Threads beyond those that hang in what never returns.
MAX_LOST = 24
#: How long a dial thread without work lives.
IDLE_SECONDS = 2.0

#: Of a host's name, once it is ASCII; Docker's names have underscores.
_HOST = re.compile(r"[A-Za-z0-9._~-]+|[0-9A-Fa-f:.]+(%[A-Za-z0-9._~-]+)?")


@attrs.frozen(eq=False)
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
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InvalidValue("the api_key has characters no key has, such as a line break; its value is not shown")
        path = quote(parts.path.rstrip("/") or "/realtime/v1", safe="/%:@!$&'()*+,;=~-._")
        if not path.endswith("/websocket"):
            path += "/websocket"
        return cls(urlunsplit((scheme, _netloc(parts.hostname, port), path, "", "")), api_key)

    def query(self, options: PoolOptions) -> str:
        """The query of the upgrade: the version and, unless it goes in a header, the key. Never to be logged."""
        query = urlencode([("vsn", options.protocol), *options.params])
        if self.api_key and options.api_key_in == "query":
            query = f"apikey={quote(self.api_key, safe='')}&{query}"
        return query

    def headers(self, options: PoolOptions) -> list[tuple[str, str]]:
        """The headers of the upgrade beyond the protocol's own. Never to be logged."""
        headers = list(options.headers)
        if self.api_key and options.api_key_in == "header":
            headers.append(("x-api-key", self.api_key))
        return headers


def _netloc(host: str, port: int | None) -> str:
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise InvalidValue(f"the url's host {host!r} is no name of a host: {error}") from error
    if not _HOST.fullmatch(name):
        raise InvalidValue(f"the url's host {host!r} is no name of a host")
    name = f"[{name}]" if ":" in name else name
    return name if port is None else f"{name}:{port}"


class Dialed(NamedTuple):
    """
    A WebSocket that was opened.

    Attributes:
        sock: connected, through its handshakes; no byte beyond them has been read.
        clock_skew: seconds that the server's clock is ahead of ours, or a second or so less.
    """

    sock: socket.socket
    clock_skew: float


def dial(endpoint: Endpoint, options: PoolOptions, cancelled: Cancelled) -> Dialed:
    """
    Open one WebSocket. Blocks up to `connection_timeout`.

    Raises:
        HandshakeRefused: the server answered with an HTTP status.
        ProxyRefused: the proxy did.
        ConnectionFailed: DNS, TCP, TLS, proxy or handshake failed; the cause is chained.
        PoolClosed: it was broken off.
    """
    deadline = time.monotonic() + options.connection_timeout
    parts = urlsplit(endpoint.url)
    where = f"{parts.scheme}://{parts.netloc}"
    hide = Redactor(options, endpoint.api_key)
    sock: socket.socket | None = None
    try:
        sock = open_stream(Address.from_url(endpoint.url), options, deadline, cancelled)
        skew = upgrade(sock, endpoint.url, endpoint.query(options), endpoint.headers(options), where, deadline, hide)
        return Dialed(sock, skew)
    except (ConnectionFailed, PoolClosed) as error:
        _close(sock)
        hide.clean(error)
        raise
    except Exception as error:  # of four libraries; whoever waits for this dial must hear of every one
        _close(sock)
        failed = failure(where, error, options.connection_timeout, hide)
        failed.__cause__ = error
        hide.clean(failed)
        raise failed from failed.__cause__


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        close(sock)


class Dialer:
    """
    The dial threads.

    Args:
        name: the pool's, for thread names.
        first: the number of the first thread.
        log: where failures outside of a dial are told.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self, name: str, log: Log, *, first: int = 0) -> None:
        self._name = name
        self._first = first
        self._log = log
        # Guards: _jobs, _threads, _lost, _started, _working, _idle, _stopping, _dials
        self._lock = Lock()
        self._ready = threading.Condition(self._lock)
        self._jobs: deque[tuple[object, Callable[[], None]]] = deque()
        self._threads: dict[int, threading.Thread] = {}
        self._working: dict[object, int] = {}  # which thread does which job
        self._lost: set[threading.Thread] = set()  # they hang, and others take their places
        self._started: tuple[PoolThread, ...] = ()  # all that may live; replaced whole
        self._idle = 0
        self._stopping = False
        self._dials: set[Cancelled] = set()

    @property
    def threads(self) -> tuple[threading.Thread, ...]:
        """Those that run, and perhaps some that have ended."""
        return self._started

    def submit(self, job: Callable[[], None], name: object = None) -> bool:
        """
        Run `job` on a dial thread. It must catch what it raises and post its result to the I/O thread.

        Args:
            name: what `overdue` may call it.

        Returns:
            False when the dialer was stopped.
        """
        thread = None
        with self._lock:
            if self._stopping:
                return False
            self._jobs.append((name if name is not None else job, job))
            if self._idle >= len(self._jobs):
                self._ready.notify()
            elif len(self._threads) < MAX_THREADS:
                index, thread = self._new_thread()
        if thread is not None:
            self._start(index, thread)
        return True

    def _start(self, index: int, thread: threading.Thread) -> None:
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left: what waits is done by another, or when there is one again
            words = "! pool %(pool)s cannot start %(missing)s, the system has no thread left"
            self._log.warning("thread_not_started", words, missing=thread.name)
            with self._lock:
                del self._threads[index]

    def dial(
        self,
        endpoint: Endpoint,
        options: PoolOptions,
        done: Callable[[Dialed | None, RtpoolError | None], bool],
    ) -> bool:
        """
        Dial on a dial thread, then call `done(dialed, error)` there; a socket `done` does not accept is closed.
        """

        def job() -> None:
            try:
                with self.breakable() as cancelled:
                    dialed = dial(endpoint, options, cancelled)
            except RtpoolError as error:
                done(None, error)
            except BaseException as cause:  # the option dial is user code: even sys.exit() must not leave a dial open
                failed = ConnectionFailed(f"the dial of {endpoint.url} was left by {type(cause).__name__}")
                failed.__cause__ = cause
                done(None, failed)
            else:
                if not done(dialed, None):
                    close(dialed.sock)

        return self.submit(job, done)

    def overdue(self, name: object) -> None:
        """A job did not end in time: forget it if it waits still, or let another thread take its thread's place."""
        with self._lock:
            self._jobs = deque(entry for entry in self._jobs if entry[0] is not name)
            index = self._working.get(name)
            if index is not None and len(self._lost) < MAX_LOST:
                del self._working[name]
                self._lost.add(self._threads.pop(index))
        self.revive()

    @contextlib.contextmanager
    def breakable(self) -> Iterator[Cancelled]:
        """
        What is done within is broken off by `stop`.

        Raises:
            PoolClosed: the dialer was stopped, before or meanwhile.
        """
        cancelled = Cancelled()
        with self._lock:
            self._dials.add(cancelled)
            stopping = self._stopping
        try:
            if stopping:
                cancelled.cancel()
            cancelled.check()
            yield cancelled
        except ConnectionFailed as error:
            try:
                cancelled.check()  # a socket that was shut down under it looks like any other trouble
            except PoolClosed as closed:
                raise closed from error
            raise
        finally:
            with self._lock:
                self._dials.discard(cancelled)

    def revive(self) -> None:
        """Start a thread if something waits and none could be started for it."""
        thread = None
        with self._lock:
            if self._jobs and not self._idle and len(self._threads) < MAX_THREADS and not self._stopping:
                index, thread = self._new_thread()
        if thread is not None:
            self._start(index, thread)

    def stop(self) -> None:
        """Forget what waits, break off what runs. Does not wait."""
        with self._lock:
            self._stopping = True
            self._jobs.clear()
            dials = list(self._dials)
            self._ready.notify_all()
        for cancelled in dials:
            cancelled.cancel()

    def after_fork(self) -> None:
        """In a forked child: what was under way is the parent's, and a job that forked is the last to run here."""
        self._lock = Lock()
        self._ready = threading.Condition(self._lock)
        self._stopping = True
        self._jobs.clear()
        self._threads.clear()
        self._started = ()
        self._working.clear()
        self._lost.clear()
        dials, self._dials = self._dials, set()
        for cancelled in dials:
            cancelled.after_fork()

    def join(self, deadline: float) -> list[str]:
        """Wait for the threads until `deadline` (monotonic); return the names of those that still run."""
        return join_all(self._started, deadline)

    def _new_thread(self) -> tuple[int, threading.Thread]:
        assert self._lock.locked()
        index = next(i for i in range(MAX_THREADS) if i not in self._threads)
        name = f"rtpool-{self._name}-dial-{self._first + index}"
        thread = PoolThread(self._work, name, (index,))
        self._threads[index] = thread
        self._started = (*(other for other in self._started if not other.over), thread)
        return index, thread

    def _work(self, index: int) -> None:
        while True:
            with self._lock:
                if not self._jobs and not self._stopping:
                    self._idle += 1
                    self._ready.wait(IDLE_SECONDS)
                    self._idle -= 1
                if not self._jobs:
                    self._threads.pop(index, None)
                    return
                name, job = self._jobs.popleft()
                self._working[name] = index
            try:
                job()
            except Exception:
                self._log.bug("dial_failed", "! a dial thread of pool %(pool)s failed outside a dial")
            with self._lock:
                self._working.pop(name, None)
                if threading.current_thread() in self._lost:  # its place is taken
                    self._lost.discard(threading.current_thread())
                    return
