"""
A pool that lets other processes of the same user look at it: `RealtimePool.serve_debug`.

One JSON object a line, over a Unix socket. ``{"ask": "stats"}`` is answered with ``stats``, ``health``, ``issues``,
``name``, ``url``, ``pid``, ``at`` (monotonic seconds of the statistics), ``age`` (seconds since the pool was made),
``mailbox_limit`` and ``commands`` (whether there are any). ``{"ask": "cleanup"}`` closes idle connections, where
commands are allowed, and is answered with ``closed``, their number. Whatever else is asked gets an ``error``.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rtpool.checks import check_type
from rtpool.debug.inspector import Inspector
from rtpool.debug.issues import Issue
from rtpool.debug.sockets import Listener, check_platform, default_directory, is_ours, listen_at, make_directory
from rtpool.debug.thresholds import Thresholds
from rtpool.engine import descriptors
from rtpool.engine.engine import Engine
from rtpool.engine.health import health_of
from rtpool.engine.snapshot import stats_of
from rtpool.engine.threads import PoolThread, closing, join_all, outcome_of, start_thread
from rtpool.errors import ConnectionFailed, InvalidType, RtpoolError

if TYPE_CHECKING:
    from rtpool.pool import RealtimePool

__all__ = ["DebugServer", "picture_of", "serve"]

#: Clients at a time; more are told so and turned away.
MAX_CLIENTS = 8
#: Bytes of a request.
MAX_LINE = 1_024
#: Seconds a request may take to arrive once it began, and its answer to be taken; for which a client may ask nothing.
TRANSFER_SECONDS, IDLE_SECONDS = 10.0, 300.0
#: Seconds a command may take.
COMMAND_SECONDS = 5.0
#: Seconds in which nobody is let in after the system had no descriptor left.
REST_SECONDS = 1.0
#: Seconds `close` waits for the thread; and all of them together at the end of the process.
CLOSE_SECONDS, EXIT_SECONDS = 5.0, 1.0

#: Those that serve, for the end of the process and for a forked child.
_serving: set[DebugServer] = set()


class _Client:
    """Who is served: what came of the next request, what is left of the last answer, until when that may take."""

    __slots__ = ("answer", "deadline", "received", "sock", "unwanted")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()
        self.answer = memoryview(b"")
        self.unwanted = False  # it goes when it has its answer
        self.deadline = time.monotonic() + IDLE_SECONDS


class DebugServer:
    """
    Lets processes of the same user look at a pool; made by `RealtimePool.serve_debug`. It ends with `close`, with the
    pool, and with the process, and its file is removed.

    Attributes:
        path: of the socket, absolute.
        allow_commands: whether clients may do more than look.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self, pool: RealtimePool, engine: Engine, listener: Listener, *, allow_commands: bool) -> None:
        self.path = listener.path
        self.allow_commands = allow_commands
        self._listener = listener
        self._engine: Engine | None = engine
        self._inspector = Inspector(Thresholds(), engine)
        self._log = engine.logs.debug
        self._over = threading.Event()
        self._forgotten = self._forked = False
        self._clients: set[_Client] = set()
        self._resting_until: float | None = None
        self._thread = PoolThread(self._run, f"rtpool-{engine.name}-serve")
        with descriptors.making:
            self._selector = selectors.DefaultSelector()
            self._wake_in, self._wake_out = socket.socketpair()
            descriptors.note(self._wake_in)
            descriptors.note(self._wake_out)
        for sock in (self._wake_in, self._wake_out):
            sock.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ, self._hear)
        self._selector.register(listener.sock, selectors.EVENT_READ, self._let_in)
        # The callback runs wherever the collector strikes: it takes no lock.
        self._pool = weakref.ref(pool, self._pool_forgotten)

    # From any thread

    @property
    def threads(self) -> tuple[threading.Thread, ...]:
        """What the pool's `close` waits for."""
        return (self._thread,)

    @property
    def closed(self) -> bool:
        """
        Whether it serves no longer; so it is in a forked child.
        """
        return self._forked or self._over.is_set()

    def close(self) -> None:
        """
        Serve no longer. Idempotent; when it returns the file is gone, unless the thread is busy for over five seconds.
        In a forked child it does nothing: the socket is the parent's.
        """
        if not self._forked:
            self.stop()
            self._join(time.monotonic() + CLOSE_SECONDS)

    def stop(self) -> None:
        """End soon, without a wait: the pool ends."""
        self._over.set()
        self._wake()

    def _join(self, deadline: float) -> None:
        with closing():
            for name in join_all(self.threads, deadline):
                self._log.warning("thread_left", "- thread %(left)s did not stop in time", left=name)

    def _pool_forgotten(self, _: object) -> None:
        self._forgotten = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is awake already, or has ended
            self._wake_out.send(b"\0")

    def _start(self, engine: Engine) -> None:
        engine.attend(self)
        _serving.add(self)
        try:
            interrupt = start_thread(self._thread)
        except RuntimeError as error:
            raise ConnectionFailed(f"pool {engine.name} has no thread to serve with: {error}") from error
        if interrupt is not None:
            raise interrupt

    def _after_fork(self) -> None:
        """The thread is the parent's, and so is the file. Of the descriptors only the selector's is open still."""
        self._forked, self._engine = True, None
        self._over = threading.Event()
        self._over.set()
        self._selector.close()

    def __enter__(self) -> DebugServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<rtpool.debug.DebugServer {self.path} {'closed' if self.closed else 'serves'}>"

    # On its own thread

    def _run(self) -> None:
        try:
            while not (self.closed or self._forgotten):
                self._turn(time.monotonic())
        except Exception:  # a bug of ours; nobody is to wait for what has ended
            self._log.bug("serving_failed", "! the thread that serves %(path)s failed", path=self.path)
        finally:
            if not self._forked:
                self._end()

    def _end(self) -> None:
        self._over.set()
        self._listener.remove_file()  # before nobody listens: a file of a living process is replaced by nobody
        for sock in (self._listener.sock, self._wake_in, self._wake_out, *(client.sock for client in self._clients)):
            descriptors.close(sock)
        self._clients.clear()
        self._selector.close()
        _serving.discard(self)
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dismiss(self)

    def _turn(self, now: float) -> None:
        if self._resting_until is not None and now >= self._resting_until:
            self._resting_until = None
            self._selector.register(self._listener.sock, selectors.EVENT_READ, self._let_in)
        for client in [client for client in self._clients if client.deadline <= now]:
            self._drop(client)
        deadlines = [client.deadline for client in self._clients]
        if self._resting_until is not None:
            deadlines.append(self._resting_until)
        due = min(deadlines, default=math.inf)
        for key, _ in self._selector.select(None if due == math.inf else max(0.0, due - now)):
            if self.closed:
                return
            if isinstance(key.data, _Client):
                self._attend_to(key.data)
            else:
                key.data()

    def _hear(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_in.recv(4_096)

    def _let_in(self) -> None:
        try:
            with descriptors.making:
                sock, _ = self._listener.sock.accept()
                descriptors.note(sock)
        except (BlockingIOError, ConnectionAbortedError):  # it went away again
            return
        except OSError as error:  # no descriptor left: the next would be tried at full speed
            words = "- nobody can be let in at %(path)s for %(rest).1f s: %(why)s"
            self._log.warning("serving_rests", words, path=self.path, rest=REST_SECONDS, error=error)
            self._selector.unregister(self._listener.sock)
            self._resting_until = time.monotonic() + REST_SECONDS
            return
        sock.setblocking(False)
        if not is_ours(sock):
            self._log.warning("looker_refused", "- another user's process was turned away at %(path)s", path=self.path)
            descriptors.close(sock)
            return
        client = _Client(sock)
        self._clients.add(client)
        self._selector.register(sock, selectors.EVENT_READ, client)
        if len(self._clients) > MAX_CLIENTS:
            self._refuse(client, f"{MAX_CLIENTS} others look at this pool already")
            self._attend_to(client)

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        self._selector.unregister(client.sock)
        descriptors.close(client.sock)

    def _attend_to(self, client: _Client) -> None:
        """Write what is left of an answer, or read and answer what is asked."""
        try:
            if not client.answer and not self._read(client):
                self._drop(client)
                return
            if client.answer:
                client.answer = client.answer[client.sock.send(client.answer) :]
        except BlockingIOError:
            pass
        except OSError:  # it is gone
            self._drop(client)
            return
        if client.unwanted and not client.answer:
            self._drop(client)
            return
        if not client.answer and b"\n" in client.received:
            self._answer(client)
        if not (client.answer or client.received):
            client.deadline = time.monotonic() + IDLE_SECONDS
        self._selector.modify(client.sock, selectors.EVENT_WRITE if client.answer else selectors.EVENT_READ, client)

    def _read(self, client: _Client) -> bool:
        """Whether it is still there."""
        data = client.sock.recv(MAX_LINE + 1 - len(client.received))
        if not client.received:
            client.deadline = time.monotonic() + TRANSFER_SECONDS
        client.received += data
        if b"\n" in client.received:
            self._answer(client)
        elif len(client.received) > MAX_LINE:
            self._refuse(client, f"a request may have {MAX_LINE} bytes")
        return bool(data)

    def _answer(self, client: _Client) -> None:
        line, _, rest = bytes(client.received).partition(b"\n")
        client.received[:] = rest
        client.answer = _line(self._reply(line))
        client.deadline = time.monotonic() + TRANSFER_SECONDS

    def _refuse(self, client: _Client, why: str) -> None:
        client.received.clear()
        client.answer, client.unwanted = _line({"error": why}), True
        client.deadline = time.monotonic() + TRANSFER_SECONDS

    # What is asked

    def _reply(self, line: bytes) -> dict[str, Any]:
        asks: dict[object, Callable[[Engine], dict[str, Any]]] = {"stats": self._picture, "cleanup": self._clean_up}
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return {"error": "a request is a JSON object on a line"}
        ask = request.get("ask") if isinstance(request, dict) else None
        engine = self._engine
        if not isinstance(ask, str) or ask not in asks:
            return {"error": f'ask for one of: {", ".join(map(str, asks))}, as in {{"ask": "stats"}}'}
        if engine is None:
            return {"error": "the pool is closed"}
        try:
            return asks[ask](engine)
        except Exception as error:  # a bug of ours must not end the service
            self._log.bug("serving_failed", "! what was asked at %(path)s could not be answered", path=self.path)
            return {"error": f"it could not be answered: {type(error).__name__}; see the program's log"}

    def _picture(self, engine: Engine) -> dict[str, Any]:
        return picture_of(engine, lambda: self._inspector.look(engine, self._over), commands=self.allow_commands)

    def _clean_up(self, engine: Engine) -> dict[str, Any]:
        if not self.allow_commands:
            return {"error": "the program allows no commands; it would by serve_debug(…, allow_commands=True)"}
        if not engine.started:
            return {"closed": 0}
        done: Future[int] = Future()
        try:
            engine.post(engine.coordinator.clean_up, done)
            return {"closed": outcome_of(done, COMMAND_SECONDS)}
        except FutureTimeout:
            return {"error": f"the pool did not clean up within {COMMAND_SECONDS} s"}
        except RtpoolError as error:
            return {"error": str(error)}


def picture_of(engine: Engine, issues: Callable[[], Sequence[Issue]], *, commands: bool = False) -> dict[str, Any]:
    """
    What ``{"ask": "stats"}`` is answered with, for `rtpool.debug.picture.Picture`. It takes as long as `issues` does.
    """
    at = time.monotonic()
    return {
        "stats": stats_of(engine).as_dict(),
        "health": health_of(engine).as_dict(),
        "issues": [issue.as_dict() for issue in issues()],
        "name": engine.name,
        "url": engine.endpoint.url,
        "pid": os.getpid(),
        "at": at,
        "age": at - engine.made_at,
        "mailbox_limit": engine.options.mailbox_limit,
        "commands": commands,
    }


def _line(answer: dict[str, Any]) -> memoryview:
    return memoryview(json.dumps(answer, default=str, separators=(",", ":")).encode() + b"\n")


def serve(pool: RealtimePool, path: str | os.PathLike[str] | None, *, allow_commands: bool) -> DebugServer:
    """
    Serve a pool, as `RealtimePool.serve_debug` says.
    """
    check_type("allow_commands", allow_commands, bool)
    check_platform()
    engine = pool._engine
    if path is None:
        directory = default_directory()
        make_directory(directory)
        place = os.path.join(directory, f"{os.getpid()}-{engine.name}.sock")
    else:
        try:
            place = os.path.abspath(os.fsdecode(path))
        except TypeError:
            raise InvalidType(f"path must be str, a path or None, not {type(path).__name__}") from None
    listener = listen_at(place)
    with contextlib.ExitStack() as undo:
        undo.callback(descriptors.close, listener.sock)
        undo.callback(listener.remove_file)
        try:
            server = DebugServer(pool, engine, listener, allow_commands=allow_commands)
        except OSError as error:
            raise ConnectionFailed(f"cannot serve at {place}: {error.strerror}") from error
        undo.pop_all()
    try:
        server._start(engine)
    except RtpoolError:
        server._end()
        raise
    server._log.info("served", "= pool %(pool)s is served at %(path)s", path=place)
    return server


@atexit.register
def _stop_at_exit() -> None:
    servers = list(_serving)
    for server in servers:
        server.stop()
    deadline = time.monotonic() + EXIT_SECONDS
    for server in servers:
        server._join(deadline)


def _leave_to_parent() -> None:
    with contextlib.ExitStack() as steps:  # the others go on even if one fails
        for server in list(_serving):
            steps.callback(server._after_fork)
        _serving.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_to_parent)
