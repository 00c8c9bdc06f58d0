"""
`RealtimeServer`: the listener, its thread, and what tests see of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import attrs
from websockets.asyncio.server import ServerConnection as WebSocket
from websockets.asyncio.server import serve
from websockets.http11 import Request, Response

from rtpool.testing.admission import refuse_join, refuse_upgrade, serializer, to_response
from rtpool.testing.connection import ServerConnection, _NoReply
from rtpool.testing.postgres import binding_id
from rtpool.testing.records import (
    JoinRecord,
    JoinRefusal,
    LeaveRecord,
    ReceivedMessage,
    Refusal,
    RequestInfo,
    ServerOptions,
)
from rtpool.testing.rooms import Member, Rooms
from rtpool.testing.stream import Stream, stream_class
from rtpool.testing.tokens import make_token, token_error
from rtpool.testing.wire import ClientMessage, ServerMessage

__all__ = ["RealtimeServer"]

T = TypeVar("T")


class RealtimeServer:
    """
    A Supabase Realtime server on a loopback port, in a thread of its own.

    It speaks both serializer versions, public and private topics, broadcast, presence and Postgres changes, in the
    frame order of supabase/realtime 2.128; it breaks on demand.

    Args:
        port: 0 takes a free one.
        host: where to listen.
        api_key: the key to accept; None makes a JWT for the role ``anon``.
        ssl_context: serve ``wss`` with it.
        options: fields of `ServerOptions`.

    Attributes:
        on_connect: called with a `RequestInfo` before an upgrade; returns None, or a `Refusal`.
        on_join: called with (topic as users write it, payload, connection) before a join; returns None, a
            `JoinRefusal`, or `NO_REPLY`.

    Thread-safety: every method may be called from any thread; hooks run on the server's thread.
    """

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        *,
        api_key: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        **options: Any,
    ) -> None:
        self.options = ServerOptions(**options)
        self.port = port
        self._host = host
        self._ssl = ssl_context
        self._secret = secrets.token_hex(16)
        self.api_key = api_key or self.token(role="anon")
        self.on_connect: Callable[[RequestInfo], Refusal | None] | None = None
        self.on_join: Callable[[str, Any, ServerConnection], JoinRefusal | _NoReply | None] | None = None
        self.rooms = Rooms()
        # Guards: nothing but the waiting; everything else is written on the loop and read as immutable snapshots.
        self._changed = threading.Condition()
        self._connections: tuple[ServerConnection, ...] = ()
        self.connections_total = 0
        self.malformed = 0
        self._received: deque[ReceivedMessage] = deque(maxlen=self.options.record_limit)
        self._joins: deque[JoinRecord] = deque(maxlen=self.options.record_limit)
        self._leaves: deque[LeaveRecord] = deque(maxlen=self.options.record_limit)
        self.recent_joins: deque[float] = deque()
        # Guards `_calls` and `_open`: what other threads want done on the loop, and whether it still takes any.
        self._calls_lock = threading.Lock()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._open = False
        self._streams: set[Stream] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._tasks: set[asyncio.Future[Any]] = set()

    # Life

    def start(self) -> RealtimeServer:
        """Listen. Idempotent. Raises `OSError` when the port is taken."""
        if self._thread is not None:
            return self
        started = threading.Event()
        failure: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(self._main(started))
            except BaseException as error:
                failure.append(error)
            finally:
                started.set()

        self._thread = threading.Thread(target=run, name="rtpool-testing-server", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            self._thread.join()
            self._thread = None
            raise failure[0]
        with self._calls_lock:
            self._open = True
        return self

    def close(self) -> None:
        """Cut every client off and end. Idempotent."""
        with self._calls_lock:
            thread, loop, stop = self._thread, self._loop, self._stop
            self._thread = None
        if thread is None or loop is None or stop is None:
            return
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        with self._calls_lock:
            self._open, self._loop = False, None
        self._run_calls()  # what came too late for the loop; nobody waits for ever

    def __enter__(self) -> RealtimeServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """What to give to a client as the project's URL."""
        return f"{'https' if self._ssl else 'http'}://{self._host}:{self.port}"

    def token(self, *, role: str = "authenticated", expires_in: float = 10 * 365 * 86_400, **claims: Any) -> str:
        """A JWT this server accepts, expiring in that many seconds."""
        return make_token(self._secret, {"role": role, "exp": int(time.time() + expires_in), **claims})

    # What was seen

    @property
    def connections(self) -> tuple[ServerConnection, ...]:
        """The sockets open now, oldest first."""
        return self._connections

    @property
    def received(self) -> list[ReceivedMessage]:
        """Every message clients sent, oldest first, as far as `record_limit` goes."""
        return self.call(lambda: list(self._received))

    def joins(self, topic: str | None = None) -> list[JoinRecord]:
        """Every join asked for, oldest first, as far as `record_limit` goes; a topic with or without the prefix."""
        records = self.call(lambda: list(self._joins))
        return records if topic is None else [r for r in records if topic in (r.topic, r.wire_topic)]

    def leaves(self, topic: str | None = None) -> list[LeaveRecord]:
        """Every channel left, oldest first, as far as `record_limit` goes."""
        records = self.call(lambda: list(self._leaves))
        return records if topic is None else [r for r in records if topic in (r.topic, r.wire_topic)]

    def members(self, topic: str) -> int:
        """How many channels are joined to a topic now, public and private."""
        return self.call(lambda: sum(len(room.members) for room in self.rooms.of(self._wire(topic))))

    def presence(self, topic: str) -> dict[str, Any]:
        """Who is present, ``{key: {"metas": [...]}}``, public and private together."""

        def state() -> dict[str, Any]:
            return {key: value for room in self.rooms.of(self._wire(topic)) for key, value in room.state().items()}

        return self.call(state)

    def wait_for(self, predicate: Callable[[RealtimeServer], object], timeout: float = 5.0) -> None:
        """
        Wait until `predicate(server)` is true; it is asked again whenever something changed.

        Raises:
            TimeoutError: it was not within `timeout` seconds; says what the server saw.
        """
        deadline = time.monotonic() + timeout
        while True:
            with self._changed:
                version = self._version
            if predicate(self):  # outside the lock: it may call the server
                return
            with self._changed:
                left = deadline - time.monotonic()
                if not self._changed.wait_for(lambda v=version: self._version != v, max(0.0, left)):  # type: ignore[misc]
                    raise TimeoutError(
                        f"not within {timeout} s; {len(self._connections)} connections of {self.connections_total}, "
                        f"{len(self._joins)} joins, {len(self._leaves)} leaves, {len(self._received)} messages"
                    )

    _version = 0
    _ident: int | None = None

    def changed(self) -> None:
        """Something happened; on the server's loop."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    # What it does

    def broadcast(
        self,
        topic: str,
        event: str,
        payload: Mapping[str, Any] | bytes,
        *,
        private: bool = False,
        id: str | None = None,
        as_text: bool = False,
    ) -> int:
        """
        Broadcast from the server's side, as the database or a REST call would.

        Args:
            payload: an object, or bytes (which vsn 1 sockets do not get).
            id: becomes ``meta.id``.
            as_text: a text frame also on vsn 2, as the batch REST endpoint sends.

        Returns:
            How many channels it was sent to.
        """
        body = payload if isinstance(payload, bytes) else dict(payload)
        data: dict[str, Any] = {"type": "broadcast", "event": event, "payload": body}
        if id is not None:
            data["meta"] = {"id": id}

        def send() -> int:
            room = self.rooms.get(self._wire(topic), private)
            message = ServerMessage(None, None, self._wire(topic), "broadcast", data, not as_text)
            return room.fan_out(message) if room else 0

        return self.call(send)

    def push(self, topic: str, event: str, payload: Any) -> int:
        """Push any event to everybody on a topic; returns how many got it."""

        def send() -> int:
            message = ServerMessage(None, None, self._wire(topic), event, payload)
            return sum(room.fan_out(message) for room in self.rooms.of(self._wire(topic)))

        return self.call(send)

    def change(
        self,
        schema: str,
        table: str,
        type: str,
        record: Mapping[str, Any] | None = None,
        old_record: Mapping[str, Any] | None = None,
        *,
        columns: list[dict[str, str]] | None = None,
        commit_timestamp: str | None = None,
    ) -> int:
        """
        A row changed: tell every channel with a binding that matches.

        Args:
            type: ``INSERT``, ``UPDATE`` or ``DELETE``.
            record: the new row; not for DELETE.
            old_record: the replica identity of the old row; not for INSERT.
            columns: ``{"name", "type"}`` of each; None guesses.
            commit_timestamp: as it goes over the wire; None is now.

        Returns:
            How many channels got it.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        row = record if record is not None else old_record or {}
        data: dict[str, Any] = {
            "schema": schema,
            "table": table,
            "type": type.upper(),
            "commit_timestamp": commit_timestamp or now,
            "errors": None,
            "columns": columns or [{"name": name, "type": _column_type(value)} for name, value in row.items()],
        }
        if record is not None:
            data["record"] = dict(record)
        if old_record is not None:
            data["old_record"] = dict(old_record)
        return self.call(lambda: self.rooms.change(data))

    # The loop's side, for connections

    def call(self, function: Callable[[], T]) -> T:
        """Run on the server's loop and return what it returns; directly when called there or when it has ended."""
        future: Future[T] = Future()
        with self._calls_lock:
            loop = self._loop
            direct = not self._open or loop is None or threading.get_ident() == self._ident
            if not direct:
                self._calls.append((function, future))
        if direct:
            return function()
        with contextlib.suppress(RuntimeError):  # the loop has just closed; close() runs what is left
            loop.call_soon_threadsafe(self._run_calls)  # type: ignore[union-attr]
        return future.result()

    def _run_calls(self) -> None:
        while True:
            with self._calls_lock:
                if not self._calls:
                    return
                function, future = self._calls.popleft()
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine in the background; on the server's loop."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def count_malformed(self) -> None:
        """A frame nobody understands was dropped."""
        self.malformed += 1
        self.changed()

    def record(self, connection: ServerConnection, message: ClientMessage) -> None:
        """Keep what a client sent."""
        self._received.append(ReceivedMessage(connection.id, *message[:5]))
        self.changed()

    def record_leave(self, connection: ServerConnection, message: ClientMessage) -> None:
        """Keep that a channel was left."""
        self._leaves.append(LeaveRecord(connection.id, message.topic.removeprefix("realtime:"), message.topic))
        self.changed()

    def decide_join(self, connection: ServerConnection, message: ClientMessage) -> Any:
        """None to let a join in, a `JoinRefusal`, or `NO_REPLY`; and the record of it."""
        refusal = refuse_join(self, connection, message)
        accepted = refusal is None
        reason = getattr(refusal, "reason", None) if not accepted else None
        self._joins.append(
            JoinRecord(
                connection.id,
                message.topic.removeprefix("realtime:"),
                message.topic,
                message.join_ref,
                message.payload,
                accepted,
                reason,
            )
        )
        self.changed()
        if isinstance(refusal, JoinRefusal) and refusal.delay is None:
            return attrs.evolve(refusal, delay=self.options.join_error_backoff)
        return refusal

    def token_error(self, token: Any, now: float, *, opaque: bool = True) -> tuple[str, str] | None:
        """Why a token is refused; none and the server's own key are good, and `opaque` ``sb_`` keys in a join."""
        if token is None or token == self.api_key or (opaque and isinstance(token, str) and token.startswith("sb_")):
            return None
        return token_error(self._secret, str(token).strip(), now)

    def join_response(self, member: Member) -> dict[str, Any]:
        """The response of an ok reply: each binding as it was asked for, with its id."""
        if self.options.plain_phoenix:
            return {}
        return {"postgres_changes": [{**binding, "id": binding_id(binding)} for binding in member.bindings]}

    def after_join(self, member: Member) -> None:
        """What follows the reply."""
        self.changed()
        if self.options.plain_phoenix:
            return
        self.rooms.after_join(member)
        if member.bindings and self.options.postgres_delay > 0:
            asyncio.get_running_loop().call_later(self.options.postgres_delay, self.rooms.postgres_status, member)
        elif member.bindings:
            self.rooms.postgres_status(member)

    def _wire(self, topic: str) -> str:
        options = self.options
        as_it_is = options.plain_phoenix or not options.require_prefix or topic.startswith("realtime:")
        return topic if as_it_is else f"realtime:{topic}"

    async def _main(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        self._ident = threading.get_ident()
        options = self.options
        async with serve(
            self._serve,
            self._host,
            self.port,
            process_request=self._process_request,
            create_connection=stream_class(self._streams),
            ssl=self._ssl,
            compression=None,
            ping_interval=None,
            close_timeout=1.0,
            max_size=options.max_frame_size,
            max_queue=None,
            server_header=None,
        ) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._loop = asyncio.get_running_loop()
            started.set()
            await self._stop.wait()
            server.close(close_connections=False)
            for stream in list(self._streams):  # also those that have not shaken hands
                stream.transport.abort()
            for task in list(self._tasks):
                task.cancel()

    async def _process_request(self, ws: WebSocket, request: Request) -> Response | None:
        refusal, delay = refuse_upgrade(self, request)
        if refusal is None:
            return None
        if delay > 0 and self._stop is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay)  # cut short when the server closes
        return to_response(refusal)

    async def _serve(self, ws: WebSocket) -> None:
        assert ws.request is not None
        assert isinstance(ws, Stream)
        query = parse_qs(urlsplit(ws.request.path).query)
        vsn = serializer(query.get("vsn", ["1.0.0"])[-1])
        assert vsn is not None
        self.connections_total += 1
        connection = ServerConnection(self, self.connections_total, ws, vsn)
        self._connections = (*self._connections, connection)
        self.changed()
        try:
            await connection.run()
        finally:
            self._connections = tuple(c for c in self._connections if c is not connection)
            self.changed()


def _column_type(value: Any) -> str:
    kinds = {bool: "bool", int: "int8", float: "float8", dict: "jsonb", list: "jsonb"}
    return kinds.get(type(value), "text")
