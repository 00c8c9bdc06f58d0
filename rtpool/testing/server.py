"""
`RealtimeServer`: the listener, and what tests see of it and do with it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from websockets.asyncio.server import Server, serve
from websockets.asyncio.server import ServerConnection as WebSocket
from websockets.http11 import Request, Response

from rtpool.testing.admission import refuse_upgrade, request_info, serializer, to_response
from rtpool.testing.changes import Feed
from rtpool.testing.clock import Clock
from rtpool.testing.connection import ServerConnection, _NoReply
from rtpool.testing.controls import Controls
from rtpool.testing.database import Database
from rtpool.testing.faults.base import Fault
from rtpool.testing.faults.injection import Injection, Injections
from rtpool.testing.faults.moments import Moment
from rtpool.testing.faults.port import Port
from rtpool.testing.options import ServerOptions
from rtpool.testing.policy import Policy
from rtpool.testing.postgres import binding_id
from rtpool.testing.records import (
    JoinRecord,
    JoinRefusal,
    JoinReply,
    LeaveRecord,
    PushReply,
    ReceivedMessage,
    Refusal,
    RequestInfo,
    RestRecord,
    RestRequest,
)
from rtpool.testing.refusals import Join, System
from rtpool.testing.rest import answer
from rtpool.testing.rooms import Member, Rooms
from rtpool.testing.store import ReplayRefused, Store, StoredMessage
from rtpool.testing.stream import Stream, stream_class
from rtpool.testing.tables import Tables
from rtpool.testing.tokens import make_token, token_error
from rtpool.testing.wire import ClientMessage

__all__ = ["RealtimeServer"]

#: Seconds after which a channel that waits for the replication connection is shut down.
REPLICATION_TIMEOUT = 60.0


#: Of the library underneath, which at DEBUG shows all that clients send, keys included.
_log = logging.getLogger("websockets.server.rtpool")
_log.addFilter(lambda record: record.levelno >= logging.INFO)


class RealtimeServer(Controls):
    """
    A Supabase Realtime server on a loopback port, in a thread of its own.

    It speaks both serializer versions, public and private topics, broadcast over WebSocket and REST, replay, presence,
    tokens and Postgres changes, in the frame order of supabase/realtime 2.128; it breaks on demand.

    Args:
        port: 0 takes a free one.
        host: where to listen.
        api_key: the key to accept; None makes a JWT for the role ``anon``.
        secret: tokens are signed with; None makes one.
        ssl_context: serve ``wss`` with it.
        clock_at: seconds since the epoch at which the server's clock stands, moved by `advance` alone; None is real
            time.
        options: fields of `ServerOptions`.

    Attributes:
        connections_total: WebSockets opened so far.
        turned_away: TCP connections closed so far because of `max_http_connections`.
        malformed: frames so far that nobody understands.
        on_connect: called with a `RequestInfo` before an upgrade; returns None, or a `Refusal`.
        on_join: called with (topic as users write it, payload, connection) before a join; returns None, a
            `JoinRefusal`, a `JoinReply`, or `NO_REPLY`.
        on_push: called with (topic as users write it, event, payload, connection) for every push on a joined channel;
            returns None for what the server does itself, a `PushReply`, or `NO_REPLY` to swallow it.
        on_request: called with a `RestRequest` before a REST call; returns None, or a `Refusal` that answers it.
        policy: who may do what on private topics: called with a `PolicyRequest`, returns `Permissions`, or True for
            all and False for nothing. None lets everybody. Asked at the join, at the first thing sent, and again
            after each new token.

    `rtpool.testing.refusals` has what a hook may return for every refusal of a real server, `rtpool.testing.faults`
    what `inject` can let go wrong.

    Thread-safety: every method may be called from any thread; hooks run on the server's thread.
    """

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        *,
        api_key: str | None = None,
        secret: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        clock_at: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(Clock(clock_at))
        self.options = ServerOptions(**options)
        self.port = port
        self._host = host
        self._ssl = ssl_context
        self.secret = secret or secrets.token_hex(16)
        self.api_key = api_key or self.token(role="anon")
        self.on_connect: Callable[[RequestInfo], Refusal | None] | None = None
        self.on_join: Callable[[str, Any, ServerConnection], JoinRefusal | JoinReply | _NoReply | None] | None = None
        self.on_push: Callable[[str, str, Any, ServerConnection], PushReply | _NoReply | None] | None = None
        self.on_request: Callable[[RestRequest], Refusal | None] | None = None
        self.policy: Policy | None = None
        self.rooms = Rooms(self)
        self.feed = Feed(self)
        self.tables = Tables()
        self.store = Store(self.clock.now, self.options.record_limit)
        self.database = Database(self.clock.now)
        self.injections = Injections(self)
        self.listening_port: Port
        self.reset_rates()
        self._connections: tuple[ServerConnection, ...] = ()
        self.connections_total = 0
        self.turned_away = 0
        self.malformed = 0
        self._received: deque[ReceivedMessage] = deque(maxlen=self.options.record_limit)
        self._joins: deque[JoinRecord] = deque(maxlen=self.options.record_limit)
        self._leaves: deque[LeaveRecord] = deque(maxlen=self.options.record_limit)
        self._requests: deque[RestRecord] = deque(maxlen=self.options.record_limit)
        self._streams: set[Stream] = set()

    # Life

    def start(self) -> RealtimeServer:
        """Listen, on the same port again after `close`. Idempotent. Raises `OSError` when the port is taken."""
        self.start_thread()
        return self

    def close(self) -> None:
        """Cut every client off and end. Idempotent."""
        self.stop_thread()

    def __enter__(self) -> RealtimeServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """What to give to a client as the project's URL."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._ssl else 'http'}://{host}:{self.port}"

    def token(self, *, role: str = "authenticated", expires_in: float = 10 * 365 * 86_400, **claims: Any) -> str:
        """A JWT this server accepts, expiring in that many seconds."""
        return make_token(self.secret, {"role": role, "exp": int(self.clock.now() + expires_in), **claims})

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

    @property
    def requests(self) -> list[RestRecord]:
        """Every REST call answered, oldest first, as far as `record_limit` goes."""
        return self.call(lambda: list(self._requests))

    @property
    def stored(self) -> list[StoredMessage]:
        """Every message the database sent and keeps for replay."""
        return self.call(self.store.all)

    def members(self, topic: str) -> int:
        """How many channels are joined to a topic now, public and private."""
        return self.call(lambda: sum(len(room.members) for room in self.rooms.of(self.wire_topic(topic))))

    def presence(self, topic: str) -> dict[str, Any]:
        """Who is present, ``{key: {"metas": [...]}}``, public and private together."""

        def state() -> dict[str, Any]:
            return {key: value for room in self.rooms.of(self.wire_topic(topic)) for key, value in room.state().items()}

        return self.call(state)

    # What goes wrong

    def inject(self, fault: Fault, *, on: Moment | None = None, times: int | None = 1) -> Injection:
        """
        Let something go wrong; `rtpool.testing.faults` has what, and when.

        Args:
            fault: what happens.
            on: when and to whom; None is where the fault belongs, see its class.
            times: how often at most; None is until it is taken back. `faults.Now` strikes each socket once, whatever
                is said here.

        Returns:
            How often it struck, how to wait for it, and how to take it back; also by ``with``.

        Raises:
            ValueError: it cannot happen then, or `times` is less than 1.
        """
        moment = fault.natural() if on is None else on
        if not isinstance(moment, fault.moments):
            possible = ", ".join(kind.__name__ for kind in fault.moments)
            raise ValueError(f"{type(fault).__name__} strikes at {possible}, not at {type(moment).__name__}")
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1 or None, not {times!r}")
        injection = Injection(self, fault, moment, times)
        fault.begin(injection)
        return injection

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

    # The loop's side, for connections

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

    def record_join(
        self, connection: ServerConnection, message: ClientMessage, reason: str | None, let_in: bool
    ) -> None:
        """Keep that a join was asked for, and how it went."""
        topic = str(message.topic)
        short = topic.removeprefix("realtime:")
        self._joins.append(JoinRecord(connection.id, short, topic, message.join_ref, message.payload, let_in, reason))
        self.changed()

    def record_request(self, record: RestRecord) -> None:
        """Keep that a REST call was answered."""
        self._requests.append(record)
        self.changed()

    @property
    def max_payload(self) -> int:
        """The bytes a broadcast or a tracked presence may take."""
        return self.options.max_payload_kb * 1000 + 500

    def token_error(self, token: Any, *, opaque: bool = True) -> tuple[str, str] | None:
        """Why a token is refused; none and the server's own key are good, and `opaque` ``sb_`` keys in a join."""
        if token is None or token == self.api_key or (opaque and isinstance(token, str) and token.startswith("sb_")):
            return None
        return token_error(self.secret, "".join(str(token).split()), self.clock.now())

    def join_response(self, member: Member) -> dict[str, Any]:
        """The response of an ok reply: each binding as it was asked for, with its id."""
        if self.options.plain_phoenix:
            return {}
        return {"postgres_changes": [{"id": binding_id(binding), **binding} for binding in member.bindings]}

    def after_join(self, member: Member, replay: list[StoredMessage]) -> None:
        """What follows the reply."""
        self.changed()
        if self.options.plain_phoenix:
            return
        self.rooms.replay(member, replay)
        self.feed.subscribe(member, self.options.postgres_delay)
        self.rooms.after_join(member)
        if member.replication_ready:
            self._tell_replication(member)

    def _tell_replication(self, member: Member) -> None:
        delay = self.options.replication_delay

        def tell() -> None:
            if not self.rooms.present(member):
                return
            if delay > REPLICATION_TIMEOUT:
                member.connection.shut_down(member, System.REPLICATION_LATE())
            else:
                member.system("system", "ok", "Replication connection established")

        if delay > 0:
            self.clock.call_later(min(delay, REPLICATION_TIMEOUT), tell)
        else:
            tell()

    def stored_for(self, member: Member, payload: Any) -> list[StoredMessage]:
        """What a join wants replayed. Raises `ReplayRefused`."""
        config = payload.get("config") if isinstance(payload, dict) else None
        broadcast = config.get("broadcast") if isinstance(config, dict) else None
        if not isinstance(broadcast, dict) or "replay" not in broadcast:
            return []
        if not member.private:
            raise ReplayRefused(Join.REPLAY_ON_PUBLIC)
        return self.store.replay(member.name, broadcast["replay"])

    def _cut_off_channelless(self) -> None:
        timeout = self.options.no_channel_timeout
        assert timeout is not None
        for connection in self._connections:
            if connection.asked_to_join and not connection.members:
                connection.abort()
        self.clock.call_later(timeout, self._cut_off_channelless)

    async def main(self, listening: Callable[[], None], stop: asyncio.Event) -> None:
        """Listen until `stop` is set; what the server's thread runs."""
        self.listening_port = port = Port(self._listen, self._host, self.port)
        self.port = port.number
        try:
            await port.open()
            if self.options.no_channel_timeout is not None:
                self.clock.call_later(self.options.no_channel_timeout, self._cut_off_channelless)
            listening()
            await stop.wait()
        finally:
            port.close()
        for stream in list(self._streams):  # also those that have not shaken hands
            stream.transport.abort()
        await port.wait_closed()

    def descriptors(self) -> Iterator[int]:
        """Of the port and of every connection."""
        if hasattr(self, "listening_port"):
            yield from self.listening_port.descriptors()
        for stream in self._streams:
            sock = stream.transport.get_extra_info("socket")
            if sock is not None:
                yield sock.fileno()

    async def _listen(self, listener: socket.socket) -> Server:
        server: Server = await serve(
            self._serve,
            sock=listener,
            process_request=self._process_request,
            create_connection=stream_class(self, self._streams, self._full, lambda request: answer(self, request)),
            ssl=self._ssl,
            compression=None,
            ping_interval=None,
            open_timeout=60.0,
            close_timeout=1.0,
            max_size=self.options.max_frame_size,
            max_queue=None,
            server_header=None,
            logger=_log,
        )
        return server

    def _full(self) -> bool:
        """Whether a connection that has just been opened is one too many."""
        limit = self.options.max_http_connections
        full = limit is not None and len(self._streams) >= limit
        if full:
            self.turned_away += 1
            self.changed()
        return full

    async def _process_request(self, ws: WebSocket, request: Request) -> Response | None:
        assert isinstance(ws, Stream)
        refusal = await self.injections.upgrading(ws, request_info(request))
        delay = self.options.connect_error_backoff
        if refusal is None:
            refusal, delay = refuse_upgrade(self, request)
        if refusal is None:
            return None
        delay = delay if refusal.delay is None else refusal.delay
        if delay > 0:
            await self.clock.sleep(delay, *self.stopping)  # cut short when the server closes
        return to_response(refusal)

    async def _serve(self, ws: WebSocket) -> None:
        assert ws.request is not None
        assert isinstance(ws, Stream)
        info = request_info(ws.request)
        vsn = serializer(info.query.get("vsn", "1.0.0"))
        assert vsn is not None
        self.connections_total += 1
        connection = ServerConnection(self, self.connections_total, ws, vsn, info)
        self._connections = (*self._connections, connection)
        self.changed()
        self.injections.opening(connection)
        try:
            await connection.run()
        finally:
            self._connections = tuple(c for c in self._connections if c is not connection)
            self.changed()
