"""
One socket of the embedded server: what comes in, in turn; what goes out, in order; and faults on demand.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed

from rtpool.testing.records import JoinRefusal
from rtpool.testing.rooms import Member
from rtpool.testing.stream import Stream
from rtpool.testing.wire import ClientMessage, Malformed, RawJson, ServerMessage, decode, encode

if TYPE_CHECKING:
    from rtpool.testing.server import RealtimeServer

__all__ = ["NO_REPLY", "ServerConnection"]


class _NoReply:
    """What an `on_join` hook returns for a server that never answers."""

    def __repr__(self) -> str:
        return "NO_REPLY"


NO_REPLY = _NoReply()


class ServerConnection:
    """
    A client's socket as the server sees it.

    Attributes:
        id: its number, counted from 1.
        peer: the client's address, ``(host, port)``.
        vsn: the serializer version it asked for.

    Thread-safety: the public methods may be called from any thread; they return once the server has done it.
    """

    def __init__(self, server: RealtimeServer, number: int, ws: Stream, vsn: str) -> None:
        self._server = server
        self.id = number
        self.peer: tuple[str, int] = tuple(ws.remote_address[:2])
        self.vsn = vsn
        self._ws = ws
        self._members: dict[str, Member] = {}
        self._out: deque[str | bytes | int] = deque()  # frames, and close codes at their place in the order
        self._out_size = 0
        self._more = asyncio.Event()
        self._may_write = asyncio.Event()  # clear while a join runs: then nothing leaves this socket
        self._may_write.set()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self.counted = False  # joined once: counts as a concurrent user

    # For tests

    @property
    def topics(self) -> tuple[str, ...]:
        """The wire topics joined now."""
        return tuple(self._members)

    def close(self, code: int = 1000) -> None:
        """Close with a WebSocket close code, without a reason, as Realtime does."""
        self._server.call(lambda: self._server.spawn(self._ws.close(code, "")))

    def abort(self) -> None:
        """Reset the TCP connection (RST): what was sent and not read is lost to the client."""
        self._server.call(self._abort)

    def freeze(self) -> None:
        """Read and write nothing any more: alive to TCP, dead to the client."""
        self._server.call(self._freeze)

    def thaw(self) -> None:
        """Undo `freeze`; what waited goes out in order."""
        self._server.call(self._thaw)

    def pause_reading(self) -> None:
        """Read nothing any more, so that the client's send buffer fills; go on writing."""
        self._server.call(lambda: self._ws.hold("paused"))

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        self._server.call(lambda: self._ws.release("paused"))

    def send_raw(self, data: bytes) -> None:
        """Put bytes on the stream as they are, below WebSocket framing, above TLS."""
        self._server.call(lambda: self._ws.transport.write(data))

    def send_text(self, text: str) -> None:
        """Send a text frame with any content."""
        self._server.call(lambda: self.enqueue(text))

    def send_binary(self, data: bytes) -> None:
        """Send a binary frame with any content."""
        self._server.call(lambda: self.enqueue(data))

    def __repr__(self) -> str:
        return f"<ServerConnection {self.id} from {self.peer[0]}:{self.peer[1]} with {len(self._members)} topics>"

    # On the server's loop

    @property
    def members(self) -> dict[str, Member]:
        """The joined channels by wire topic."""
        return self._members

    def send(self, message: ServerMessage) -> bool:
        """Queue a message; False when this socket's version cannot carry it."""
        frame = encode(self.vsn, message)
        if frame is None:
            return False
        self.enqueue(frame)
        return True

    def enqueue(self, frame: str | bytes) -> None:
        """Queue a frame; over `send_queue_limit` the socket is cut off instead."""
        if self._ws.gone():
            return
        self._out.append(frame)
        self._out_size += len(frame)
        if self._out_size > self._server.options.send_queue_limit:
            self._abort()
        self._more.set()

    async def run(self) -> None:
        """Serve until the socket ends."""
        self._ws.on_end = self._ended
        if self._ws.gone():
            return
        loop = asyncio.get_running_loop()
        helpers = [loop.create_task(self._write()), loop.create_task(self._reap_when_idle())]
        try:
            async for frame in self._ws:
                await self._thawed.wait()
                if self._ws.gone():
                    break
                await self._received(frame)
        except ConnectionClosed:
            return
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            for member in list(self._members.values()):
                self._server.rooms.leave(member)
            self._members.clear()

    async def _write(self) -> None:
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                while self._out:
                    await self._until_free()
                    frame = self._out.popleft()
                    if isinstance(frame, int):
                        await self._ws.close(frame, "")
                        return
                    self._out_size -= len(frame)
                    await self._ws.send(frame)
        except ConnectionClosed:
            self._out.clear()

    async def _until_free(self) -> None:
        while not (self._may_write.is_set() and self._thawed.is_set()):
            await self._may_write.wait()
            await self._thawed.wait()

    def _ended(self) -> None:
        # Whoever waits for a thaw or for a join's end has nothing to wait for any more.
        self._thawed.set()
        self._may_write.set()
        self._more.set()
        self._out.clear()

    async def _reap_when_idle(self) -> None:
        loop, timeout = asyncio.get_running_loop(), self._server.options.idle_timeout
        while (left := self._ws.heard_at + timeout - loop.time()) > 0:
            await asyncio.sleep(left)
            await self._until_free()
        await self._ws.close(1000, "")

    def _abort(self) -> None:
        transport = self._ws.transport
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def _freeze(self) -> None:
        if not self._ws.gone():
            self._thawed.clear()
            self._ws.hold("frozen")

    def _thaw(self) -> None:
        self._ws.release("frozen")
        self._thawed.set()

    async def _received(self, frame: str | bytes) -> None:
        try:
            message = decode(self.vsn, frame)
        except Malformed:
            self._server.count_malformed()
            return
        self._server.record(self, message)
        try:
            await self._handle(message)
        except RecursionError:  # nested deeper than Python's JSON can write again
            self._server.count_malformed()

    async def _handle(self, message: ClientMessage) -> None:
        if message.topic == "phoenix" and message.event == "heartbeat":
            self._reply(message, "ok", {})
        elif message.event == "phx_join":
            await self._join(message)
        elif message.event == "phx_leave":
            self._leave(message)
        else:
            self._push(message)

    def _reply(self, message: ClientMessage, status: str, response: Any, *, join_ref: Any = ...) -> None:
        self.send(
            ServerMessage(
                message.join_ref if join_ref is ... else join_ref,
                message.ref,
                message.topic,
                "phx_reply",
                {"status": status, "response": response},
            )
        )

    async def _take(self, seconds: float) -> None:
        """Be deaf and mute for a while, pings included; ends early with the socket."""
        if seconds <= 0:
            return
        self._may_write.clear()
        self._ws.hold("joining")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ws.wait_ended(), seconds)
        self._ws.release("joining")
        self._may_write.set()

    async def _join(self, message: ClientMessage) -> None:
        """One join at a time; while it runs this socket neither reads nor writes, as with the real server."""
        await self._take(self._server.options.join_latency)
        if self._ws.gone():
            return
        refusal = self._server.decide_join(self, message)
        if isinstance(refusal, JoinRefusal):
            await self._take(refusal.delay or 0.0)
        if self._ws.gone():
            return
        old = self._members.pop(message.topic, None)
        if old is not None:
            self._server.rooms.leave(old)
        if refusal is NO_REPLY:
            return
        if refusal is not None:
            unmatched = refusal.reason == "unmatched topic"
            self._reply(message, "error", {"reason": refusal.reason}, join_ref=None if unmatched else ...)
            if refusal.close_code is not None:
                self._out.append(refusal.close_code)
                self._more.set()
            return
        member = Member.from_join(self, message)
        self.counted = True
        self._members[message.topic] = member
        self._server.rooms.enter(member)
        self._reply(message, "ok", self._server.join_response(member))
        if old is not None:
            # protocol: the reply to the new join precedes the close of the old channel
            self.send(ServerMessage(old.join_ref, old.join_ref, message.topic, "phx_close", {}))
        self._server.after_join(member)

    def _leave(self, message: ClientMessage) -> None:
        member = self._members.get(message.topic)
        if member is None:
            self._reply(message, "ok", {})
            return
        if member.join_ref is not None and message.join_ref != member.join_ref:
            return  # a stale leave is ignored without a word
        self.drop(member)
        self._reply(message, "ok", {}, join_ref=member.own_ref)
        self.send(ServerMessage(member.join_ref, member.join_ref, message.topic, "phx_close", {}))
        self._server.record_leave(self, message)

    def drop(self, member: Member) -> None:
        """Forget a joined channel."""
        if self._members.get(member.topic) is member:
            del self._members[member.topic]
        self._server.rooms.leave(member)

    def shut_down(self, member: Member, words: str) -> None:
        """End a channel as the server does: a system error, then the close."""
        member.system("system", "error", words)
        self.drop(member)
        self.send(ServerMessage(member.join_ref, member.join_ref, member.topic, "phx_close", {}))

    def _push(self, message: ClientMessage) -> None:
        member = self._members.get(message.topic)
        if member is None:
            self._reply(message, "error", {"reason": "unmatched topic"}, join_ref=None)
            return
        if member.join_ref is not None and message.join_ref != member.join_ref:
            return  # Phoenix 1.8.3 to 1.8.11 drops a stale or missing join_ref without a word
        if self._server.options.plain_phoenix:
            return
        if message.event == "broadcast":
            self._broadcast(member, message)
        elif message.event == "presence":
            self._presence(member, message)
        elif message.event == "access_token":
            self._access_token(member, message)

    def _broadcast(self, member: Member, message: ClientMessage) -> None:
        if _size(message.payload) > self._server.options.max_payload_kb * 1000 + 500:
            if member.ack:
                self._reply(message, "error", "payload_size_exceeded", join_ref=member.own_ref)
            return
        payload, kind = message.payload, message.binary_kind
        if kind is None and not isinstance(payload, dict):
            self._crash(member)  # protocol: the vsn 2 encoder raises in the sender's channel
            return
        if kind == 3:
            payload = {name: value for name, value in payload.items() if name != "meta"}  # read there, not passed on
        room = self._server.rooms.get(member.topic, member.private)
        assert room is not None
        out = ServerMessage(None, None, member.topic, "broadcast", payload, kind == 3)
        room.fan_out(out, but=None if member.receive_own else member)
        if member.ack:
            self._reply(message, "ok", {}, join_ref=member.own_ref)

    def _crash(self, member: Member) -> None:
        self.drop(member)
        reason = {"reason": "channel_crash"}
        self.send(ServerMessage(member.join_ref, member.join_ref, member.topic, "phx_error", reason))

    def _presence(self, member: Member, message: ClientMessage) -> None:
        limit, now = self._server.options.presence_max_calls, time.monotonic()
        if now - member.presence_window >= self._server.options.presence_window:
            member.presence_window, member.presence_calls = now, 0
        member.presence_calls += 1
        if limit is not None and member.presence_calls > limit:
            self.shut_down(member, "Client presence rate limit exceeded")
            return
        payload = message.payload if isinstance(message.payload, dict) else {}
        kind = str(payload.get("event", "")).lower()
        meta = payload.get("payload", {})
        if kind == "track" and not isinstance(meta, dict):
            reason = {"reason": "Presence track payload must be a map"}
            self._reply(message, "error", reason, join_ref=member.own_ref)
        elif kind in ("track", "untrack"):
            self._reply(message, "ok", {}, join_ref=member.own_ref)
            self._server.rooms.track(member, meta if kind == "track" else None)
        else:
            self._reply(message, "error" if kind else "ok", {}, join_ref=member.own_ref)

    def _access_token(self, member: Member, message: ClientMessage) -> None:
        token = message.payload.get("access_token") if isinstance(message.payload, dict) else None
        if not isinstance(token, str) or token.startswith("sb_") or token == member.token:
            return  # protocol: none, an opaque key and the token in use already change nothing
        error = self._server.token_error(token, time.time())
        if error is not None:
            self.shut_down(member, error[1])
            return
        member.token = token
        self._server.rooms.postgres_status(member)  # the subscription is renewed under the new token


def _size(payload: Any) -> int:
    """About the bytes a broadcast's payload takes."""
    if isinstance(payload, dict):
        return sum(len(str(name)) + _size(value) + 10 for name, value in payload.items())
    if isinstance(payload, list):
        return sum(_size(value) + 5 for value in payload)
    if isinstance(payload, RawJson):
        return len(payload.data)
    if isinstance(payload, str):
        return len(payload) if payload.isascii() else len(payload.encode())
    return len(payload) if isinstance(payload, bytes) else 8
